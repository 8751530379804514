"""Who hears of a run, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feature_gan_kd.config.settings import DistillConfig
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
    """Who hears of a run, in the order in which they are told.

    Args:
        config: of the run.
        own: the user's.
        notes: lines to show before the progress; None shows neither.
        trackers: names of trackers to start.
        running: trackers that run already.
        folder: of the run; None keeps no records.
    """
    heard = [DiscriminatorMonitor(bounded=config.loss_weights.adversarial_loss == "paper"), *own]
    if config.early_stopping_patience is not None:
        heard.append(EarlyStopping(config.early_stopping_patience))
    if notes is not None:
        heard.append(ProgressLine(notes))
    if trackers or running:
        heard.append(Trackers(trackers, running, folder, config.to_dict()))
    if folder is not None:
        heard.append(JsonLines(folder / "metrics.jsonl"))
    return heard
