"""Grad-CAM pictures that stand in a run's folder, as the page shows them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from feature_gan_kd.report.charts import COLORS
from feature_gan_kd.report.records import Run
from feature_gan_kd.report.table import shortened
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        source: as the page holds it, a data URL.
        words: what it shows.
        caption: below it.
    """

    source: str
    words: str
    caption: str


@dataclass(frozen=True)
class GradCamResults:
    """The pictures of a run.

    Attributes:
        heads: over the columns, with their colours: the image, then each model and the map that was asked.
        rows: per image the pictures.
    """

    heads: list[tuple[str, str, str]]
    rows: list[list[Picture]]


def grad_cam_results(run: Run) -> GradCamResults | None:
    """The pictures in a run's folder; None where none were drawn.

    Raises:
        UserError: where they are damaged.
    """
    folder = run.folder / "grad-cam"
    if not folder.exists():
        return None
    try:
        about = json.loads((folder / "grad-cam.json").read_text())
        layers = [(str(one["layer"]), "x".join(str(int(side)) for side in one["grid"])) for one in about["layers"]]
        if len(layers) != len(run.names):
            raise ValueError
        heads = [("image", "", "ink")]
        for k, (name, (layer, grid)) in enumerate(zip(run.names, layers, strict=True)):
            place = f"{layer}, {grid}" if grid != "1x1" else f"{layer}, 1x1: it has no places to tell apart"
            heads.append((f"{k} {shortened(name, 36)}", place, str(k % COLORS)))
        rows = []
        for one in about["images"]:
            number, label = int(one["number"]), str(one["label"])
            row = [_picture(run, f"{number}.png", f"image {number}: {label}", f"{number}: {label}")]
            for k, (seen, _) in enumerate(zip(one["networks"], layers, strict=True)):
                percent = f"{100 * float(seen['probability']):.0f} %"
                words = f"where model {k} {run.names[k]} sees {label} in image {number}"
                row.append(_picture(run, f"{number}-{k}.png", words, f"{percent} {label}; answers {seen['answer']}"))
            rows.append(row)
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError, RecursionError) as error:
        raise UserError(
            f"grad_cam: the pictures in {folder} are damaged ({type(error).__name__}): draw them again, or remove them"
        ) from None
    return GradCamResults(heads, rows)


def _picture(run: Run, name: str, words: str, caption: str) -> Picture:
    content = (run.folder / "grad-cam" / name).read_bytes()
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", words, caption)
