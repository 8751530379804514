"""Writes one run, or several overlaid, as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from feature_gan_kd.report.accuracy_table import (
    accuracy_rows,
    compare_accuracies,
)
from feature_gan_kd.report.charts import COLOR_COUNT, build_charts
from feature_gan_kd.report.gradcam import read_grad_cam
from feature_gan_kd.report.mistakes import read_mistakes
from feature_gan_kd.report.records import RecordedRun, count_nonfinite, count_skipped_updates
from feature_gan_kd.report.settings_table import differing_settings, format_value, list_settings
from feature_gan_kd.report.text_table import images_per_second, run_facts, run_title, total_seconds
from feature_gan_kd.report.topology_drawing import (
    describe_edges,
    describe_loss_terms,
    draw_topology,
    model_details,
)
from feature_gan_kd.utils.errors import UserError, not_installed
from feature_gan_kd.utils.files import atomic_file


def write_page(runs: Sequence[RecordedRun], path: Path) -> None:
    """Writes the report: results, topology, charts, differences, pictures and settings, with script and style inside.

    Args:
        runs: one, or several of different folders.
        path: of the HTML file; an existing page keeps its content until the new one is complete.

    Raises:
        UserError: where a run is named twice, its last evaluation or its Grad-CAM pictures are damaged, the `report`
            extra is not installed, the file cannot be written, or it exists and is not a page.
    """
    text = render_page(runs).encode(errors="replace").decode()  # a file's name may hold bytes that are no text
    try:
        if path.is_file() and not path.read_bytes()[:99].lstrip().lower().startswith(b"<!doctype html"):
            raise UserError(f"output: {path} exists and is not an HTML page: choose another place")
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"output: {path} cannot be written ({error.strerror}): choose another place") from None


def render_page(runs: Sequence[RecordedRun]) -> str:
    """Renders the report as the text of an HTML file.

    Raises:
        UserError: as `write_page`, except for the file.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise not_installed("report", error, "report") from None
    labels = distinct_labels(runs)
    panels = build_charts(runs, labels)
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0], "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=run_title(runs[0]) if len(runs) == 1 else f"{len(runs)} runs: {', '.join(labels)}",
        runs=[_run_context(run, label, k) for k, (run, label) in enumerate(zip(runs, labels, strict=True))],
        results={"": accuracy_rows(runs[0])} if len(runs) == 1 else compare_accuracies(runs, labels),
        evaluated=any(run.is_evaluated for run in runs),
        differing=differing_settings(runs),
        panels=panels,
        charts=[chart.to_json() for _, charts in panels for chart in charts],
        library=get_plotlyjs(),
        drawn=_format_time(datetime.now(timezone.utc)),
    )


def distinct_labels(runs: Sequence[RecordedRun]) -> list[str]:
    """Gives each run a short name: the end of its path, as long as it must be to tell it from the others.

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


def _run_context(run: RecordedRun, label: str, position: int) -> dict[str, Any]:
    """What the template needs of one run, besides its charts and results."""
    return {
        "label": label,
        "color": position % COLOR_COUNT,
        "method": run.config.method,
        "facts": [*run_facts(run), *_time_facts(run)],
        "unfinished": _unfinished_notice(run),
        "faults": _fault_notices(run),
        "names": run.names,
        "topology": draw_topology(run),
        "edges": describe_edges(run),
        "terms": describe_loss_terms(run),
        "mistakes": read_mistakes(run),
        "grad_cam": read_grad_cam(run),
        "models": model_details(run),
        "command": run.description.get("command"),
        "settings": list_settings(run),
        "data": {key: format_value(value) for key, value in run.data.items()},
        "versions": run.description.get("versions") or {},
        "device": _device_line(run),
    }


def _time_facts(run: RecordedRun) -> list[str]:
    """Duration and speed of the recorded epochs; empty before the first."""
    if not run.epochs:
        return []
    seconds = round(total_seconds(run))
    duration = f"{seconds // 3600} h {seconds // 60 % 60:02} min" if seconds >= 3600 else f"{seconds:,} s"
    return [duration, f"{images_per_second(run):,.0f} images/s"]


def _unfinished_notice(run: RecordedRun) -> str:
    """How far a run is that has not reached its last epoch; empty for one that has."""
    planned = run.config.epochs
    if run.last_epoch == planned:
        return ""
    if run.stopped_early:
        return f"Stopped after epoch {run.last_epoch} of {planned}: early stopping, or another callback, ended the run."
    if not run.updates:
        return "Nothing is recorded yet."
    written = datetime.fromtimestamp((run.folder / "metrics.jsonl").stat().st_mtime, timezone.utc)
    done = f"{run.last_epoch} of {planned} epochs, {run.updates:,} updates"
    return f"Not finished: {done}. Last written {_format_time(written)}."


def _device_line(run: RecordedRun) -> str:
    """Device and number of processes that started the run; empty where they are not recorded."""
    device, count = run.description.get("device"), run.description.get("processes", 1)
    return f"{device}, {count} {'process' if count == 1 else 'processes'}" if device else ""


def _fault_notices(run: RecordedRun) -> list[str]:
    """The updates that were skipped, and the recorded values that were not finite."""
    count = count_skipped_updates(run)
    skipped = [f"{count:,} {'update' if count == 1 else 'updates'} skipped: a loss or gradient was not finite"]
    return skipped * (count > 0) + [
        f"{name}: {times} {'record' if times == 1 else 'records'} not finite, the first at update {first:,}; not drawn"
        for name, (times, first) in count_nonfinite(run).items()
    ]


def _format_time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
