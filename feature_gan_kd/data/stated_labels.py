"""The labels that a torch data set tells without reading its images: a resumed run notices by them what changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from feature_gan_kd.data.labels import plain_label

# What torchvision's data sets, and most others, call their labels.
_ATTRIBUTES = ("targets", "labels")


def stated_labels(data: Any) -> list[Any] | None:
    """Returns one label for each image, as the data set lists them; None where it lists none.

    A transform may make others of them, so that they say nothing about the classes; but the same data have the same.

    Args:
        data: a map-style data set; a `TensorDataset`, `Subset` or `ConcatDataset` tells the labels of its parts.
    """
    if isinstance(data, TensorDataset):
        return _as_list(data.tensors[-1], len(data))
    if isinstance(data, Subset):
        labels = stated_labels(data.dataset)
        return None if labels is None else [labels[index] for index in data.indices]
    if isinstance(data, ConcatDataset):
        parts = [stated_labels(part) for part in data.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part or []]
    found = (_as_list(getattr(data, name, None), len(data)) for name in _ATTRIBUTES if hasattr(data, "__len__"))
    return next((labels for labels in found if labels is not None), None)


def _as_list(values: Any, count: int) -> list[Any] | None:
    """Returns `count` numbers, texts or Nones as a list; None for anything else."""
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist() if values.ndim == 1 else None
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or len(values) != count:
        return None
    plain = [plain_label(value) for value in values]
    return plain if all(value is None or isinstance(value, (int, float, str)) for value in plain) else None
