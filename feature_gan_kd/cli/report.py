"""`feature-gan-kd report`."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from tyro.conf import Positional

from feature_gan_kd.cli.gradcam import draw_pictures
from feature_gan_kd.utils.errors import UserError


def report(
    run: Positional[Path],
    others: Positional[tuple[Path, ...]] = (),
    /,
    output: Path | None = None,
    grad_cam: tuple[int, ...] = (),
    data: str | None = None,
    json: bool = False,
) -> None:
    """Draw a run, or several laid over each other, as one HTML file that opens from disk.

    Args:
        run: Folder of the run; it may still be going on.
        others: Folders of runs to compare with it.
        output: The file [report.html in the first run's folder].
        grad_cam: Evaluation images, by number from 0, on which to draw where each model sees the right class; the
            pictures stay in the run's folder, and in later reports.
        data: Images that --grad-cam takes [those the run was evaluated on].
        json: Print where the file is as one line of JSON.
    """
    from feature_gan_kd.report import read_run, write_page

    if data is not None and not grad_cam:
        raise UserError("data: is for --grad-cam alone: name the images there, or leave it out")
    runs = [read_run(folder) for folder in (run, *others)]
    for folder in (run, *others) if grad_cam else ():
        draw_pictures(folder, grad_cam, data)
    path = run / "report.html" if output is None else output
    write_page(runs, path)
    print(dumps({"report": str(path)}) if json else path)
