"""`feature-gan-kd probe`."""

from __future__ import annotations

import sys
from json import dumps
from typing import Annotated, Any

from feature_gan_kd.cli.model_options import layer_of
from feature_gan_kd.config.distill_config import DistillConfig

USED = (
    *("label_column", "image_column", "train_split", "eval_split", "max_train_samples", "max_eval_samples"),
    *("streaming", "num_workers", "skip_bad_images"),
)


def probe(
    model: str,
    /,
    data: str,
    config: Annotated[DistillConfig, USED],
    k: int = 20,
    temperature: float = 0.07,
    layer: str | None = None,
    json: bool = False,
) -> None:
    """Measure a model's features by k nearest neighbours and by a linear probe on labelled images.

    Args:
        model: Folder of a published model; or the name of a trained model, hf-hub:owner/name or timm's, with or without
            a classifier. A folder goes before a timm name; a leading local-dir: is ignored.
        data: Labelled images: name on the hub, local folder or file.
        k: Nearest neighbours among the training images that vote for a class.
        temperature: Of their votes, exp(cosine / temperature).
        layer: Layer whose output is taken, a map averaged over its positions: a module's name, or the number of a timm
            stage (default: the vector before the classifier).
        json: Print one line of JSON.
    """
    from feature_gan_kd.distributed.collectives import rank
    from feature_gan_kd.export.probe_model import probe_model

    chosen = None if layer is None else layer_of(layer)
    result, notes = probe_model(model, data, config, k=k, temperature=temperature, layer=chosen)
    if rank():
        return
    print(*notes, sep="\n", file=sys.stderr)
    about = {"model": model, "layer": layer, "data": data}
    print(dumps({**about, **result}) if json else _table(result))


def _table(result: dict[str, Any]) -> str:
    """The accuracies, a line each, and what they are to be compared with."""
    rows = (
        ("k-NN", "knn_accuracy", f"k {result['k']}, temperature {result['temperature']:g}"),
        ("linear probe", "linear_accuracy", f"L2 penalty {result['penalty']:g}"),
        ("chance", "chance", f"always the most frequent class: {result['majority']:.2f} %"),
    )
    lines = [f"{name:<12}  top-1 {result[key]:6.2f} %  ({more})" for name, key, more in rows]
    images = f"{result['train_images']:,} training and {result['eval_images']:,} evaluation images"
    return "\n".join([*lines, f"{result['features']} features; {images} of {result['classes']} classes"])
