"""Ends a training when no accuracy improves any more."""

from __future__ import annotations

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record, ensemble_accuracy, model_accuracies


class EarlyStopping(Callback):
    """Ends a training after `patience` evaluations in a row without a new best accuracy.

    The accuracies of every model and of the ensemble are each compared with their own best: while one of them improves,
    the others can still learn from it (ours).

    Args:
        patience: in evaluations, at least 1.
        min_delta: percentage points by which an accuracy must exceed its best to count as a new one.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best: list[float] = []
        self.waited = 0

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`; replays the history, so that a resumed run ends where it would have ended."""
        self.best, self.waited = [], 0
        for record in history.epochs:
            self.on_evaluate(record)

    def on_evaluate(self, record: Record) -> bool:
        """See `Callback`; ends the training when the patience has run out."""
        accuracies = [*model_accuracies(record), ensemble_accuracy(record)]
        # Below zero, so that a first accuracy of 0 is a new best, too.
        best = self.best or [-1.0 - self.min_delta] * len(accuracies)
        better = [new > old + self.min_delta for new, old in zip(accuracies, best, strict=True)]
        self.best = [new if rose else old for new, old, rose in zip(accuracies, best, better, strict=True)]
        self.waited = 0 if any(better) else self.waited + 1
        return self.waited >= self.patience
