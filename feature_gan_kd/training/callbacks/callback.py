"""The interface of callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from feature_gan_kd.training.history import History, Record
from feature_gan_kd.utils.errors import UserError


@runtime_checkable
class Callback(Protocol):
    """Is called on the events of a run: derive from it and define the methods that you need.

    Only the main process calls callbacks, one after the other in the order in which they were given. A callback need
    not save anything for a resumed run: `on_start` gives it the history so far (ours).
    """

    def on_start(self, step: int, total: int, history: History) -> None:
        """The run starts or resumes after update `step` of `total`; `history` holds the epochs evaluated so far."""
        return

    def on_step(self, step: int) -> None:
        """Update number `step` (from 1) is done. Its metrics are not given: they stay on the device."""
        return

    def on_metrics(self, record: Record) -> None:
        """Every `log_every_steps` updates, and before each evaluation.

        Args:
            record: `step`, `epoch` and `metrics`: `train/...` (means since the last record) and `lr/...`.
        """
        return

    def on_evaluate(self, record: Record) -> bool:
        """The models were evaluated.

        Args:
            record: as in `History.epochs`.

        Returns:
            True to end the training after this epoch.
        """
        return False

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint was written to `folder`."""
        return

    def on_epoch(self, epoch: int) -> None:
        """Epoch `epoch` (from 1) has ended, with its evaluation, if it had one, and its checkpoint."""
        return

    def on_end(self) -> None:
        """The run has ended or was interrupted."""
        return


def check_callbacks(callbacks: Sequence[object]) -> None:
    """Raises UserError for an object that is no callback."""
    for one in callbacks:
        if isinstance(one, type) or not isinstance(one, Callback):
            name = one.__name__ if isinstance(one, type) else type(one).__name__
            remedy = (
                f"give an object: {name}(...)" if isinstance(one, type) else "derive it from feature_gan_kd.Callback"
            )
            raise UserError(f"callbacks: {name} is no callback: {remedy}")
