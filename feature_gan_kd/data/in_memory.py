"""Images held in memory, decoded once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from feature_gan_kd.data.batch_transforms import CropFlip, Erasing, PixelNormaliser
from feature_gan_kd.data.batches import Batch, batch_bounds, batch_sizes, count_steps, rank_slice
from feature_gan_kd.data.decode import channel_statistics, hash_images
from feature_gan_kd.data.epoch_order import EpochOrder, OnceOrder


class MemoryImages:
    """Holds images decoded into one uint8 tensor; augments and normalises them a batch at a time on the device.

    Args:
        pixels: uint8 `(N, H, W, C)`.
        labels: int64 `(N,)`.
        augment: applied to training batches; None for none.

    Attributes:
        normalise: the run sets it to the normalisation that its models share.
        erase: applied last in training; the run sets it.
        order: of training; the run may set another than that of each image once.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, augment: CropFlip | None) -> None:
        self.pixels = pixels
        self.labels = labels
        self.augment = augment
        self.normalise = PixelNormaliser.identity(pixels.shape[-1])
        self.erase: Erasing | None = None
        self.order: EpochOrder = OnceOrder(len(pixels))

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`."""
        return count_steps(self.order.length(batch_size) if train else len(self), batch_size, train=train)

    def holds_floats(self) -> bool:
        """See `ImageSource`."""
        return False

    def batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """See `ImageSource`."""
        return batch_sizes(self.order.length(batch_size), batch_size)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Computes mean and standard deviation of all images, see `channel_statistics`."""
        return channel_statistics(self.pixels)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all images and labels."""
        return hash_images(self.pixels, self.labels)

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str,
        train: bool,
    ) -> Iterator[Batch]:
        """See `ImageSource`."""
        self._move_to_gpu(torch.device(device))
        keys = self.order.draw(seed, epoch, batch_size) if train else torch.arange(len(self))
        order = keys.to(self.pixels.device)
        for begin, end in batch_bounds(len(keys), batch_size, train=train, start=start):
            share = rank_slice(end - begin, rank, world_size)
            indices = order[begin:end][share]
            rows = indices % len(self)
            pixels = self.pixels.index_select(0, rows).to(device, non_blocking=True)
            labels = self.labels.index_select(0, rows).to(device, non_blocking=True)
            if train and self.augment is not None:
                pixels = self.augment(pixels, seed, epoch, indices.to(device, non_blocking=True))
            images = self.normalise(pixels)
            if train and self.erase is not None:
                images = self.erase(images, seed, epoch, keys[begin:end][share])
            yield images, labels

    def _move_to_gpu(self, device: torch.device) -> None:
        """Moves the whole data set to a GPU if it takes at most a quarter of the free memory, to save copies."""
        if device.type != "cuda" or self.pixels.is_cuda:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self.pixels.nbytes <= free // 4:
            self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)
