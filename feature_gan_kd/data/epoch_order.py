"""Which training images an epoch shows, and in which order (ours).

An order is a list of keys. `key % N` is an image, of N in all, and `key // N` counts how often it came before. The key
decides the augmentation, so an image that comes again gets another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from feature_gan_kd.data.rng import BALANCE, ORDER, permutation, random_bits


class EpochOrder(Protocol):
    """The order of an epoch in training; (seed, epoch) decides it, and nothing else does."""

    def length(self, batch_size: int) -> int:
        """Number of keys of an epoch in batches of `batch_size` images."""
        ...

    def draw(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """Returns the keys of an epoch, int64 `(length,)`.

        Args:
            seed: of the run.
            epoch: counted from 0.
            batch_size: images of one global batch.
        """
        ...


@dataclass(frozen=True)
class OnceOrder:
    """Each image once.

    Attributes:
        count: number of images.
    """

    count: int

    def length(self, batch_size: int) -> int:
        """See `EpochOrder`."""
        return self.count

    def draw(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """See `EpochOrder`."""
        return permutation(self.count, seed, epoch)


@dataclass(frozen=True)
class BalancedOrder:
    """Draws as many images as there are, of every class equally often: the numbers differ by at most one.

    An image of a small class comes several times in an epoch; of a large class an epoch has some images only, drawn
    anew each time. No image comes once more before all others of its class.

    Attributes:
        labels: class indices, int64 `(N,)`, on the CPU.
    """

    labels: Tensor

    def length(self, batch_size: int) -> int:
        """See `EpochOrder`."""
        return len(self.labels)

    def draw(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """See `EpochOrder`."""
        total = len(self.labels)
        groups = [torch.where(self.labels == label)[0] for label in torch.unique(self.labels)]
        # Classes that get one more, where the images cannot be divided evenly: others in each epoch.
        turn = torch.argsort(random_bits(seed, epoch, BALANCE, -1 - torch.arange(len(groups))), stable=True)
        counts = torch.full((len(groups),), total // len(groups)).index_add_(
            0, turn[: total % len(groups)], torch.ones(total % len(groups), dtype=torch.int64)
        )
        drawn = torch.cat(
            [_draw(own, int(count), total, seed, epoch) for own, count in zip(groups, counts, strict=True)]
        )
        return drawn[torch.argsort(random_bits(seed, epoch, ORDER, drawn), stable=True)]


@dataclass(frozen=True)
class SharedOrder:
    """Fills the same share of every batch with labelled images, and the rest with images without a label.

    An epoch shows every image at least once. Of the kind that is used up first all come again, in another order. The
    labelled images of a batch lie at equal distances, so that every process gets its part of them.

    Attributes:
        labels: class indices, int64 `(N,)`, on the CPU; below 0 for images without a label.
        fraction: share of a batch that has labels, in (0, 1).
    """

    labels: Tensor
    fraction: float

    def labeled_per_batch(self, batch_size: int) -> int:
        """Number of images with labels in a batch of `batch_size`; 0 or `batch_size` where the share is too small."""
        return int(self.fraction * batch_size + 0.5)

    def batches(self, batch_size: int) -> int:
        """Number of batches of an epoch, all of which are full."""
        own = self.labeled_per_batch(batch_size)
        labeled = int((self.labels >= 0).sum())
        return max(-(-labeled // own), -(-(len(self.labels) - labeled) // (batch_size - own)))

    def length(self, batch_size: int) -> int:
        """See `EpochOrder`."""
        return self.batches(batch_size) * batch_size

    def draw(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """See `EpochOrder`."""
        total, count, own = len(self.labels), self.batches(batch_size), self.labeled_per_batch(batch_size)
        places = torch.arange(batch_size + 1) * own // batch_size
        has_label = places[1:] > places[:-1]
        keys = torch.empty((count, batch_size), dtype=torch.int64)
        for mask, images in ((has_label, self.labels >= 0), (~has_label, self.labels < 0)):
            drawn = _draw(torch.where(images)[0], count * int(mask.sum()), total, seed, epoch)
            keys[:, mask] = drawn.view(count, -1)
        return keys.view(-1)


def _draw(images: Tensor, count: int, total: int, seed: int, epoch: int) -> Tensor:
    """Draws `count` keys of some of `total` images: all of them in random order, then all again, and so on."""
    rounds = -(-count // len(images))
    keys = images + total * torch.arange(rounds)[:, None]
    order = torch.argsort(random_bits(seed, epoch, BALANCE, keys), dim=1, stable=True)
    return keys.gather(1, order).view(-1)[:count]
