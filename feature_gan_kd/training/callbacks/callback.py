"""What hears of a run's events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from feature_gan_kd.training.history import History, Record
from feature_gan_kd.utils.errors import UserError


@runtime_checkable
class Callback(Protocol):
    """Hears of a run's events: derive from it and define those that matter, the others do nothing.

    Only the main process calls it, one callback after the other as they were given. It need not remember anything
    over a restart: `on_start` tells what the run gave before (ours).
    """

    def on_start(self, step: int, total: int, history: History) -> None:
        """The run begins, or goes on, at update `step` of `total`; `history` is what it gave so far."""
        return

    def on_step(self, step: int) -> None:
        """Update number `step` (from 1) is done. No metrics: they stay on the device."""
        return

    def on_metrics(self, record: Record) -> None:
        """Every `log_every_steps` updates: mean metrics since the last record, learning rates, images a second."""
        return

    def on_evaluate(self, record: Record) -> bool:
        """The models were evaluated: a record as in `History.epochs`. True ends the training after this epoch."""
        return False

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint is on the disk, in `folder`."""
        return

    def on_epoch(self, epoch: int) -> None:
        """Epoch `epoch` (from 1) is over, with its evaluation, if it had one, and its checkpoint."""
        return

    def on_end(self) -> None:
        """The run is over or interrupted."""
        return


def check_callbacks(callbacks: Sequence[object]) -> None:
    """Raises UserError for what is no callback."""
    for one in callbacks:
        if isinstance(one, type) or not isinstance(one, Callback):
            name = one.__name__ if isinstance(one, type) else type(one).__name__
            remedy = (
                f"give an object: {name}(...)" if isinstance(one, type) else "derive it from feature_gan_kd.Callback"
            )
            raise UserError(f"callbacks: {name} is no callback: {remedy}")
