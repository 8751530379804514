"""An end to a training in which nothing gets better any more."""

from __future__ import annotations

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record


class EarlyStopping(Callback):
    """Ends a training after `patience` evaluations in a row in which no accuracy was a new best.

    Accuracies are those of every model and of the ensemble, each against its own best: as long as one of them
    rises, the others have something to learn from it (ours).

    Args:
        patience: in evaluations, at least 1.
        min_delta: percentage points by which a best must be surpassed to count.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best: list[float] = []
        self.waited = 0

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`; hears again what the run gave before, so that a resumed run ends where it would have."""
        self.best, self.waited = [], 0
        for record in history.epochs:
            self.on_evaluate(record)

    def on_evaluate(self, record: Record) -> bool:
        """See `Callback`; whether the patience is at its end."""
        accuracies = [*record["accuracy"], record["ensemble"]]
        best = self.best or [-1.0 - self.min_delta] * len(accuracies)
        better = [new > old + self.min_delta for new, old in zip(accuracies, best, strict=True)]
        self.best = [new if rose else old for new, old, rose in zip(accuracies, best, better, strict=True)]
        self.waited = 0 if any(better) else self.waited + 1
        return self.waited >= self.patience
