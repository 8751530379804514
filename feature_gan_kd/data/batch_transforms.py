"""Normalisation and augmentation of whole batches on the device."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn.functional import pad

from feature_gan_kd.data.rng import CROP, ERASE, item_seeds, random_bits, seeded


@dataclass(frozen=True)
class PixelNormaliser:
    """Turns pixels in [0, 255] into (pixel / 255 - mean) / std.

    Attributes:
        mean: per channel, of pixels in [0, 1].
        std: per channel, above 0.
        channels_last: memory format of the result; its shape is `(n, C, H, W)` either way.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = True

    @classmethod
    def identity(cls, channels: int) -> PixelNormaliser:
        """Only scales pixels to [0, 1]."""
        return cls((0.0,) * channels, (1.0,) * channels)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 `(n, H, W, C)` to float32 `(n, C, H, W)`; C may be that of several views of an image."""
        count, height, width, channels = pixels.shape
        views = channels // len(self.mean)
        # Multiply whole rows of pixels by one tiled row: the inner loop then runs over W * C numbers, not over C.
        rows = pixels.reshape(count * height, width * channels).to(torch.float32)
        scale, offset = _tiled_scale_offset(self.mean, self.std, width * views, pixels.device)
        images = rows.mul_(scale).add_(offset).view(count, height, width, channels).permute(0, 3, 1, 2)
        return images if self.channels_last else images.contiguous()


@functools.lru_cache(maxsize=8)
def _tiled_scale_offset(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factor and summand of each number in a row of pixels, float32 `(W * C,)`; cached on the device."""
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, offset = 1 / (255 * deviation), -torch.tensor(mean, dtype=torch.float64) / deviation
    return scale.float().repeat(width).to(device), offset.float().repeat(width).to(device)


@dataclass(frozen=True)
class CropFlip:
    """Augments whole batches as the CIFAR literature does: random windows of zero-padded images, mirrored at random.

    Attributes:
        padding: zeros added on each of the four sides, in pixels; 0 keeps the whole image.
        flip: mirror left to right with probability 1/2.
        vflip: probability of mirroring top to bottom.
    """

    padding: int
    flip: bool
    vflip: float = 0.0

    def draw(self, seed: int, epoch: int, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws top and left of the window in [0, 2 * padding] and whether to mirror: int64, shaped as `indices`."""
        bits = random_bits(seed, epoch, CROP, indices)
        # 24 bits times the number of choices, without a loop of rejections: probabilities differ by at most 2^-24.
        top, left = ((bits >> shift & 0xFFFFFF) * (2 * self.padding + 1) >> 24 for shift in (0, 24))
        return top, left, (bits >> 48 & 1) * int(self.flip)

    def draw_vertical(self, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Draws whether to mirror top to bottom: bool, shaped as `indices`."""
        bits = random_bits(seed, epoch, CROP, indices)
        return (bits >> 49 & 0x7FFF) < round(self.vflip * 2**15)  # the bits that `draw` leaves

    def __call__(self, pixels: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Augments the images with the given `indices`: uint8 `(n, H, W, C)` to the same shape."""
        if not len(pixels):
            return pixels
        count, height, width, channels = pixels.shape
        top, left, mirrored = self.draw(seed, epoch, indices)
        border = self.padding
        padded = pad(pixels, (0, 0, border, border, border, border)) if border else pixels
        if self.flip:
            padded = torch.cat([padded, padded.flip(2)])
        padded_height, padded_width = height + 2 * border, width + 2 * border
        # Each row of a window is one contiguous run of W pixels, so cropping a batch is n * H copies of W * C bytes: a
        # single index_select over a view in which run k begins at pixel k, in place of a gather of single pixels.
        runs = padded.as_strided(
            (padded.shape[0] * padded_height * padded_width - width + 1, width * channels), (channels, 1)
        )
        image = torch.arange(count, device=pixels.device) + mirrored * count
        row = torch.arange(height, device=pixels.device)
        if self.vflip:
            turned = self.draw_vertical(seed, epoch, indices)[:, None]
            row = torch.where(turned, height - 1 - row, row)
        begin = ((image * padded_height + top)[:, None] + row) * padded_width + left[:, None]
        return runs.index_select(0, begin.view(-1)).view(count, height, width, channels)


@dataclass(frozen=True)
class Erasing:
    """timm's random erasing of normalised images, drawn from (seed, epoch, image) alone.

    timm's own transforms leave it out where they do not normalise, as they do not here.

    Attributes:
        probability: that an image is erased in part.
        mode: what erased pixels become: pixel (noise), rand (one random colour) or const (zero, the mean colour).
        count: largest number of rectangles in one image.
        channels: of an image; those of a plain view behind them stay as they are.
    """

    probability: float
    mode: str
    count: int
    channels: int

    def __call__(self, images: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Erases parts of the images with the given `indices`, on any device: float `(n, C, H, W)`, changed in place.

        The draws are made on the CPU, so that they are the same on every device.
        """
        erase = RandomErasing(self.probability, mode=self.mode, max_count=self.count, device="cpu")
        with seeded(0):
            for image, own in zip(images, item_seeds(seed, epoch, indices.cpu(), ERASE), strict=True):
                random.seed(own)
                torch.default_generator.manual_seed(own)
                erase(image[: self.channels])
        return images
