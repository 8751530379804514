"""The callbacks of a run, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.callbacks.discriminator_monitor import DiscriminatorMonitor
from feature_gan_kd.training.callbacks.early_stopping import EarlyStopping
from feature_gan_kd.training.callbacks.json_lines import JsonLines
from feature_gan_kd.training.callbacks.progress import ProgressLine
from feature_gan_kd.training.callbacks.trackers import Trackers

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


def build_callbacks(
    config: DistillConfig,
    own: Sequence[Callback],
    *,
    notes: list[str] | None,
    trackers: Sequence[str],
    running: Sequence[GeneralTracker],
    folder: Path | None,
) -> list[Callback]:
    """Builds the callbacks of a run.

    The user's and early stopping come before those that show and write a record, so that the record says where one of
    them ends the training.

    Args:
        config: of the run.
        own: the user's.
        notes: lines to print before the progress; None shows neither.
        trackers: names of trackers to start.
        running: trackers that the user's Accelerator runs already.
        folder: of the run; None writes no records.
    """
    callbacks = [DiscriminatorMonitor(bounded=config.loss_weights.adversarial_loss == "paper"), *own]
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(config.early_stopping_patience, metric=config.best_metric))
    if notes is not None:
        callbacks.append(ProgressLine(notes))
    if trackers or running:
        callbacks.append(Trackers(trackers, running, folder, config.to_dict()))
    if folder is not None:
        callbacks.append(JsonLines(folder / "metrics.jsonl"))
    return callbacks
