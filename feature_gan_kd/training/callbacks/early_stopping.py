"""Ends a training when no accuracy improves any more."""

from __future__ import annotations

import math

from feature_gan_kd.config.settings import BestMetric
from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record, goodness


class EarlyStopping(Callback):
    """Ends a training after `patience` evaluations in a row without a new best accuracy, or another figure.

    The figures of every model and of the ensemble are each compared with their own best: while one of them improves,
    the others can still learn from it (ours).

    Args:
        patience: in evaluations, at least 1.
        min_delta: percentage points (nats for a loss) by which a figure must beat its best to count as a new one.
        metric: the figure.
    """

    def __init__(self, patience: int, min_delta: float = 0.0, metric: BestMetric = "accuracy") -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.metric = metric
        self.best: list[float] = []
        self.waited = 0

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`; replays the history, so that a resumed run ends where it would have ended."""
        self.best, self.waited = [], 0
        for record in history.epochs:
            self.on_evaluate(record)

    def on_evaluate(self, record: Record) -> bool:
        """See `Callback`; ends the training when the patience has run out."""
        figures = goodness(record, self.metric)
        best = self.best or [-math.inf] * len(figures)
        better = [new > old + self.min_delta for new, old in zip(figures, best, strict=True)]
        self.best = [new if rose else old for new, old, rose in zip(figures, best, better, strict=True)]
        self.waited = 0 if any(better) else self.waited + 1
        return self.waited >= self.patience
