"""The records of a run, and its best epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from feature_gan_kd.config.settings import BestMetric

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
            nats. Without labels to evaluate on there is no `eval/...`.
        best: for each model its best epoch: `epoch` and `accuracy` (percent); empty where nothing is evaluated.
        best_metric: by which it is the best.
    """

    epochs: list[Record] = field(default_factory=list)
    best: list[Record] = field(default_factory=list)
    best_metric: BestMetric = "accuracy"

    @property
    def last(self) -> Record:
        """The record of the last evaluated epoch.

        Raises:
            IndexError: before the first evaluation.
        """
        return self.epochs[-1]

    @property
    def accuracy(self) -> list[float]:
        """Accuracy in percent of each model in the last evaluated epoch; empty without labels. Raises as `last`."""
        return model_accuracies(self.last)

    @property
    def ensemble(self) -> float | None:
        """Accuracy in percent of the ensemble in the last evaluated epoch; None without labels. Raises as `last`."""
        return ensemble_figure(self.last, "accuracy")

    @property
    def best_epoch(self) -> Record | None:
        """The record of the epoch with the best ensemble, the first of equals; None before the first evaluation.

        Where nothing is evaluated it is that of the last epoch.
        """
        return max(self.epochs, key=lambda record: goodness(record, self.best_metric)[-1], default=None)

    def add(self, record: Record) -> None:
        """Adds the record of an evaluated epoch, and updates the best epoch of each model that it improved."""
        earlier = [goodness(one, self.best_metric) for one in self.epochs]
        self.epochs.append(record)
        now = goodness(record, self.best_metric)
        for k, accuracy in enumerate(model_accuracies(record)):
            if k == len(self.best):
                self.best.append({})
            if not earlier or now[k] > max(one[k] for one in earlier):
                self.best[k] = {"epoch": record["epoch"], "accuracy": accuracy}


def goodness(record: Record, metric: BestMetric) -> list[float]:
    """How good each model and then the ensemble is in the record of an evaluated epoch; larger is better.

    Args:
        record: of the epoch.
        metric: by which; a loss counts as its negative, and what is not finite as the worst. Where nothing is
            evaluated, a later epoch is better.
    """
    ensemble = ensemble_figure(record, metric)
    if ensemble is None:
        return [float(record["epoch"])]
    sign = -1 if metric == "cross_entropy" else 1
    values = [sign * value for value in (*model_figures(record, metric), ensemble)]
    return [value if math.isfinite(value) else -math.inf for value in values]


def model_figures(record: Record, name: str) -> list[float]:
    """A figure of each model, in order, in the record of an evaluated epoch.

    Args:
        record: of the epoch.
        name: of the figure, as `accuracy` (percent), or `ema_accuracy` for that of the averaged weights, of the models
            that have them.
    """
    found = {key: value for key, value in record["metrics"].items() if key.startswith(f"eval/{name}/")}
    return [value for key, value in found.items() if not key.endswith("/ensemble")]


def ensemble_figure(record: Record, name: str) -> float | None:
    """A figure of the ensemble in the record of an evaluated epoch; `name` as for `model_figures`; None for none."""
    figure: float | None = record["metrics"].get(f"eval/{name}/ensemble")
    return figure


def model_accuracies(record: Record) -> list[float]:
    """Accuracy in percent of each model, in order, in the record of an evaluated epoch."""
    return model_figures(record, "accuracy")
