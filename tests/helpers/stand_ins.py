"""Images that stand in for those of the hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

CIFAR = "uoft-cs/cifar100"


def cifar100(folder: Path, train: int = 6, test: int = 2) -> None:
    """A few random images of 32 x 32 pixels, below `folder`, under the hub's own name and with its columns."""
    rng = np.random.default_rng(0)
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=[f"fine {k}" for k in range(100)]),
            "coarse_label": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    data = folder / CIFAR
    data.mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        images = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]
        columns = {"img": images, "fine_label": [7 * k % 100 for k in range(count)], "coarse_label": [0] * count}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(data / f"{split}-0.parquet")
