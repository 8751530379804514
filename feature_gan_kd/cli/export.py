"""`feature-gan-kd export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from feature_gan_kd.cli.networks import restored


def export(
    run: Positional[Path],
    output_dir: Positional[Path],
    /,
    which: Literal["last", "best"] = "last",
    license: str | None = None,
) -> None:
    """Publish the networks of a run, one folder each that plain timm loads.

    Args:
        run: Folder of the run.
        output_dir: Where the folders go.
        which: Weights of the last checkpoint or of each network's best epoch.
        license: Licence of the weights, as the hub writes it.
    """
    distiller = restored(run)
    if which == "best":
        distiller.load_best(run)
    for folder in distiller.save_pretrained(output_dir, which=which, license=license):
        if distiller.accelerator.is_main_process:
            print(folder)
