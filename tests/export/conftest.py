from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from feature_gan_kd.export import ModelCardInfo


@pytest.fixture(scope="session")
def describe() -> Callable[..., ModelCardInfo]:
    """Makes the card info of a 10-class model for 32 x 32 RGB images, with any of its fields changed."""

    def make(architecture: str, **changes: Any) -> ModelCardInfo:
        fields: dict[str, Any] = {
            "architecture": architecture,
            "index": 0,
            "num_classes": 10,
            "class_names": [f"class {index}" for index in range(10)],
            "image_size": 32,
            "in_chans": 3,
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.21, 0.22),
            "method": "afd",
            "peers": ["resnet18", "test_vit"],
            "data": "uoft-cs/cifar100",
            "scores": {"accuracy": 71.234, "macro_f1": 70.5, "cross_entropy": 1.25},
            "ensemble": {"accuracy": 73.5, "macro_f1": 72.25, "cross_entropy": 1.125},
            "epochs": 3,
            "updates": 40,
            "recipe": {"lr": 0.1, "milestones": (0.5, 0.75), "epochs": 300, "clip_grad": None},
        }
        return ModelCardInfo(**{**fields, **changes})

    return make
