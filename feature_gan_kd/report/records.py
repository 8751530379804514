"""Reads the files of a run back, and collects what they record over time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.training.callbacks import read_records
from feature_gan_kd.training.history import Record
from feature_gan_kd.utils.errors import UserError

Series = tuple[list[float], list[float]]
"""Times (epochs, or updates before the first epoch is done), and the value at each of them."""

# The page cannot show more points than this apart: records of longer runs are averaged in groups.
MAX_POINTS = 200
ENSEMBLE = "eval/accuracy/ensemble"
UPDATE_SPEED = "train/images_per_second"
EPOCH_SPEED = "train/epoch_images_per_second"


@dataclass(frozen=True)
class RecordedRun:
    """A run as its files describe it.

    Attributes:
        folder: that holds the files.
        names: of the models, in order.
        steps: records of updates, oldest first.
        epochs: records of evaluated epochs, oldest first.
        config: the run's settings.
        description: the whole of `config.json`.
    """

    folder: Path
    names: list[str]
    steps: list[Record]
    epochs: list[Record]
    config: DistillConfig
    description: Mapping[str, Any]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The edges of the topology: source and learner of each."""
        return [(source, learner) for source, learner in self.description.get("topology", ())]

    @property
    def frozen(self) -> list[int]:
        """Positions of the frozen models."""
        return list(self.description.get("frozen", ()))

    @property
    def is_evaluated(self) -> bool:
        """Whether there are images with labels to evaluate on."""
        return self.data.get("evaluation_images") != 0

    @property
    def classes(self) -> list[int]:
        """For each model the size of its logits, 0 where it does not classify; empty where that is not recorded."""
        found = [model.get("classes") for model in self.description.get("models", ())]
        return [] if None in found else found

    @property
    def answers_by_neighbours(self) -> list[int]:
        """Positions of the models without a classifier of the learners' classes."""
        known = max((own for k, own in enumerate(self.classes) if k not in self.frozen), default=0)
        return [k for k, own in enumerate(self.classes) if own == 0 or own != known]

    @property
    def updates(self) -> int:
        """Number of the last recorded update."""
        return max((int(record["step"]) for record in (*self.steps, *self.epochs)), default=0)

    @property
    def last_epoch(self) -> int:
        """Number of the last evaluated epoch, from 1; 0 before the first evaluation."""
        return int(self.epochs[-1]["epoch"]) if self.epochs else 0

    @property
    def stopped_early(self) -> bool:
        """Whether a callback, such as early stopping, ended the run before its last epoch."""
        return bool(self.epochs) and self.epochs[-1].get("stopped", False) is True

    @property
    def updates_per_epoch(self) -> float | None:
        """Updates in one epoch; None before the first evaluated epoch."""
        return self.epochs[0]["step"] / self.epochs[0]["epoch"] if self.epochs else None

    @property
    def data(self) -> Mapping[str, Any]:
        """The description of the data; empty where there is none."""
        return self.description.get("data") or {}


def read_run(folder: Path) -> RecordedRun:
    """Reads `config.json` and `metrics.jsonl` of a run, whether it is finished, still going or was killed.

    Args:
        folder: the run's output folder.

    Raises:
        UserError: where the folder holds no run, its files are damaged, or this version does not know its settings.
    """
    config_file, metrics_file = folder / "config.json", folder / "metrics.jsonl"
    if not config_file.exists():
        raise UserError(f"run: {folder} holds no run (there is no config.json): name the output folder of a run")
    try:
        description = json.loads(config_file.read_text())
        if "pretrained_cfg" in description:
            raise UserError(f"run: {folder} holds a published model, not a run: name the output folder of a run")
        names = [str(model["name"]) for model in description["models"]]
        config = _read_settings(folder, description["config"])
        records = read_records(metrics_file) if metrics_file.exists() else []
        steps, epochs = ([record for record in records if record["event"] == event] for event in ("step", "epoch"))
        run = RecordedRun(folder, names, steps, epochs, config, description)
        _check_records(run)
    except UserError:
        raise
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        raise UserError(f"run: the files in {folder} are damaged ({type(error).__name__}): name another run") from None
    return run


def collect_series(run: RecordedRun, updates_per_epoch: float | None = None) -> dict[str, Series]:
    """Collects every figure of a run over time.

    Args:
        run: whose records.
        updates_per_epoch: divides the number of an update to give its time [the run's own; before its first evaluated
            epoch 1, so that times are updates].

    Returns:
        The series by the names of `metrics.jsonl`: `train/...`, `lr/...` and `eval/...`, accuracies in percent. Values
        that are not finite are left out.
    """
    length = updates_per_epoch or run.updates_per_epoch or 1
    series: dict[str, Series] = {}
    for step, metrics in _points(run):
        for name, value in metrics.items():
            if math.isfinite(value):
                times, values = series.setdefault(name, ([], []))
                times.append(step / length)
                values.append(value)
    return series


def count_nonfinite(run: RecordedRun) -> dict[str, tuple[int, int]]:
    """Counts recorded values that are NaN or infinite.

    Returns:
        By the name of the metric: the number of records, and the update of the first of them.
    """
    found: dict[str, tuple[int, int]] = {}
    records = [*((record, record["metrics"]) for record in run.steps), *((r, epoch_metrics(r)) for r in run.epochs)]
    for record, metrics in records:
        for name, value in metrics.items():
            if not math.isfinite(value):
                count, first = found.get(name, (0, record["step"]))
                found[name] = count + 1, first
    return found


def count_skipped_updates(run: RecordedRun) -> int:
    """Counts the updates that changed nothing because a loss or a gradient was not finite."""
    # A record has the fraction of its own updates, which are those since the record before.
    counts = (record["metrics"].get("train/skipped", 0) * updates for record, updates in _with_updates(run.steps))
    total: float = sum(counts)
    return round(total)


def epoch_metrics(record: Record) -> dict[str, float]:
    """The figures that only an epoch's record has; the others repeat the record of its last update."""
    return {name: value for name, value in record["metrics"].items() if name.startswith("eval/") or name == EPOCH_SPEED}


def last_and_best(run: RecordedRun, key: str) -> tuple[float, float, float] | None:
    """The last accuracy, that of the best epoch, and this epoch, which the run's `best_metric` decides.

    Args:
        run: whose records.
        key: of the accuracy, as `eval/accuracy/0`.

    Returns:
        None where nothing is recorded.
    """
    series, metric = collect_series(run), run.config.best_metric
    times, values = series.get(key, ([], []))
    if not values:
        return None
    moments, figures = series.get(key.replace("accuracy", metric), (times, values))
    best = moments[index_of_max([-one for one in figures] if metric == "cross_entropy" else figures)]
    return values[-1], dict(zip(times, values, strict=True)).get(best, math.nan), best


def index_of_max(values: Sequence[float]) -> int:
    """The position of the largest value, the first of equals; 0 where there are none."""
    return max(range(len(values)), key=values.__getitem__, default=0)


def _read_settings(folder: Path, settings: Any) -> DistillConfig:
    try:
        return DistillConfig.from_dict(settings)
    except UserError as error:
        raise UserError(
            f"run: the settings in {folder} are not those of this version ({error}): read the run with the version "
            "that wrote it"
        ) from None


def _check_records(run: RecordedRun) -> None:
    """Raises one of the errors that `read_run` reports as damage, where a record lacks what the report needs."""
    if max((max(edge) for edge in run.edges), default=0) >= len(run.names):
        raise ValueError
    owners = range(len(run.names))
    evaluated = [ENSEMBLE, *(f"eval/{kind}/{k}" for kind in ("accuracy", "cross_entropy") for k in owners), EPOCH_SPEED]
    if any("epoch" not in record for record in run.epochs):
        raise KeyError("epoch")
    for records, needed in (
        (run.steps, [UPDATE_SPEED]),
        (run.epochs, evaluated if run.is_evaluated else [EPOCH_SPEED]),
    ):
        missing = [name for record in records for name in needed if name not in record["metrics"]]
        if missing:
            raise KeyError(missing[0])
    for record in run.epochs:
        # A record of more models than are named is one of another run.
        if f"eval/accuracy/{len(run.names)}" in record["metrics"] or not 0 < record["seconds"] < math.inf:
            raise ValueError
    collect_series(run)


def _points(run: RecordedRun) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the update and the figures of every record, long runs averaged in groups."""
    for record in _merge_records(run.steps):
        yield record["step"], record["metrics"]
    for record in run.epochs:
        yield record["step"], epoch_metrics(record)


def _with_updates(steps: Sequence[Record]) -> list[tuple[Record, int]]:
    """Every record with the number of updates since the one before."""
    ends = [0, *(record["step"] for record in steps)]
    return [(record, record["step"] - end) for record, end in zip(steps, ends, strict=False)]


def _merge_records(steps: Sequence[Record]) -> list[Record]:
    """Merges consecutive records, so that at most `MAX_POINTS` are left."""
    size = math.ceil(len(steps) / MAX_POINTS) or 1
    counted = _with_updates(steps)
    groups = [counted[first : first + size] for first in range(0, len(counted), size)]
    return [{**group[-1][0], "metrics": _merge_metrics(group)} for group in groups]


def _merge_metrics(group: Sequence[tuple[Record, int]]) -> dict[str, float]:
    """Means weighted by updates; not every record has every metric, since some are measured in few updates."""
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for record, _ in group for name in record["metrics"]):
        values = [(record["metrics"][name], updates) for record, updates in group if name in record["metrics"]]
        total = sum(updates for _, updates in values)
        if name.startswith("lr/"):
            merged[name] = values[-1][0]  # a rate that falls in steps has no values between them
        elif name == UPDATE_SPEED:
            merged[name] = total / sum(updates / speed for speed, updates in values)  # images over seconds
        else:
            merged[name] = sum(value * updates for value, updates in values) / total
    return merged
