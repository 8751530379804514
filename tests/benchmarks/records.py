"""Result files as `benchmarks.compare` writes them, with accuracies of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare.presets import METHODS, PAIRS, PRESETS
from feature_gan_kd.config.settings import DistillConfig

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
        folder: of the comparison.
        method: its name in `METHODS`.
        seed: of the run.
        accuracies: by epoch: of each model, then of the ensemble.
        pair: its name in `PAIRS`.
        file: its name, where it is not the usual one.
        settings: of the run, beside those of its method.
        **about: entries to put in the place of the usual ones.
    """
    options: dict[str, Any] = {name.replace("-", "_"): _value(value) for name, value in METHODS[method].items()}
    frozen = [options.pop("frozen")] if "frozen" in options else []
    layers = [options.pop("feature_layers")] if "feature_layers" in options else None
    config = DistillConfig().replace(**{**options, "seed": seed, "epochs": len(accuracies), **(settings or {})})
    result = {
        **{"preset": "smoke", "pair": pair, "method": method, "seed": seed, "models": list(PAIRS[pair])},
        **{"frozen": frozen, "feature_layers": layers, "config": config.to_dict(), "data": DATA},
        "versions": {"torch": "2", "timm": "1"},
        "command": ["feature-gan-kd", "train", "--models", *PAIRS[pair], "--method", method, "--output-dir", "there"],
        "epochs": [
            {"epoch": k, "step": k, "accuracy": list(models), "ensemble": ensemble, "metrics": {}}
            for k, (*models, ensemble) in enumerate(accuracies, 1)
        ],
        **about,
    }
    assert result["preset"] in PRESETS
    path = folder / "smoke" / (file or f"{pair}-{method}-{seed}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return path


def _value(option: str | tuple[str, ...]) -> Any:
    """An option's value, as the config has it."""
    if isinstance(option, tuple):
        return True
    try:
        return json.loads(option)
    except ValueError:
        return option
