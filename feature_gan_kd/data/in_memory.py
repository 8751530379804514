"""Images held in memory, decoded once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from feature_gan_kd.data.augment import CropFlip, PixelNormaliser
from feature_gan_kd.data.batches import Batch, batch_bounds, count_steps, share
from feature_gan_kd.data.decode import fingerprint, statistics
from feature_gan_kd.data.rng import permutation


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
        self.normalise = PixelNormaliser.identity(pixels.shape[-1])

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
