"""Normalisation and augmentation of whole batches on the device."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from feature_gan_kd.data.rng import CROP, hashed


@dataclass(frozen=True)
class PixelNormaliser:
    """Pixels in [0, 255] to (pixel / 255 - mean) / std.

    Attributes:
        mean: per channel, of pixels in [0, 1].
        std: per channel, above 0.
        channels_last: memory order of the result; its shape is `(n, C, H, W)` either way.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = True

    @classmethod
    def identity(cls, channels: int) -> PixelNormaliser:
        """Pixels scaled to [0, 1] and no more."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 `(n, H, W, C)` to float32 `(n, C, H, W)`."""
        count, height, width, channels = pixels.shape
        # Whole rows of pixels against one tiled row: an inner loop of W * C numbers, not of C.
        rows = pixels.reshape(count * height, width * channels).to(torch.float32)
        scale, offset = _tiled(self.mean, self.std, width, pixels.device)
        images = rows.mul_(scale).add_(offset).view(count, height, width, channels).permute(0, 3, 1, 2)
        return images if self.channels_last else images.contiguous()


@functools.lru_cache(maxsize=8)
def _tiled(mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand of each number in a row of pixels, float32 `(W * C,)`; kept on the device."""
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (255 * deviation), -torch.tensor(mean, dtype=torch.float64) / deviation
    return scale.float().repeat(width).to(device), offset.float().repeat(width).to(device)


@dataclass(frozen=True)
class CropFlip:
    """The augmentation of the CIFAR literature, on whole batches: a window of the zero-padded image, mirrored or not.

    Attributes:
        padding: zeros added on each of the four sides, in pixels; 0 takes no window.
        flip: mirror left to right with probability 1/2.
    """

    padding: int
    flip: bool

    def draw(self, seed: int, epoch: int, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top and left of the window in [0, 2 * padding] and whether to mirror: int64, shaped as `indices`."""
        bits = hashed(seed, epoch, CROP, indices)
        # 24 bits times the number of choices: the largest difference between two probabilities is 2^-24.
        top, left = ((bits >> by & 0xFFFFFF) * (2 * self.padding + 1) >> 24 for by in (0, 24))
        return top, left, (bits >> 48 & 1) * int(self.flip)

    def __call__(self, pixels: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Augments the images of `indices`: uint8 `(n, H, W, C)` to the same shape."""
        if not len(pixels):
            return pixels
        count, height, width, channels = pixels.shape
        top, left, mirrored = self.draw(seed, epoch, indices)
        by = self.padding
        padded = pad(pixels, (0, 0, by, by, by, by)) if by else pixels
        if self.flip:
            padded = torch.cat([padded, padded.flip(2)])
        high, wide = height + 2 * by, width + 2 * by
        # Every row of a window is one run of W pixels, so a batch is n * H copies of W * C bytes.
        runs = padded.as_strided((padded.shape[0] * high * wide - width + 1, width * channels), (channels, 1))
        image = torch.arange(count, device=pixels.device) + mirrored * count
        row = torch.arange(height, device=pixels.device)
        begin = ((image * high + top)[:, None] + row) * wide + left[:, None]
        return runs.index_select(0, begin.view(-1)).view(count, height, width, channels)
