"""The settings of runs, and those in which they differ, as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.settings import PEER_SETTINGS
from feature_gan_kd.report.records import RecordedRun

# Entries of a run's description that no setting is behind: the page shows the command elsewhere, and the taps follow
# from the models and the settings. The data's name stands with the other figures of the data.
_NOT_SETTINGS = ("command", "taps", "version", "train_data")


def differing_settings(runs: Sequence[RecordedRun]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs, with each run's value."""
    flat = [_flatten_description(run) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key, "-") for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def list_settings(run: RecordedRun) -> list[tuple[str, str, bool]]:
    """Every setting of a run and of single models: its name, its value, and whether that is not the default."""
    default = DistillConfig().to_dict()
    values = run.config.to_dict()
    common = [(name, format_value(value), value != default[name]) for name, value in values.items()]
    return common + [(name, value, True) for name, value in _settings_of_models(run).items()]


def format_value(value: Any) -> str:
    """Formats a setting's value as the page shows it."""
    if value is None:
        return "none"
    if value and isinstance(value, list) and all(isinstance(one, float) for one in value):
        return ", ".join(f"{one:.6g}" for one in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings_of_models(run: RecordedRun) -> dict[str, str]:
    """What single models have in place of the run's settings, as `lr of model 1`."""
    return {
        f"{name} of model {k}": format_value(value)
        for k, model in enumerate(run.description["models"])
        for name, value in model.items()
        if name in PEER_SETTINGS
    }


def _flatten_description(run: RecordedRun) -> dict[str, str]:
    """Everything that may set one run apart from another, by name."""
    flat = {key: format_value(value) for key, value in run.config.to_dict().items()}
    models = enumerate(run.description["models"])
    flat |= {f"model {k}": format_value(model.get("architecture", model["name"])) for k, model in models}
    flat |= _settings_of_models(run)
    for key, value in run.description.items():
        if isinstance(value, Mapping) and key != "config":
            flat |= {f"{key}: {name}": format_value(one) for name, one in value.items()}
        elif key not in ("config", "models", *_NOT_SETTINGS):
            flat[key.replace("_", " ")] = format_value(value)
    return flat | {"topology": ", ".join(f"{source} → {learner}" for source, learner in run.edges)}
