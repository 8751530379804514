"""Result files as `benchmarks.compare` writes them, with accuracies that the test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare.presets import METHODS, PAIRS, PRESETS

DATA = {"name": "digits", "fingerprint": "abc", "train_images": 1000, "evaluation_images": 100}


def write_result(
    folder: Path,
    method: str,
    seed: int,
    accuracies: Sequence[Sequence[float]],
    *,
    pair: str = "tiny",
    file: str | None = None,
    settings: dict[str, Any] | None = None,
    **about: Any,
) -> Path:
    """Writes the result of a run.

    Args:
        folder: the folder of the comparison.
        method: its name in `METHODS`.
        seed: of the run.
        accuracies: for each epoch those of each model (%), then that of the ensemble.
        pair: its name in `PAIRS`.
        file: the file's name, where it is not the usual one.
        settings: those of the run in addition to its method's.
        **about: entries that replace the usual ones.
    """
    # What single models have, as 0:0.1, stands in the command alone.
    of_models = [word for value in METHODS[method].values() if isinstance(value, tuple) for word in value]
    options: dict[str, Any] = {
        name.replace("-", "_"): _value(value)
        for name, value in METHODS[method].items()
        if not (isinstance(value, tuple) and value)
    }
    frozen = [options.pop("frozen")] if "frozen" in options else []
    layers = [options.pop("feature_layers")] if "feature_layers" in options else None
    config = {**options, "seed": seed, "epochs": len(accuracies), **(settings or {})}
    result = {
        **{"preset": "smoke", "pair": pair, "method": method, "seed": seed, "models": list(PAIRS[pair])},
        **{"frozen": frozen, "feature_layers": layers, "config": config, "data": DATA},
        **{"versions": {"torch": "2", "timm": "1"}, "device": "cpu", "processor": "Z80", "precision": "fp32"},
        "command": [
            *("feature-gan-kd", "train", "--models", *PAIRS[pair], *of_models),
            *("--method", method, "--output-dir", "there"),
        ],
        "epochs": [{"epoch": k, "step": k, "metrics": evaluation(*values)} for k, values in enumerate(accuracies, 1)],
        **about,
    }
    assert result["preset"] in PRESETS
    path = folder / str(result["preset"]) / (file or f"{pair}-{method}-{seed}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return path


def evaluation(*accuracies: float) -> dict[str, float]:
    """The metrics of an evaluation: the accuracies of the models (%), then that of the ensemble."""
    *models, ensemble = accuracies
    return {
        **{f"eval/accuracy/{k}": value for k, value in enumerate(models)},
        "eval/accuracy/ensemble": ensemble,
    }


def _value(option: str | tuple[str, ...]) -> Any:
    """An option's value as the config has it."""
    if isinstance(option, tuple):
        return True
    try:
        return json.loads(option)
    except ValueError:
        return option
