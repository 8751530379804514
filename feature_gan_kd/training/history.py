"""The records of a run, and its best epochs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Record = dict[str, Any]

Which = Literal["last", "best", "ema"]
"""Which weights of a run: those of its last update, each model's own of its best epoch, or the running mean."""


@dataclass
class History:
    """The evaluated epochs of a run, and the best one of each model.

    Attributes:
        epochs: one record per evaluated epoch: `step`, `epoch` (both from 1), `epochs` (of the whole run), `metrics`,
            `seconds` since the evaluation before, `seconds_left` of the run, and `stopped` where a callback ended the
            training after this epoch. `metrics` holds every figure under its full name: `train/...` (means over the
            updates since the last record), `lr/...` and `eval/...`, with accuracies in percent and cross-entropies in
            nats.
        best: for each model its best epoch: `epoch` and `accuracy` (percent).
    """

    epochs: list[Record] = field(default_factory=list)
    best: list[Record] = field(default_factory=list)

    @property
    def last(self) -> Record:
        """The record of the last evaluated epoch.

        Raises:
            IndexError: before the first evaluation.
        """
        return self.epochs[-1]

    @property
    def accuracy(self) -> list[float]:
        """Accuracy in percent of each model in the last evaluated epoch. Raises as `last`."""
        return model_accuracies(self.last)

    @property
    def ensemble(self) -> float:
        """Accuracy in percent of the ensemble in the last evaluated epoch. Raises as `last`."""
        return ensemble_accuracy(self.last)

    @property
    def best_epoch(self) -> Record | None:
        """The record of the epoch with the best ensemble, the first of equals; None before the first evaluation."""
        return max(self.epochs, key=ensemble_accuracy, default=None)

    def add(self, record: Record) -> None:
        """Adds the record of an evaluated epoch, and updates the best epoch of each model that it improved."""
        self.epochs.append(record)
        for k, accuracy in enumerate(model_accuracies(record)):
            if k == len(self.best):
                self.best.append({})
            if not self.best[k] or accuracy > self.best[k]["accuracy"]:
                self.best[k] = {"epoch": record["epoch"], "accuracy": accuracy}


def model_accuracies(record: Record, name: str = "accuracy") -> list[float]:
    """Accuracy in percent of each model, in order, in the record of an evaluated epoch.

    Args:
        record: of the epoch.
        name: `ema_accuracy` for that of the averaged weights; the list is empty where there are none.
    """
    found = {key: value for key, value in record["metrics"].items() if key.startswith(f"eval/{name}/")}
    return [found[f"eval/{name}/{k}"] for k in range(len(found) - 1)]  # the ensemble's is one of them


def ensemble_accuracy(record: Record, name: str = "accuracy") -> float:
    """Accuracy in percent of the ensemble in the record of an evaluated epoch; `name` as for `model_accuracies`."""
    accuracy: float = record["metrics"][f"eval/{name}/ensemble"]
    return accuracy
