"""`feature-gan-kd export`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Literal

from feature_gan_kd.cli.model_options import restored
from feature_gan_kd.utils.errors import UserError


def export(
    run: Path,
    output_dir: Path,
    /,
    which: Literal["last", "best", "ema"] = "last",
    format: Literal["safetensors", "onnx", "torch-export"] = "safetensors",
    license: str | None = None,
    json: bool = False,
) -> None:
    """Publish the models of a run, each in a folder of its own.

    Args:
        run: Folder of the run.
        output_dir: Folder for the folders of the models.
        which: Weights of the last checkpoint, of each model's best epoch, or their running mean (see --model-ema).
        format: Weights for timm, or a graph that runs without timm; both come with class names and preprocessing.
        license: Licence of the weights, as the hub writes it (mit, apache-2.0, ...).
        json: Print the folders as one line of JSON.
    """
    if output_dir.resolve() == (run / "networks").resolve():
        raise UserError(f"{output_dir}: holds the run's own models: name another folder")
    distiller = restored(run)
    if which == "best":
        distiller.load_best(run)
    folders = [
        str(folder) for folder in distiller.save_pretrained(output_dir, which=which, format=format, license=license)
    ]
    if distiller.accelerator.is_main_process:
        print(*([dumps({"folders": folders})] if json else folders), sep="\n")
