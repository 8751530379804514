"""Small data sets in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
from datasets import ClassLabel, Features, Image


def encoded(array: np.ndarray | PIL.Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    image = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def random_images(count: int, size: int = 8, seed: int = 0) -> list[np.ndarray]:
    draws = np.random.default_rng(seed)
    return [draws.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def make(
    count: int = 20,
    *,
    size: int = 8,
    names: Sequence[str] = ("cat", "dog"),
    labels: Sequence[Any] | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """A data set as CIFAR-100's columns have it: img, fine_label, coarse_label."""
    features = Features(
        img=Image(), fine_label=ClassLabel(names=list(names)), coarse_label=ClassLabel(names=["all", "none"])
    )
    fine = [k % len(names) for k in range(count)] if labels is None else list(labels)
    columns = {
        "img": [encoded(image) for image in random_images(count, size, seed)],
        "fine_label": fine,
        "coarse_label": [0] * count,
    }
    return datasets.Dataset.from_dict(columns, features=features)


def plain(labels: Sequence[Any], column: str = "label") -> datasets.Dataset:
    """A data set whose labels are of no declared class."""
    images = [encoded(image) for image in random_images(len(labels))]
    return datasets.Dataset.from_dict({"image": images, column: list(labels)}).cast_column("image", Image())
