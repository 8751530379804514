"""Reads the Grad-CAM pictures in a run's folder for the page."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from feature_gan_kd.report.charts import COLOR_COUNT
from feature_gan_kd.report.records import RecordedRun
from feature_gan_kd.report.text_table import shorten
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class GradCamPicture:
    """One picture of the page.

    Attributes:
        data_url: the PNG as a data URL.
        alt_text: what it shows.
        caption: below it.
    """

    data_url: str
    alt_text: str
    caption: str


@dataclass(frozen=True)
class GradCamResults:
    """The pictures of a run.

    Attributes:
        columns: title, layer and colour of each: the image, then every model.
        rows: for each image its picture in every column.
    """

    columns: list[tuple[str, str, str]]
    rows: list[list[GradCamPicture]]


def read_grad_cam(run: RecordedRun) -> GradCamResults | None:
    """Reads the pictures in a run's folder; None where none were drawn.

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
        columns = [("image", "", "ink")]
        for k, (name, (layer, grid)) in enumerate(zip(run.names, layers, strict=True)):
            place = f"{layer}, {grid}" if grid != "1x1" else f"{layer}, 1x1: too coarse to show a place"
            columns.append((f"{k} {shorten(name, 36)}", place, str(k % COLOR_COUNT)))
        rows = []
        for one in about["images"]:
            number, label = int(one["number"]), str(one["label"])
            row = [_read_picture(run, f"{number}.png", f"image {number}: {label}", f"{number}: {label}")]
            for k, (answer, _) in enumerate(zip(one["models"], layers, strict=True)):
                percent = f"{100 * float(answer['probability']):.0f} %"
                alt_text = f"where model {k} {run.names[k]} sees {label} in image {number}"
                caption = f"{percent} {label}; predicts {answer['prediction']}"
                row.append(_read_picture(run, f"{number}-{k}.png", alt_text, caption))
            rows.append(row)
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError, RecursionError) as error:
        raise UserError(
            f"grad_cam: the pictures in {folder} are damaged ({type(error).__name__}): draw them again, or remove them"
        ) from None
    return GradCamResults(columns, rows)


def _read_picture(run: RecordedRun, name: str, alt_text: str, caption: str) -> GradCamPicture:
    content = (run.folder / "grad-cam" / name).read_bytes()
    return GradCamPicture(f"data:image/png;base64,{base64.b64encode(content).decode()}", alt_text, caption)
