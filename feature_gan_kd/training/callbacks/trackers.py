"""Logs to experiment trackers through Accelerate: TensorBoard, Weights & Biases and the others that it knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record
from feature_gan_kd.utils.errors import UserError, closest

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "feature-gan-kd"
# Trackers that an extra of this package installs; the others have the names of their packages.
_EXTRAS = {"tensorboard": "'feature-gan-kd[trackers]'"}


def check_trackers(names: Sequence[str], folder: Path | None) -> None:
    """Raises UserError for a tracker that Accelerate does not know, that is not installed, or that needs a folder."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = [str(one) for one in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = closest(name, list(LOGGER_TYPE_TO_CLASS), 1)
            hint = f", the closest is {near}" if near else ""
            raise UserError(f"log_with: {name!r} is not allowed, expected {', '.join(LOGGER_TYPE_TO_CLASS)}{hint}")
        if name not in available:
            raise UserError(f"log_with: {name} is not installed: pip install {_EXTRAS.get(name, name)}")
        if folder is None and LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
            raise UserError(f"log_with: {name} writes files: give output_dir, the folder for them")


class Trackers(Callback):
    """Logs the settings of a run and all metrics, under the names that they have in the records.

    TensorBoard's files are in `<folder>/trackers/feature-gan-kd`. In a resumed run it hides what was logged after the
    checkpoint.

    Args:
        names: of Accelerate's trackers to start.
        running: trackers that the user's Accelerator runs already; they are not ended here.
        folder: of the run.
        settings: of the run.
    """

    def __init__(
        self, names: Sequence[str], running: Sequence[GeneralTracker], folder: Path | None, settings: Mapping[str, Any]
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.running = running
        self.folder = folder
        self.settings = {
            name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for name, value in settings.items()
            if value is not None
        }
        self.started: list[GeneralTracker] = []
        self.logged: set[str] = set()

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`; starts the trackers."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if self.folder is not None and self.names:
            (self.folder / "trackers").mkdir(parents=True, exist_ok=True)
        for name in self.names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = (
                [str(self.folder / "trackers")] if self.folder is not None and kind.requires_logging_directory else []
            )
            tracker = kind(PROJECT, *where, **self._arguments(name, step))
            tracker.start()
            tracker.store_init_configuration(self.settings)
            self.started.append(tracker)

    def on_metrics(self, record: Record) -> None:
        """See `Callback`."""
        self._log(record["metrics"], record["step"])
        self.logged = set(record["metrics"])

    def on_evaluate(self, record: Record) -> bool:
        """See `Callback`; logs what `on_metrics` has not logged at this step."""
        new = {name: value for name, value in record["metrics"].items() if name not in self.logged}
        self._log(new, record["step"])
        return False

    def on_end(self) -> None:
        """See `Callback`; ends the trackers that were started here."""
        while self.started:
            self.started.pop().finish()

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in (*self.running, *self.started):
            tracker.log(dict(metrics), step=step)

    def _arguments(self, name: str, step: int) -> dict[str, Any]:
        """Arguments that Accelerate passes to a tracker's own library."""
        if name == "tensorboard" and step:
            return {"purge_step": step + 1}
        if name == "wandb" and self.folder is not None:
            return {"dir": str(self.folder / "trackers"), "name": self.folder.name}
        return {}
