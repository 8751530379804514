"""`feature-gan-kd report`."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from tyro.conf import Positional


def report(
    run: Positional[Path], others: Positional[tuple[Path, ...]] = (), /, output: Path | None = None, json: bool = False
) -> None:
    """Draw a run, or several laid over each other, as one HTML file that opens from disk.

    Args:
        run: Folder of the run; it may still be going on.
        others: Folders of runs to compare with it.
        output: The file [report.html in the first run's folder].
        json: Print where the file is as one line of JSON.
    """
    from feature_gan_kd.report import read_run, write_page

    path = run / "report.html" if output is None else output
    write_page([read_run(folder) for folder in (run, *others)], path)
    print(dumps({"report": str(path)}) if json else path)
