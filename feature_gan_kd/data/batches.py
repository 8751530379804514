"""The contract of every image source, and how an epoch is cut into global batches and these into shares of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from feature_gan_kd.distributed.collectives import rank, world_size

Batch = tuple[Tensor, Tensor]


class ImageSource(Protocol):
    """Labelled images that are read one epoch at a time, on every rank alike."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def holds_floats(self) -> bool:
        """Whether its images are floats, which are used as they are; others are pixels, which `normalise` scales."""
        ...

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """Number of batches that `batches` yields for a whole epoch; `batch_size` is at least 2 in training."""
        ...

    def batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """Sizes of the batches that `batches` yields in training, the normal one first; empty where not known."""
        ...

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
        """This process's share of each global batch of one epoch.

        Args:
            batch_size: images in one global batch, over all processes; at least 2 in training.
            seed: of the run; (seed, epoch, image index) decides order and augmentation, and nothing else does.
            epoch: counted from 0.
            start: number of the first global batch to yield (to resume inside an epoch).
            rank: of this process, in [0, world_size).
            world_size: number of processes.
            device: puts the tensors there.
            train: shuffle and augment, and leave out a last batch of one image, because batch normalisation
                cannot train on one; otherwise yield every image once, in order.

        Yields:
            Images, float32 `(n, C, H, W)`, normalised, and labels, int64 `(n,)`. `n` is the size of the share;
            it is 0 only where a batch has fewer images than there are processes.
        """
        ...


def evaluation_batches(source: ImageSource, share: int, device: torch.device) -> Iterator[Batch]:
    """This process's share of every image of a source, in order, without augmentation.

    Args:
        source: of the images.
        share: images of a process in one batch.
        device: puts the tensors there.

    Yields:
        As `ImageSource.batches`.
    """
    processes = world_size()
    return source.batches(
        batch_size=share * processes,
        seed=0,
        epoch=0,
        rank=rank(),
        world_size=processes,
        device=device,
        train=False,
    )


def batch_bounds(length: int, batch_size: int, *, train: bool, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yields the first and last-plus-one position of each global batch, from batch number `start` on."""
    for begin in range(start * batch_size, length, batch_size):
        end = min(begin + batch_size, length)
        if not (train and end - begin == 1):  # batch normalisation cannot train on one image
            yield begin, end


def count_steps(length: int, batch_size: int, *, train: bool) -> int:
    """Counts the global batches that `batch_bounds` yields for an epoch of `length` images."""
    ends_in_one = train and length % batch_size == 1
    return length // batch_size if ends_in_one else -(-length // batch_size)


def batch_sizes(length: int, batch_size: int) -> tuple[int, ...]:
    """Returns the size of the first global batch of an epoch in training, and that of the last if it differs."""
    last = length % batch_size
    return (batch_size, last) if length > batch_size and last > 1 else (min(length, batch_size),)


def rank_slice(size: int, rank: int, world_size: int) -> slice:
    """Returns the contiguous share that `rank` reads of a batch of `size` images; shares differ by at most 1."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)
