"""What runs reached, and in which settings they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.report.charts import COLORS, name_of
from feature_gan_kd.report.records import Run, best, series
from feature_gan_kd.utils.errors import UserError

# Of a run's description, what is no setting: the command has its own place, the wiring follows from the others.
_NO_SETTINGS = ("command", "taps")


@dataclass(frozen=True)
class Result:
    """Top-1 accuracy of one model, or of the ensemble, in one run.

    Attributes:
        name: of the model, or where several runs are shown of the run.
        color: of its lines.
        last: %, in the last epoch.
        best: %, in its best epoch.
        epoch: the best one.
        last_change: percentage points beyond the first run's; empty in that run.
        best_change: likewise.
    """

    name: str
    color: str
    last: str
    best: str
    epoch: str
    last_change: str = ""
    best_change: str = ""


def results_of(run: Run) -> list[Result]:
    """The models of one run and their ensemble, as far as they were evaluated."""
    whose = [*map(str, range(len(run.names))), "ensemble"]
    colors = [*(str(k % COLORS) for k in range(len(run.names))), "ink"]
    rows = [_result(run, one, name_of(one, run.names), color) for one, color in zip(whose, colors, strict=True)]
    return [row for row in rows if row is not None]


def compared(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, list[Result]]:
    """Model by model, and for the ensemble, every run's result and how far it is from the first run's."""
    most = max(len(run.names) for run in runs)
    found: dict[str, list[Result]] = {}
    for whose in [*map(str, range(most)), "ensemble"]:
        owners = [run for run in runs if whose == "ensemble" or int(whose) < len(run.names)]
        names = {name_of(whose, run.names) for run in owners}
        rows = []
        for k, run in enumerate(runs):
            row = _result(run, whose, labels[k], str(k % COLORS), None if k == 0 else runs[0])
            rows += [] if row is None else [row]
        if rows:
            found[names.pop() if len(names) == 1 else f"model {whose}"] = rows
    return found


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs, with each run's value."""
    flat = [_flat(run.about) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key, "-") for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def settings_of(run: Run) -> list[tuple[str, str, bool]]:
    """Every setting of a run, its value, and whether it is another than the default."""
    default = DistillConfig().to_dict()
    full = _in_full(run.settings)
    return [(key, shown(full[key]), key not in default or value != default[key]) for key, value in run.settings.items()]


def _in_full(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings with what the method and the recipe choose; as they are where another version wrote them."""
    try:
        return DistillConfig.from_dict(settings).resolved()
    except UserError:
        return settings


def shown(value: Any) -> str:
    """A setting's value as the page writes it."""
    if value is None:
        return "none"
    if value and isinstance(value, list) and all(isinstance(one, float) for one in value):
        return ", ".join(f"{one:.6g}" for one in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flat(about: Mapping[str, Any]) -> dict[str, str]:
    flat = {key: shown(value) for key, value in _in_full(about["config"]).items()}
    flat |= {f"model {k}": shown(model.get("architecture", model["name"])) for k, model in enumerate(about["models"])}
    for key, value in about.items():
        if isinstance(value, Mapping) and key != "config":
            flat |= {f"{key}: {name}": shown(one) for name, one in value.items()}
        elif key not in ("config", "models", *_NO_SETTINGS):
            flat[key.replace("_", " ")] = shown(value)
    return flat | {"edges": ", ".join(f"{source} → {learner}" for source, learner in about.get("edges", ()))}


def _result(run: Run, whose: str, name: str, color: str, first: Run | None = None) -> Result | None:
    mine = _accuracy(run, whose)
    if mine is None:
        return None
    last, top, epoch = mine
    other = None if first is None else _accuracy(first, whose)
    changes = [f"{mine[i] - other[i]:+.2f}" for i in (0, 1)] if other else ["", ""]
    return Result(name, color, f"{last:.2f}", f"{top:.2f}", f"{epoch:.0f}", *changes)


def _accuracy(run: Run, whose: str) -> tuple[float, float, float] | None:
    """The last and the best accuracy, and the epoch of the best."""
    epochs, values = series(run).get(f"top-1/{whose}", ([], []))
    return (values[-1], values[best(values)], epochs[best(values)]) if values else None
