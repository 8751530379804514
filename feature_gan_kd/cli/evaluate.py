"""`feature-gan-kd evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any, Literal

from feature_gan_kd.cli.model_options import restored
from feature_gan_kd.utils.errors import UserError

HARDEST = 5
"""Classes that the output names as the hardest."""


def evaluate(
    run: Path,
    /,
    which: Literal["last", "best", "ema"] = "last",
    data: str | None = None,
    eval_split: str | None = None,
    skip_bad_images: bool = False,
    json: bool = False,
) -> None:
    """Evaluate the models of a run and their ensemble.

    Args:
        run: Folder of the run.
        which: Weights of the newest checkpoint, of each model's best epoch, or their running mean (see --model-ema).
        data: Images to evaluate on (default: those the run was evaluated on).
        eval_split: Split to evaluate on (default: the run's; of other data test, else validation).
        skip_bad_images: Skip images that cannot be decoded.
        json: Print one line of JSON, which also has the accuracy of each class and what is confused.
    """
    distiller = restored(run)
    if which == "best":
        distiller.load_best(run)
    if data is not None or eval_split is not None:
        distiller.group.config = distiller.config.replace(eval_split=eval_split)
    distiller.group.config = distiller.config.replace(skip_bad_images=skip_bad_images)
    result = distiller.evaluate(data)
    averaged = result.pop("ema")
    if which == "ema" and averaged is None:
        raise UserError(f"which: the models of {run} have no averaged weights: train with --model-ema")
    chosen = averaged if which == "ema" else result
    if not distiller.accelerator.is_main_process:
        return
    provenance = distiller.group.provenance
    names = None if provenance is None else provenance.class_names
    print(dumps({"which": which, "class_names": names, **chosen}) if json else _table(distiller.names, chosen, names))


def _table(models: Sequence[str], result: Mapping[str, Any], class_names: Sequence[str] | None) -> str:
    """A line for each model and the ensemble, and one on the classes that the ensemble classifies worst."""
    ensemble = result["ensemble_scores"]
    scores = ("accuracy", "top5", "macro_f1", "cross_entropy")
    rows = [*({name: result[name][k] for name in scores} for k in range(len(models))), ensemble]
    lines = []
    for name, own in zip([*models, "ensemble"], rows, strict=True):
        top5 = "" if own["top5"] is None else f"  top-5 {own['top5']:6.2f} %"
        f1, loss = own["macro_f1"], own["cross_entropy"]
        lines.append(f"{name:<24} top-1 {own['accuracy']:6.2f} %{top5}  macro F1 {f1:6.2f} %  cross-entropy {loss:.4f}")
    found = [(share, k) for k, share in enumerate(ensemble["class_accuracy"]) if share is not None]
    words = [f"{class_names[k] if class_names else k} {share:.1f} %" for share, k in sorted(found)[:HARDEST]]
    return "\n".join([*lines, f"on {result['images']} images; hardest for the ensemble: {', '.join(words)}"])
