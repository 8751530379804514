"""What becomes of one decoded image before it joins a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feature_gan_kd.data.decode import center_crop_resize, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageTransform:
    """Turns a PIL image into pixels of one size, uint8 `(size, size, channels)`.

    Attributes:
        size: side in pixels.
        channels: 1 or 3.
        resized_crop: use timm's transforms (random resized crop and flip in training, resize and centre crop in
            evaluation); otherwise resize the largest centred square.
    """

    size: int
    channels: int
    resized_crop: bool

    def __call__(self, image: Image, *, train: bool) -> Tensor:
        """Transforms an RGB or L image; draws from the global generators if `train`."""
        if self.resized_crop:
            image = _timm_transforms(self.size, train)(image)
        return torch.from_numpy(to_pixels(center_crop_resize(image, self.size), self.channels))


@functools.lru_cache(maxsize=4)
def _timm_transforms(size: int, train: bool) -> Callable[[Image], Image]:
    from timm.data import create_transform

    chain = create_transform(size, is_training=train, color_jitter=None, interpolation="bicubic", normalize=False)
    # Without the last transform, which makes a tensor: pixels are normalised on the device, a whole batch at once.
    return type(chain)(chain.transforms[:-1])  # type: ignore[no-any-return]
