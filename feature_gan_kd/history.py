"""What a run gave, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]


@dataclass
class History:
    """What a run gave.

    Attributes:
        epochs: one record per epoch: `epoch`, `step`, `accuracy` (top-1 % per network), `loss` (cross-entropy on the
            evaluation images, in nats), `ensemble` (top-1 %), `metrics` (means since the last record, and how alike
            the maps are where that is recorded), `lr`, `seconds`, `images_per_second`.
        best: per network its best epoch: `epoch` and `accuracy`.
    """

    epochs: list[Record] = field(default_factory=list)
    best: list[Record] = field(default_factory=list)

    @property
    def last(self) -> Record:
        """The record of the last epoch."""
        return self.epochs[-1]

    @property
    def best_epoch(self) -> Record | None:
        """The record of the first epoch whose ensemble was never surpassed; None before any."""
        return max(self.epochs, key=lambda record: record["ensemble"], default=None)

    def add(self, record: Record) -> None:
        """Adds an epoch, and takes it for the best of each network that it improved."""
        self.epochs.append(record)
        for k, accuracy in enumerate(record["accuracy"]):
            if k == len(self.best):
                self.best.append({})
            if not self.best[k] or accuracy > self.best[k]["accuracy"]:
                self.best[k] = {"epoch": record["epoch"], "accuracy": accuracy}
