"""A run's files read back, and what they record over time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_gan_kd.training.callbacks import read_records
from feature_gan_kd.training.history import Record
from feature_gan_kd.utils.errors import UserError

Series = tuple[list[float], list[float]]  # x (epochs, or updates before the first epoch is done) and y

# More points than this cannot be told apart on the page: records of longer runs are averaged in groups.
MOST_POINTS = 200
_NEEDED = {
    "run": ("method", "epochs", "batch_size", "seed"),
    "step": ("step", "metrics", "lr", "images_per_second"),
    "epoch": ("step", "epoch", "accuracy", "ensemble", "loss", "seconds", "images_per_second"),
}


@dataclass(frozen=True)
class Run:
    """The files of a run.

    Attributes:
        folder: where they are.
        names: of the models, in order.
        steps: records written while training, oldest first.
        epochs: records of finished epochs, oldest first.
        settings: of the run, by name.
        about: all of `config.json`.
    """

    folder: Path
    names: list[str]
    steps: list[Record]
    epochs: list[Record]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Who teaches whom: source and learner."""
        return [(source, learner) for source, learner in self.about.get("edges", ())]

    @property
    def updates(self) -> int:
        """How many updates are recorded."""
        return max((int(one["step"]) for one in (*self.steps, *self.epochs)), default=0)

    @property
    def epochs_done(self) -> int:
        """The last epoch that was evaluated; not every one need be."""
        return int(self.epochs[-1]["epoch"]) if self.epochs else 0

    @property
    def ended_early(self) -> bool:
        """Whether early stopping, or another callback, ended it before its last epoch."""
        return bool(self.epochs) and self.epochs[-1].get("stopped", False) is True

    @property
    def updates_per_epoch(self) -> float | None:
        """Updates in an epoch; None before one is done."""
        return self.epochs[0]["step"] / self.epochs[0]["epoch"] if self.epochs else None

    @property
    def data(self) -> Mapping[str, Any]:
        """What is known of the data."""
        return self.about.get("data") or {}


def read_run(folder: Path) -> Run:
    """Reads `config.json` and `metrics.jsonl`, of a finished run, one still going or one that was killed.

    Args:
        folder: the run's output folder.

    Raises:
        UserError: where there is no run, or its files are damaged.
    """
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    try:
        if not config.exists():
            raise UserError(f"run: {folder} holds no run (there is no config.json): name the output folder of one")
        about = json.loads(config.read_text())
        if "pretrained_cfg" in about:
            raise UserError(f"run: {folder} holds a published model, no run: name the output folder of a run")
        names, settings = [str(model["name"]) for model in about["models"]], about["config"]
        records = [_earlier_form(one) for one in read_records(metrics)] if metrics.exists() else []
        found = [(_NEEDED["run"], settings), *((_NEEDED[one["event"]], one) for one in records)]
        missing = [key for needed, one in found for key in needed if key not in one]
        if missing:
            raise KeyError(missing[0])
        steps, epochs = ([one for one in records if one["event"] == event] for event in ("step", "epoch"))
        run = Run(folder, names, steps, epochs, settings, about)
        unknown = max((max(ends) for ends in run.edges), default=0) >= len(names)
        if unknown or any(len(one["accuracy"]) != len(names) for one in epochs):
            raise ValueError
        if not all(0 < one["seconds"] < math.inf for one in epochs):
            raise ValueError
        series(run)
    except UserError:
        raise
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
        raise UserError(f"run: the files in {folder} are damaged ({type(error).__name__}): name another run") from None
    return run


def series(run: Run, updates_per_epoch: float | None = None) -> dict[str, Series]:
    """Everything recorded over time, named as in the records.

    Args:
        run: whose records.
        updates_per_epoch: what makes epochs of updates [the run's own; before its first epoch is done, 1].

    Returns:
        By `cross_entropy/0`, `accuracy/0` (%), `real/0->1`, `right/0->1` (%), ... (means over updates), `top-1/0`,
        `top-1/ensemble` (%), `loss/0` (cross-entropy on the evaluation images), `rate/logit`, `speed/updates`,
        `speed/epochs` (images/s), `similarity/0->1` and `cosine/0->1`: the series, without points that are not finite.
    """
    length = updates_per_epoch or run.updates_per_epoch or 1
    found: dict[str, Series] = {}
    for step, values in _points(run):
        for key, value in values.items():
            if math.isfinite(value):
                xs, ys = found.setdefault(key, ([], []))
                xs.append(step / length)
                ys.append(value)
    return found


def not_finite(run: Run) -> dict[str, tuple[int, int]]:
    """What was recorded as NaN or infinite: by name of the series, in how many records and in which update first."""
    found: dict[str, tuple[int, int]] = {}
    for one in (*run.steps, *run.epochs):
        values = one["metrics"] if one["event"] == "step" else _of_epoch(one)
        for key, value in values.items():
            if not math.isfinite(value):
                count, first = found.get(key, (0, one["step"]))
                found[key] = count + 1, first
    return found


def skipped(run: Run) -> int:
    """How many updates changed nothing, because a loss or a gradient was not finite."""
    ends = [0, *(one["step"] for one in run.steps)]
    shares = [one["metrics"].get("skipped", 0) * (one["step"] - end) for one, end in zip(run.steps, ends, strict=False)]
    total: float = sum(shares)
    return round(total)


def best(values: Sequence[float]) -> int:
    """Where the first of the largest values stands."""
    return max(range(len(values)), key=values.__getitem__, default=0)


def _points(run: Run) -> Iterator[tuple[int, dict[str, float]]]:
    """Update and values of every record."""
    for one in _averaged(run.steps):
        yield one["step"], _figures_of_updates(one)
    for one in run.epochs:
        yield one["step"], _of_epoch(one)


def _of_epoch(one: Record) -> dict[str, float]:
    everything = {**one.get("metrics", {}), **one}
    measured = {key: value for key, value in everything.items() if key.startswith(("similarity/", "cosine/"))}
    figures = {f"top-1/{k}": value for k, value in enumerate(one["accuracy"])}
    figures |= {f"loss/{k}": value for k, value in enumerate(one["loss"])}
    return {**figures, "top-1/ensemble": one["ensemble"], "speed/epochs": one["images_per_second"], **measured}


def _figures_of_updates(one: Record) -> dict[str, float]:
    rates = {f"rate/{kind}": rate for kind, rate in one["lr"].items()}
    return {**one["metrics"], **rates, "speed/updates": one["images_per_second"]}


def _earlier_form(one: Record) -> Record:
    """A record of today in the form that this module reads."""
    metrics = one["metrics"]

    def group(prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}

    train, evaluated = group("train/"), group("eval/")
    speed = train.pop("images_per_second", None)
    form = {
        **one,
        "metrics": train,
        "lr": group("lr/"),
        "images_per_second": train.pop("epoch_images_per_second", speed),
    }
    if one["event"] == "epoch":
        accuracy = {key: value for key, value in evaluated.items() if key.startswith("accuracy/")}
        form["ensemble"] = accuracy.pop("accuracy/ensemble")
        form["accuracy"] = list(accuracy.values())
        form["loss"] = [value for key, value in evaluated.items() if key.startswith("cross_entropy/")]
        form["metrics"] = train | {k: v for k, v in evaluated.items() if k.startswith(("similarity/", "cosine/"))}
    return form


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    """Of values with their weights."""
    return sum(value * weight for value, weight in weighted) / sum(weight for _, weight in weighted)


def _averaged(steps: Sequence[Record]) -> list[Record]:
    """At most `MOST_POINTS` records: consecutive ones merged, their metrics weighted by their updates.

    Not every record has every metric: some are measured in few updates.
    """
    size = math.ceil(len(steps) / MOST_POINTS) or 1
    ends = [0, *(one["step"] for one in steps)]
    merged = []
    for first in range(0, len(steps), size):
        group = steps[first : first + size]
        updates = [ends[i + 1] - ends[i] for i in range(first, first + len(group))]
        recorded = [(one["metrics"], count) for one, count in zip(group, updates, strict=True)]
        metrics = {
            key: _mean([(one[key], count) for one, count in recorded if key in one])
            for key in dict.fromkeys(key for one, _ in recorded for key in one)
        }
        seconds = sum(count / one["images_per_second"] for one, count in zip(group, updates, strict=True))
        merged.append({**group[-1], "metrics": metrics, "images_per_second": sum(updates) / seconds})
    return merged
