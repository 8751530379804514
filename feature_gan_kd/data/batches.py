"""Global batches of one epoch, each process's share of them, and the images that are held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

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
