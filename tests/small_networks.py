"""A network of a few hundred parameters, for tests that only need one."""

from __future__ import annotations

from torch import Tensor, nn


class GroupNormNetwork(nn.Module):
    """A small network whose statistics do not depend on the batch."""

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
