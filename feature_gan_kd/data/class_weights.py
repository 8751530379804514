"""Weights of the classes for the label loss."""

from __future__ import annotations

import torch
from torch import Tensor


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weighs classes by their inverse frequency, so that the mean weight of a labelled image is 1.

    Args:
        labels: class indices, int64 `(N,)`; below 0 for images without a label, which do not count.
        num_classes: classes that the models know.

    Returns:
        float32 `(num_classes,)`: N / (classes with images x images of the class), N without the images that have no
        label; 1 for a class without images.
    """
    own = labels[labels >= 0].cpu()
    counts = torch.bincount(own, minlength=num_classes).double()
    weights = len(own) / (int((counts > 0).sum()) * counts)
    return torch.where(counts > 0, weights, 1.0).float()
