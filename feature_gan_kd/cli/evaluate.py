"""`feature-gan-kd evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any, Literal

from feature_gan_kd.cli.model_options import restored
from feature_gan_kd.utils.errors import UserError

PER_MODEL = ("accuracy", "top5", "cross_entropy", "macro_f1", "class_accuracy", "confusions")
"""Figures of which there is one for each model."""

HARDEST = 5
"""Classes that the output names as the hardest."""


def evaluate(
    run: str,
    /,
    which: Literal["last", "best", "ema"] = "last",
    data: str | None = None,
    eval_split: str | None = None,
    skip_bad_images: bool = False,
    json: bool = False,
) -> None:
    """Evaluate the models of a run and their ensemble, or a single trained model.

    Args:
        run: Folder of the run or of a published model; or the name of a trained model, hf-hub:owner/name or timm's.
        which: Weights of the run's newest checkpoint, of each model's best epoch, or their running mean (see
            --model-ema).
        data: Images to evaluate on (default: those the run was evaluated on); a single model needs them.
        eval_split: Split to evaluate on (default: the run's; of other data test, else validation).
        skip_bad_images: Skip images that cannot be decoded.
        json: Print one line of JSON, which also has the accuracy of each class and what is confused.
    """
    folder = Path(run)
    is_run = (folder / "checkpoints").is_dir() or (folder.is_dir() and not (folder / "config.json").is_file())
    if is_run:
        models, chosen, names = _of_run(folder, which, data, eval_split, skip_bad_images)
    else:
        _check_exists(run)
        if which != "last":
            raise UserError(f"which: {run} is a single model, which has one set of weights: leave --which out")
        models, chosen, names = _of_classifier(run, data, eval_split, skip_bad_images)
    from feature_gan_kd.distributed.collectives import rank

    if rank() == 0:
        print(dumps({"which": which, "class_names": names, **chosen}) if json else _table(models, chosen, names))


def _check_exists(name: str) -> None:
    """Raises UserError for a name that is neither a folder nor that of a model."""
    import timm

    folder = Path(name.removeprefix("local-dir:"))
    if not name.startswith("hf-hub:") and not folder.is_dir() and not timm.is_model(name.split(".")[0]):
        raise UserError(
            f"run: there is no folder {folder}, and timm has no model of this name: name the folder of a run or of a "
            "published model, hf-hub:owner/name or a timm name"
        )


Found = tuple[list[str], dict[str, Any], "list[str] | None"]


def _of_run(
    run: Path, which: Literal["last", "best", "ema"], data: str | None, eval_split: str | None, skip: bool
) -> Found:
    """Names, figures and class names of the models of a run."""
    distiller = restored(run)
    group = distiller.group
    if which == "best":
        distiller.load_best(run)
    if data is not None or eval_split is not None:
        group.config = group.config.replace(eval_split=eval_split)
    group.config = group.config.replace(skip_bad_images=skip)
    result = distiller.evaluate(data)
    averaged = result.pop("ema")
    if which == "ema" and averaged is None:
        raise UserError(f"which: the models of {run} have no averaged weights: train with --model-ema")
    provenance = group.provenance
    names = None if provenance is None else provenance.class_names
    if which != "ema":
        return distiller.names, result, names
    shown = averaged.pop("averaged")
    of_models = {key: [value[k] for k in shown] for key, value in averaged.items() if key in PER_MODEL}
    del averaged["ema"]
    return [distiller.names[k] for k in shown], {**averaged, **of_models}, names


def _of_classifier(name: str, data: str | None, eval_split: str | None, skip: bool) -> Found:
    """Name, figures and class names of a single model."""
    from feature_gan_kd.distributed.collectives import rank
    from feature_gan_kd.export.evaluate_classifier import evaluate_classifier
    from feature_gan_kd.export.open_model import open_classifier

    classifier = open_classifier(name)
    if data is None:
        raise UserError(f"data: {name} is a single model: give the images to evaluate it on")
    found, names, notes = evaluate_classifier(classifier, data, eval_split=eval_split, skip_bad_images=skip)
    if rank() == 0:
        print("\n".join(notes), file=sys.stderr)
    result = found.to_dict()
    del result["ema"]
    return [str(classifier.cfg.get("architecture") or name)], result, names


def _table(models: Sequence[str], result: Mapping[str, Any], class_names: Sequence[str] | None) -> str:
    """A line for each model and the ensemble, and one on the classes that the ensemble classifies worst."""
    ensemble = result["ensemble_scores"]
    scores = ("accuracy", "top5", "macro_f1", "cross_entropy")
    rows = [(title, {name: result[name][k] for name in scores}) for k, title in enumerate(models)]
    rows += [("ensemble", ensemble)] if len(models) > 1 else []
    lines = []
    for name, own in rows:
        top5 = "" if own["top5"] is None else f"  top-5 {own['top5']:6.2f} %"
        f1, loss = own["macro_f1"], own["cross_entropy"]
        lines.append(f"{name:<24} top-1 {own['accuracy']:6.2f} %{top5}  macro F1 {f1:6.2f} %  cross-entropy {loss:.4f}")
    found = [(share, k) for k, share in enumerate(ensemble["class_accuracy"]) if share is not None]
    words = [f"{class_names[k] if class_names else k} {share:.1f} %" for share, k in sorted(found)[:HARDEST]]
    whom = "the ensemble" if len(models) > 1 else "it"
    return "\n".join([*lines, f"on {result['images']} images; hardest for {whom}: {', '.join(words)}"])
