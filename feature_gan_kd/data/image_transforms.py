"""What becomes of one decoded image before it joins a batch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feature_gan_kd.data.convert import convert_channels
from feature_gan_kd.data.decode import center_crop_resize, to_pixels
from feature_gan_kd.utils.errors import UserError, reason

if TYPE_CHECKING:
    from PIL.Image import Image

OwnTransform = Callable[[Any], Any]
"""A transform of the user's own: from a PIL image to a PIL image, or to a tensor (channels, height, width)."""

RESIZED_CROP_PCT = 0.875
"""Share of each side that evaluation keeps where training crops at random sizes, as is usual for ImageNet."""


@dataclass(frozen=True)
class ImageChanges:
    """What timm changes in a training image, besides cropping and mirroring it; all off by default.

    Attributes:
        aa: timm's automatic augmentation, in its notation.
        color_jitter: factor; 0 is off.
        vflip: probability that resized-crop mirrors an image top to bottom.
        scale: shares of the area that resized-crop cuts out; None for timm's.
        ratio: ratios of the sides that resized-crop cuts out; None for timm's.
        plain_view: a second view follows in the channels: the same crop and flip without `aa` and `color_jitter`.
    """

    aa: str | None = None
    color_jitter: float = 0.0
    vflip: float = 0.0
    scale: tuple[float, ...] | None = None
    ratio: tuple[float, ...] | None = None
    plain_view: bool = False


@dataclass(frozen=True)
class ImageTransform:
    """Turns a PIL image into pixels of one size, uint8 `(size, size, channels)`.

    Attributes:
        size: side in pixels.
        channels: 1 or 3.
        resized_crop: in training use timm's random resized crop and flip; otherwise resize the largest centred square.
        crop_pct: of evaluation, see `center_crop_resize`; None for what is usual after such a training.
        interpolation: of every resizing.
        changes: made in training.
        own: a transform of the user's own, which takes the place of all others in training.
    """

    size: int
    channels: int
    resized_crop: bool
    crop_pct: float | None = None
    interpolation: str = "bicubic"
    changes: ImageChanges = ImageChanges()
    own: OwnTransform | None = None

    @property
    def evaluation_crop_pct(self) -> float:
        """Share of the shorter side that evaluation keeps."""
        return self.crop_pct or (RESIZED_CROP_PCT if self.resized_crop else 1.0)

    @property
    def changes_single_images(self) -> bool:
        """Whether training images are changed one by one, and not only in whole batches."""
        return self.own is not None or self.resized_crop or bool(self.changes.aa or self.changes.color_jitter)

    @property
    def training_channels(self) -> int:
        """Channels of a training image, with those of its plain view."""
        return self.channels * (1 + self.changes.plain_view)

    def __call__(self, image: Image, *, train: bool, where: str = "an image") -> Tensor:
        """Transforms an RGB or L image; draws from the global generators if `train`.

        Args:
            image: of any size.
            train: augment it.
            where: names the image in errors.

        Returns:
            Pixels, uint8 `(size, size, channels)`, in training `training_channels`; what a transform of the user's own
            gives may be floats `(channels, side, side)`, which are normalised already.

        Raises:
            UserError: for a transform of the user's own that fails or gives something else.
        """
        if train and self.own is not None:
            return self._apply_own(image, where)
        if not (train and self.resized_crop):
            crop_pct = 1.0 if train else self.evaluation_crop_pct
            image = center_crop_resize(image, self.size, crop_pct, self.interpolation)
        if not (train and self.changes_single_images):
            return torch.from_numpy(to_pixels(image, self.channels))
        crop, change = timm_changes(self.size, self.channels, self.interpolation, self.changes)
        image = crop(image) if self.resized_crop else image
        views = (change(image), image) if self.changes.plain_view else (change(image),)
        return torch.cat([torch.from_numpy(to_pixels(view, self.channels)) for view in views], dim=2)

    def _apply_own(self, image: Image, where: str) -> Tensor:
        from PIL.Image import Image as PILImage

        assert self.own is not None
        try:
            changed = self.own(image)
        except Exception as error:  # the user's own code
            raise UserError(f"train_transform: it fails on {where} ({reason(error)}): correct it") from error
        made = f"{where}, as train_transform makes it,"
        if not isinstance(changed, PILImage):
            return check_tensor(changed, self.channels, made)
        changed = convert_channels(changed, self.channels, made)
        return torch.from_numpy(
            to_pixels(center_crop_resize(changed, self.size, 1.0, self.interpolation), self.channels)
        )


def describe_transform(own: OwnTransform) -> str:
    """Names a transform of the user's own by its `repr`, without addresses, which differ from process to process."""
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(own)).split())


@functools.lru_cache(maxsize=8)
def timm_changes(
    size: int, channels: int, interpolation: str, changes: ImageChanges
) -> tuple[Callable[[Image], Image], Callable[[Image], Image]]:
    """timm's transforms of training images: the random resized crop and its flips, and what comes after them.

    Args:
        size: side in pixels.
        channels: 1 or 3.
        interpolation: of resizing and turning.
        changes: what is changed.
    """
    from timm.data import IMAGENET_DEFAULT_MEAN, create_transform

    mean = IMAGENET_DEFAULT_MEAN if channels == 3 else (sum(IMAGENET_DEFAULT_MEAN) / 3,)
    # Without the last part, which makes a tensor: pixels are normalised on the device, a whole batch at once.
    crop, change, _ = create_transform(
        size,
        is_training=True,
        scale=changes.scale,
        ratio=changes.ratio,
        vflip=changes.vflip,
        color_jitter=changes.color_jitter or None,
        auto_augment=changes.aa,
        interpolation=interpolation,
        mean=mean,  # of which aa fills the corners of turned images
        separate=True,
    )
    return crop, change


def check_tensor(image: Any, channels: int, where: str) -> Tensor:
    """Returns a user's tensor (C, H, W) as an item's image: bytes as (H, W, C), floats as they are.

    Raises:
        UserError: for anything else.
    """
    if not isinstance(image, Tensor) or not (image.dtype == torch.uint8 or image.is_floating_point()):
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"images: {where} is {kind}, expected a PIL image or a uint8 or float tensor")
    if image.dim() != 3 or image.shape[0] != channels:
        raise UserError(f"images: {where} has the shape {tuple(image.shape)}, expected ({channels}, height, width)")
    check_square(image, where)
    return image.permute(1, 2, 0) if image.dtype == torch.uint8 else image.float()


def check_square(images: Tensor, where: str) -> None:
    """Refuses tensors (..., height, width) that are no squares: resized to one, they would be squeezed in silence.

    Raises:
        UserError: naming the place.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise UserError(f"images: {where} has {height}x{width} pixels, expected squares: crop or pad the images")
