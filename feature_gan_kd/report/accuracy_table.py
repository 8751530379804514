"""The accuracies that runs reached, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feature_gan_kd.report.charts import COLOR_COUNT, owner_title
from feature_gan_kd.report.records import RecordedRun, last_and_best
from feature_gan_kd.report.text_table import rows_of_accuracy


@dataclass(frozen=True)
class AccuracyRow:
    """Top-1 accuracy of one model, or of the ensemble, in one run, as text.

    Attributes:
        name: of the model; where several runs are shown, of the run.
        color: of its lines.
        last: percent, in the last evaluated epoch.
        best: percent, in the best epoch.
        best_epoch: number of that epoch.
        last_change: percentage points above the first run's; empty for the first run.
        best_change: likewise.
    """

    name: str
    color: str
    last: str
    best: str
    best_epoch: str
    last_change: str = ""
    best_change: str = ""


def accuracy_rows(run: RecordedRun) -> list[AccuracyRow]:
    """The rows of one run: its models and their ensemble; none before the first evaluation."""
    titles = {str(k): owner_title(str(k), run.names) for k in range(len(run.names))}
    colors = {owner: str(int(owner) % COLOR_COUNT) for owner in titles}
    keys = rows_of_accuracy(run, titles)
    rows = [_row(run, key, title, colors.get(key.rpartition("/")[2], "ink")) for key, title in keys.items()]
    return [row for row in rows if row is not None]


def compare_accuracies(runs: Sequence[RecordedRun], labels: Sequence[str]) -> dict[str, list[AccuracyRow]]:
    """Compares runs model by model, and by their ensembles: one row per run, with the change from the first run."""
    most = max(len(run.names) for run in runs)
    found: dict[str, list[AccuracyRow]] = {}
    for owner in [*map(str, range(most)), "ensemble"]:
        having = [run for run in runs if owner == "ensemble" or int(owner) < len(run.names)]
        titles = {owner_title(owner, run.names) for run in having}
        rows = []
        for k, run in enumerate(runs):
            row = _row(run, f"eval/accuracy/{owner}", labels[k], str(k % COLOR_COUNT), None if k == 0 else runs[0])
            rows += [] if row is None else [row]
        if rows:
            found[titles.pop() if len(titles) == 1 else f"model {owner}"] = rows
    return found


def _row(run: RecordedRun, key: str, name: str, color: str, first: RecordedRun | None = None) -> AccuracyRow | None:
    own = last_and_best(run, key)
    if own is None:
        return None
    last, best, epoch = own
    other = None if first is None else last_and_best(first, key)
    changes = [f"{own[i] - other[i]:+.2f}" for i in (0, 1)] if other else ["", ""]
    return AccuracyRow(name, color, f"{last:.2f}", f"{best:.2f}", f"{epoch:.0f}", *changes)
