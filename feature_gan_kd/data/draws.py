"""Which images are held out, and which are kept where a run limits their number; the same on every process."""

from __future__ import annotations

import torch
from torch import Tensor

from feature_gan_kd.data.rng import permutation


def draw_fifth(labels: Tensor) -> Tensor:
    """Draws a fifth of the images, the same share of each class as far as that is possible.

    Each class gives a fifth of its images, rounded. If classes are so small that this is less than a fifth of all, the
    classes whose share was rounded down most give one more: 50 classes of 2 images give 20. A class keeps at least one
    image.

    Args:
        labels: class indices, int64 `(N,)`.

    Returns:
        Their positions, int64, rising. They depend on nothing but `labels`.
    """
    order = permutation(len(labels), 0, 0)
    groups = _by_class(labels, order)
    counts = [(len(group) + 2) // 5 for group in groups]
    missing = (len(labels) + 2) // 5 - sum(counts)
    # Of classes that lose as much, the one whose first image comes first in the order.
    position = torch.empty_like(order).index_copy(0, order, torch.arange(len(order)))
    lost = [len(group) / 5 - count for group, count in zip(groups, counts, strict=True)]
    by_loss = sorted(range(len(groups)), key=lambda k: (-lost[k], int(position[groups[k][0]])))
    for k in [k for k in by_loss if len(groups[k]) > 1][: max(missing, 0)]:
        counts[k] += 1
    held = [group[:count] for group, count in zip(groups, counts, strict=True)]
    return torch.cat(held).sort().values


def draw_balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draws images from the classes in turn, so that each gives the same number, as far as it has so many.

    Images without a label keep their share of all, at least one image, and so do those with one.

    Args:
        labels: class indices, int64 `(N,)`; below 0 for images without a label.
        count: number of images to draw, at most N.
        seed: decides which; the labels and it decide alone.

    Returns:
        Their positions, int64 `(count,)`, rising.
    """
    kinds = [torch.where(own)[0] for own in (labels >= 0, labels < 0)]
    if all(map(len, kinds)) and count > 1:
        labelled = min(max(round(count * len(kinds[0]) / len(labels)), 1), count - 1)
        counts = labelled, count - labelled
        drawn = [own[draw_balanced(labels[own], n, seed)] for own, n in zip(kinds, counts, strict=True)]
        return torch.cat(drawn).sort().values
    order = permutation(len(labels), seed, 0)
    turn = torch.empty_like(order)
    for group in _by_class(labels, order):
        turn[group] = torch.arange(len(group))
    # Images of one turn are in the random order, so that the last turn takes classes at random.
    return order[torch.argsort(turn[order], stable=True)][:count].sort().values


def _by_class(labels: Tensor, order: Tensor) -> list[Tensor]:
    """Returns the positions of each class's images in the given order."""
    sorted_labels, by_label = torch.sort(labels[order], stable=True)
    counts = torch.unique_consecutive(sorted_labels, return_counts=True)[1]
    return list(torch.split(order[by_label], counts.tolist()))
