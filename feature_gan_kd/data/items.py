"""Labelled images one at a time: of a table, or of the user's own torch data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from feature_gan_kd.data.decode import ImageError, as_pixels, center_crop_resize, decode, undecodable, with_channels
from feature_gan_kd.data.rng import seeded
from feature_gan_kd.data.table import Table
from feature_gan_kd.utils.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Index of an image and the seed of its augmentation; None in evaluation.
Key = tuple[int, int | None]
# uint8 `(H, W, C)`, or float `(C, H, W)` that is normalised already, and the label; or what is wrong with it.
Item = tuple[Tensor, int] | UserError


@dataclass(frozen=True)
class ImageTransform:
    """A PIL image as pixels of one size, uint8 `(size, size, channels)`.

    Attributes:
        size: side in pixels.
        channels: 1 or 3.
        resized_crop: timm's transforms (random resized crop and flip in training, resize and centre crop in
            evaluation); else the largest centred square, resized.
    """

    size: int
    channels: int
    resized_crop: bool

    def __call__(self, image: Image, *, train: bool) -> Tensor:
        """An RGB or L image as its pixels; draws from the global generators where `train`."""
        if self.resized_crop:
            image = _transforms(self.size, train)(image)
        return torch.from_numpy(as_pixels(center_crop_resize(image, self.size), self.channels))


@functools.lru_cache(maxsize=4)
def _transforms(size: int, train: bool) -> Callable[[Image], Image]:
    from timm.data import create_transform

    chain = create_transform(size, is_training=train, color_jitter=None, interpolation="bicubic", normalize=False)
    # The last transform makes a tensor; pixels are normalised on the device.
    return type(chain)(chain.transforms[:-1])  # type: ignore[no-any-return]


class Items(Protocol):
    """Labelled images by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Item:
        """An image and its label.

        A bad image is returned as its error and not raised: a worker's exception would reach the user with the
        worker's traceback in its text.
        """
        ...

    @property
    def split(self) -> str:
        """Its name, for messages."""
        ...

    def where(self, index: int) -> str:
        """How a message names an image."""
        ...


@dataclass(frozen=True)
class TableItems:
    """Images of a `Table`, decoded when they are asked for."""

    table: Table
    views: ImageTransform

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Key) -> Item:
        index, seed = key
        try:
            value = self.table.rows[index][self.table.image]
            image = decode(value, self.views.channels, self.where(index))
        except UserError as error:
            return error
        with seeded(seed or 0):
            return self.views(image, train=seed is not None), int(self.table.labels[index])

    @property
    def split(self) -> str:
        """See `Items`."""
        return self.table.split

    def where(self, index: int) -> str:
        """See `Items`."""
        return self.table.where(index)


@dataclass(frozen=True)
class TorchItems:
    """Images of a map-style torch `Dataset`: tensors as they are, PIL images through `views`.

    Attributes:
        data: the data set.
        views: of PIL images.
        class_names: where the data set has them.
        num_classes: where the data set says.
        bound: labels must be below it; None for no bound.
        split: for messages.
        positions: int64 `(N,)`, indices into `data`.
    """

    data: Any
    views: ImageTransform
    class_names: list[str] | None
    num_classes: int | None
    bound: int | None
    split: str
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, indices: Tensor) -> TorchItems:
        """The images at `indices`, int64 `(n,)`."""
        return replace(self, positions=self.positions[indices])

    def holds_pictures(self) -> bool:
        """Whether the items are PIL images, which this project transforms, and not tensors."""
        from PIL.Image import Image

        with seeded(0):
            try:
                item = self._raw(0)
            except ImageError:
                return True
        return isinstance(item, Sequence) and isinstance(item[0], Image)

    def where(self, index: int) -> str:
        """See `Items`."""
        return f"image {int(self.positions[index])} of split {self.split!r}"

    def _raw(self, index: int) -> Any:
        """What the data set gives; an image of PIL's is read whole, which is where a broken one is found."""
        from PIL.Image import Image

        try:
            item = self.data[int(self.positions[index])]
            if isinstance(item, Sequence) and item and isinstance(item[0], Image):
                item[0].load()
        except (OSError, SyntaxError) as error:  # PIL's own, for broken files; others are mistakes in the data set
            raise undecodable(self.where(index), error) from error
        return item

    def __getitem__(self, key: Key) -> Item:
        from PIL.Image import Image

        index, seed = key
        where = self.where(index)
        try:
            with seeded(seed or 0):
                item = self._raw(index)
                if not isinstance(item, Sequence) or len(item) != 2:
                    raise UserError(f"data: {where} is no pair of an image and a label")
                image, label = item
                if isinstance(image, Image):
                    image = self.views(with_channels(image, self.views.channels), train=seed is not None)
                else:
                    image = _as_item(image, self.views.channels, where)
            return image, _class_index(label, self.bound, where)
        except UserError as error:
            return error


def _as_item(image: Any, channels: int, where: str) -> Tensor:
    if not isinstance(image, Tensor) or not (image.dtype == torch.uint8 or image.is_floating_point()):
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"images: {where} is {kind}, expected a PIL image or a uint8 or float tensor")
    if image.dim() != 3 or image.shape[0] != channels:
        raise UserError(f"images: {where} has the shape {tuple(image.shape)}, expected ({channels}, height, width)")
    return image.permute(1, 2, 0) if image.dtype == torch.uint8 else image.float()


def _class_index(label: Any, classes: int | None, where: str) -> int:
    if (isinstance(label, Tensor) and label.dim() == 0) or type(label).__module__ == "numpy":
        label = label.item()
    if not isinstance(label, int) or label < 0 or (classes is not None and label >= classes):
        expected = "a whole number from 0" if classes is None else f"0 to {classes - 1}"
        raise UserError(f"labels: {where} has the label {label!r}, expected {expected}")
    return label
