"""Classes of unequal size: an order that draws all of them equally often, and weights for the loss (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from feature_gan_kd.data.rng import BALANCE, ORDER, permutation, random_bits


@dataclass(frozen=True)
class BalancedOrder:
    """Draws as many images as there are, of every class equally often: the numbers differ by at most one.

    An image of a small class comes several times in an epoch, each time with an augmentation of its own; of a large
    class an epoch has some images only, drawn anew each time. No image comes once more before all others of its class.

    Attributes:
        labels: class indices, int64 `(N,)`, on the CPU.
    """

    labels: Tensor

    def draw(self, seed: int, epoch: int) -> Tensor:
        """Returns the keys of an epoch: int64 `(N,)`; `key % N` is an image, `key // N` counts how often it came.

        Args:
            seed: of the run.
            epoch: counted from 0.
        """
        total = len(self.labels)
        groups = [torch.where(self.labels == label)[0] for label in torch.unique(self.labels)]
        # Classes that get one more, where the images cannot be divided evenly: others in each epoch.
        turn = torch.argsort(random_bits(seed, epoch, BALANCE, -1 - torch.arange(len(groups))), stable=True)
        counts = torch.full((len(groups),), total // len(groups)).index_add_(
            0, turn[: total % len(groups)], torch.ones(total % len(groups), dtype=torch.int64)
        )
        drawn = torch.cat([_draw(own, count, total, seed, epoch) for own, count in zip(groups, counts, strict=True)])
        return drawn[torch.argsort(random_bits(seed, epoch, ORDER, drawn), stable=True)]


def _draw(images: Tensor, count: Tensor, total: int, seed: int, epoch: int) -> Tensor:
    """Draws `count` keys of the images of one class: all of them in random order, then all again, and so on."""
    rounds = -(-int(count) // len(images))
    keys = images + total * torch.arange(rounds)[:, None]
    order = torch.argsort(random_bits(seed, epoch, BALANCE, keys), dim=1, stable=True)
    return keys.gather(1, order).view(-1)[: int(count)]


def epoch_keys(length: int, balance: BalancedOrder | None, seed: int, epoch: int) -> Tensor:
    """Returns the keys of an epoch in training, int64 `(length,)`: each image once, or all classes equally often.

    A key decides the augmentation; the image that it stands for is `key % length`.
    """
    return permutation(length, seed, epoch) if balance is None else balance.draw(seed, epoch)


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weighs classes by their inverse frequency, so that the mean weight of an image is 1.

    Args:
        labels: class indices, int64 `(N,)`.
        num_classes: classes that the models know.

    Returns:
        float32 `(num_classes,)`: N / (classes with images x images of the class); 1 for a class without images.
    """
    counts = torch.bincount(labels.cpu(), minlength=num_classes).double()
    weights = len(labels) / (int((counts > 0).sum()) * counts)
    return torch.where(counts > 0, weights, 1.0).float()
