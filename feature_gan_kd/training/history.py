"""What a run gave, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]


@dataclass
class History:
    """What a run gave.

    Attributes:
        epochs: one record per epoch: `epoch`, `step`, `accuracy` (top-1 % per model), `loss` (cross-entropy on the
            evaluation images, in nats), `ensemble` (top-1 %), `metrics` (means since the last record, and how alike
            the maps are where that is recorded), `lr`, `seconds`, `images_per_second`; `stopped` in the last one, where
            a callback ended the training after it.
        best: per model its best epoch: `epoch` and `accuracy`.
    """

    epochs: list[Record] = field(default_factory=list)
    best: list[Record] = field(default_factory=list)

    @property
    def last(self) -> Record:
        """The record of the last epoch.

        Raises:
            IndexError: before any.
        """
        return self.epochs[-1]

    @property
    def best_epoch(self) -> Record | None:
        """The record of the first epoch whose ensemble was never surpassed; None before any."""
        return max(self.epochs, key=lambda record: record["ensemble"], default=None)

    def add(self, record: Record) -> None:
        """Adds the record of an epoch, and takes it for the best of each model that it improved."""
        self.epochs.append(record)
        for k, accuracy in enumerate(record["accuracy"]):
            if k == len(self.best):
                self.best.append({})
            if not self.best[k] or accuracy > self.best[k]["accuracy"]:
                self.best[k] = {"epoch": record["epoch"], "accuracy": accuracy}


def update_figures(record: Record) -> dict[str, float]:
    """What a record of updates says, by name.

    The names are those of its metrics, with accuracy and right answers in %, `rate/logit` and so on for the learning
    rates, and `speed/updates` for training images a second.
    """
    shares = ("accuracy/", "right/")
    metrics = {key: 100 * value if key.startswith(shares) else value for key, value in record["metrics"].items()}
    rates = {f"rate/{kind}": rate for kind, rate in record["lr"].items()}
    return {**metrics, **rates, "speed/updates": record["images_per_second"]}


def evaluation_figures(record: Record) -> dict[str, float]:
    """What the record of an evaluated epoch says, by name.

    `top-1/0` and so on, `top-1/ensemble` (%), `loss/0` (cross-entropy on the evaluation images, nats),
    `speed/epochs` (training images a second, with evaluation and checkpoints), and how alike the maps are where that
    is recorded.
    """
    figures = {f"top-1/{k}": value for k, value in enumerate(record["accuracy"])}
    figures |= {f"loss/{k}": value for k, value in enumerate(record["loss"])}
    metrics = record.get("metrics", {})
    figures |= {key: value for key, value in metrics.items() if key.startswith(("similarity/", "cosine/"))}
    return {**figures, "top-1/ensemble": record["ensemble"], "speed/epochs": record["images_per_second"]}
