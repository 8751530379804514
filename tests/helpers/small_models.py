"""Models of a few hundred parameters, for tests that only need one, and whether two trainings came to the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller


class GroupNormModel(nn.Module):
    """A small model whose statistics do not depend on the batch."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width), nn.GELU(), nn.Conv2d(width, width, 3, stride=2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Convolutional(nn.Module):
    """Two convolutions with batch normalisation and drop-out: all that differs between training and evaluation."""

    def __init__(self, width: int, drop: float = 0.0) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 5)."""
        logits: Tensor = self.head(self.drop(self.block2(self.block1(images)).mean((2, 3))))
        return logits


def assert_same_state(
    one: OnlineAdversarialDistiller, other: OnlineAdversarialDistiller, tolerance: float = 0.0
) -> None:
    """Weights, buffers, the states of all optimisers, and the number of updates."""
    assert one.step.number == other.step.number
    ours, theirs = one.group.state().tensors, other.group.state().tensors
    for part, tensors in theirs.items():
        for name, value in tensors.items():
            torch.testing.assert_close(
                ours[part][name],
                value,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, of=(part, name): f"{of}: {text}",
            )
