"""Global batches of one epoch, each process's share of them, and the images that are held in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from feature_gan_kd.data.draws import CROP, hashed, permutation
from feature_gan_kd.data.images import fingerprint, statistics

Batch = tuple[Tensor, Tensor]


class ImageSource(Protocol):
    """Labelled images that can be read an epoch at a time."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """Number of batches that `batches` yields for a whole epoch; `batch_size` is at least 2 in training."""
        ...

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str,
        train: bool,
    ) -> Iterator[Batch]:
        """This process's share of each global batch of one epoch.

        Args:
            batch_size: images in one global batch, over all processes; at least 2 in training.
            seed: of the run; with `epoch` and an image's index it alone decides order and augmentation.
            epoch: counted from 0.
            start: the global batch to begin at (resume inside an epoch).
            rank: of this process, in [0, world).
            world: number of processes.
            device: where the tensors are wanted.
            train: shuffled and augmented, and a last batch of a single image is left out, since batch
                normalisation cannot train on one; else every image once, in order.

        Yields:
            Images, float32 `(n, C, H, W)`, normalised, and labels, int64 `(n,)`. `n` is the size of the share,
            which can be 0 only where a batch has fewer images than there are processes.
        """
        ...


def batch_bounds(length: int, batch_size: int, *, train: bool, start: int = 0) -> Iterator[tuple[int, int]]:
    """First and last-plus-one position of each global batch from number `start` on."""
    for begin in range(start * batch_size, length, batch_size):
        end = min(begin + batch_size, length)
        if not (train and end - begin == 1):
            yield begin, end


def count_steps(length: int, batch_size: int, *, train: bool) -> int:
    """Number of global batches in an epoch of `length` images."""
    lonely = train and length % batch_size == 1
    return length // batch_size if lonely else -(-length // batch_size)


def share(size: int, rank: int, world: int) -> slice:
    """The contiguous part of a batch of `size` images that belongs to `rank`; the parts differ by at most 1."""
    return slice(size * rank // world, size * (rank + 1) // world)


@dataclass(frozen=True)
class Normalisation:
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
    def identity(cls, channels: int) -> Normalisation:
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


class MemoryImages:
    """Images decoded once into one uint8 tensor, augmented and normalised a batch at a time on the device.

    Args:
        pixels: uint8 `(N, H, W, C)`.
        labels: int64 `(N,)`.
        augment: applied in training; None for none.

    Attributes:
        normalise: applied last; to be set to what the run normalises with.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, augment: CropFlip | None) -> None:
        self.pixels = pixels
        self.labels = labels
        self.augment = augment
        self.normalise = Normalisation.identity(pixels.shape[-1])

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`."""
        return count_steps(len(self), batch_size, train=train)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of all images, see `images.statistics`."""
        return statistics(self.pixels)

    def fingerprint(self) -> str:
        """SHA-256 of all images and labels."""
        return fingerprint(self.pixels, self.labels)

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str,
        train: bool,
    ) -> Iterator[Batch]:
        """See `ImageSource`."""
        self._settle(torch.device(device))
        order = permutation(len(self), seed, epoch) if train else torch.arange(len(self))
        order = order.to(self.pixels.device)
        for begin, end in batch_bounds(len(self), batch_size, train=train, start=start):
            indices = order[begin:end][share(end - begin, rank, world)]
            pixels = self.pixels.index_select(0, indices).to(device, non_blocking=True)
            labels = self.labels.index_select(0, indices).to(device, non_blocking=True)
            if train and self.augment is not None:
                pixels = self.augment(pixels, seed, epoch, indices.to(device, non_blocking=True))
            yield self.normalise(pixels), labels

    def _settle(self, device: torch.device) -> None:
        """Moves the whole data set to a GPU where it takes at most a quarter of the free memory."""
        if device.type != "cuda" or self.pixels.is_cuda:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self.pixels.nbytes <= free // 4:
            self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)
