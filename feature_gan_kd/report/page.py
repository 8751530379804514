"""One HTML file of one run, or of several laid over each other, that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from feature_gan_kd.report.charts import COLORS, charts_of
from feature_gan_kd.report.compare import compared, differing, results_of, settings_of, shown
from feature_gan_kd.report.gradcam import grad_cam_results
from feature_gan_kd.report.graph import graph_of, models_of, terms_of
from feature_gan_kd.report.records import Run, not_finite, skipped
from feature_gan_kd.report.table import facts_of, seconds_of, speed_of, title_of
from feature_gan_kd.utils.errors import UserError, not_installed
from feature_gan_kd.utils.files import atomic_file


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Writes the report: wiring, results, charts, differences, pictures and settings, with script and style inside.

    Args:
        runs: one, or several of different folders.
        path: of the HTML file; one already there is replaced by a whole one.

    Raises:
        UserError: where a run is named twice, its Grad-CAM pictures are damaged, the `report` extra is not installed,
            or the file cannot be written, or is another than a page.
    """
    text = render(runs).encode(errors="replace").decode()  # names of files need not be text
    try:
        if path.is_file() and not path.read_bytes()[:99].lstrip().lower().startswith(b"<!doctype html"):
            raise UserError(f"output: {path} is there and is no page, it would be lost: choose another place")
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"output: {path} cannot be written ({error.strerror}): choose another place") from None


def render(runs: Sequence[Run]) -> str:
    """The report as the text of an HTML file.

    Raises:
        UserError: as `write_page`, but for the file.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise not_installed("report", error, "report") from None
    labels = labels_of(runs)
    panels = charts_of(runs, labels)
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title_of(runs[0]) if len(runs) == 1 else f"{len(runs)} runs: {', '.join(labels)}",
        runs=[_described(run, label, k) for k, (run, label) in enumerate(zip(runs, labels, strict=True))],
        results={"": results_of(runs[0])} if len(runs) == 1 else compared(runs, labels),
        differing=differing(runs),
        panels=panels,
        figures=[chart.figure() for _, charts in panels for chart in charts],
        library=get_plotlyjs(),
        drawn=_moment(datetime.now(timezone.utc)),
    )


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A short name per run: the end of its path, as much of it as tells it from the others.

    Raises:
        UserError: for a folder that is named twice.
    """
    paths = [run.folder.resolve() for run in runs]
    for k, path in enumerate(paths):
        if path in paths[:k]:
            raise UserError(f"run: {runs[k].folder} is named twice: name different runs")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return labels


def _described(run: Run, label: str, position: int) -> dict[str, Any]:
    """What the page says of one run beside its charts."""
    facts = facts_of(run)
    if run.epochs:
        seconds = round(seconds_of(run))
        clock = f"{seconds // 3600} h {seconds // 60 % 60:02} min" if seconds >= 3600 else f"{seconds:,} s"
        facts += [clock, f"{speed_of(run):,.0f} images/s"]
    return {
        "label": label,
        "color": position % COLORS,
        "method": run.settings["method"],
        "facts": facts,
        "unfinished": _unfinished(run),
        "faults": _faults(run),
        "names": run.names,
        "edges": run.edges,
        "graph": graph_of(run),
        "terms": terms_of(run),
        "sights": grad_cam_results(run),
        "models": models_of(run),
        "command": run.about.get("command"),
        "settings": settings_of(run),
        "data": {key: shown(value) for key, value in run.data.items()},
        "versions": run.about.get("versions") or {},
        "device": _device(run),
    }


def _unfinished(run: Run) -> str:
    """How far a run is that has not come to its last epoch; empty for one that has."""
    if run.epochs_done == run.settings["epochs"]:
        return ""
    if run.ended_early:
        return (
            f"Ended early, after epoch {run.epochs_done} of {run.settings['epochs']}: early stopping, or another "
            "callback, asked for it."
        )
    if not run.updates:
        return "Nothing is recorded yet."
    written = datetime.fromtimestamp((run.folder / "metrics.jsonl").stat().st_mtime, timezone.utc)
    done = f"{run.epochs_done} of {run.settings['epochs']} epochs, {run.updates:,} updates"
    return f"Not finished: {done}. Last written {_moment(written)}."


def _device(run: Run) -> str:
    """What a run was begun on; empty where it is not on record."""
    count = run.about.get("processes", 1)
    return run.about.get("device", "") and f"{run.about['device']}, {count} {'process' if count == 1 else 'processes'}"


def _faults(run: Run) -> list[str]:
    """What was not finite, and what that cost."""
    count = skipped(run)
    lost = [f"{count:,} {'update' if count == 1 else 'updates'} skipped: a loss or gradient was not finite"]
    return lost * (count > 0) + [
        f"{key}: {times} {'record' if times == 1 else 'records'} not finite, the first at update {first:,}; not drawn"
        for key, (times, first) in not_finite(run).items()
    ]


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
