"""The charts of the page: which lines each one shows, their colours, and the same figures as words and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feature_gan_kd.report.panels import PANELS, Panel, select_series, split_name
from feature_gan_kd.report.records import RecordedRun, Series, collect_series, index_of_max
from feature_gan_kd.report.text_table import shorten

COLOR_COUNT = 8  # of the style sheet, which has one set of colours for light and one for dark
# With more lines of edges than this a chart is hard to read: each learner gets a chart of its own.
MAX_EDGE_LINES = 8

# Owners of series that are neither a model nor an edge, in the order of the legend; the empty one is the whole run.
_OWNER_TITLES = {
    "ensemble": "ensemble",
    "logit": "models, logit loss",
    "feature": "extractors, feature loss",
    "discriminator": "discriminators",
    "": "",
}


@dataclass(frozen=True)
class Line:
    """One series as it is drawn.

    Attributes:
        name: in the legend.
        times: epochs or updates, rising.
        values: one at each time.
        color: of the style sheet: `ink`, or a number.
        dashes: 0 solid, 1 dashed, 2 dotted.
    """

    name: str
    times: list[float]
    values: list[float]
    color: str
    dashes: int


@dataclass(frozen=True)
class Chart:
    """Lines on common axes.

    Attributes:
        panel: what the lines show.
        title: tells this chart from the others of its panel; empty where there is only one.
        lines: at least one.
        time: the unit of the horizontal axis, `epoch` or `update`.
    """

    panel: Panel
    title: str
    lines: list[Line]
    time: str

    @property
    def marks_best(self) -> bool:
        """Whether the last and the best value of each line are marked."""
        return self.panel.better == "larger"

    def to_json(self) -> dict[str, Any]:
        """What the script of the page draws, as JSON values."""
        panel = self.panel
        return {
            "time": self.time,
            "limits": panel.limits,
            "level": panel.level,
            "logarithmic": panel.logarithmic,
            "digits": panel.digits.replace("#", ""),
            "lines": [
                {
                    "name": line.name,
                    "x": [float(f"{time:.6g}") for time in line.times],
                    "y": [float(f"{value:.6g}") for value in line.values],
                    "color": line.color,
                    "dashes": line.dashes,
                    "best": _best_index(panel, line.values) if self.marks_best else None,
                    "steps": panel.stepped,
                }
                for line in self.lines
            ],
        }

    def legend_figures(self, line: Line) -> str:
        """The figures that the legend gives for a line: its last value, and its best where that is marked."""
        last = f"{line.values[-1]:{self.panel.digits}}"
        if not self.marks_best:
            return last
        at = _best_index(self.panel, line.values)
        return f"last {last}, best {line.values[at]:{self.panel.digits}} ({self.time} {line.times[at]:.0f})"

    def alt_text(self) -> str:
        """The chart in words, for a reader who does not see it."""
        sentences = [f"{self.panel.title}{self.title and f', {self.title}'}, in {self.panel.unit}."]
        for line in self.lines:
            first, last = (f"{line.values[i]:{self.panel.digits}}" for i in (0, -1))
            sentence = f"{line.name}: first {first}, last {last} at {self.time} {line.times[-1]:.4g}"
            if self.panel.better:
                at = _best_index(self.panel, line.values)
                value = f"{line.values[at]:{self.panel.digits}}"
                sentence += f", best {value} at {self.time} {line.times[at]:.4g}"
            sentences.append(f"{sentence}.")
        return " ".join(sentences)

    def table_rows(self) -> list[list[str]]:
        """One row per time: the time, then the value of every line; empty where a line has none."""
        times = sorted({time for line in self.lines for time in line.times})
        columns = [dict(zip(line.times, line.values, strict=True)) for line in self.lines]
        return [[f"{t:.6g}", *(f"{c[t]:.5g}" if t in c else "" for c in columns)] for t in times]


def build_charts(runs: Sequence[RecordedRun], labels: Sequence[str]) -> list[tuple[Panel, list[Chart]]]:
    """Builds the charts of one run, or of several overlaid.

    One run has a chart per panel, its lines coloured by model as in `curves.png`. Several have a chart per panel
    and model, edge or optimiser, whose lines are coloured by run.

    Args:
        runs: to draw.
        labels: a short name of each run.

    Returns:
        Every panel of which anything is recorded, with its charts. Time is in epochs once every run has an evaluated
        one, until then in updates.
    """
    in_epochs = all(run.epochs for run in runs)
    recorded = [collect_series(run, None if in_epochs else 1) for run in runs]
    time = "epoch" if in_epochs else "update"
    found = []
    for panel in PANELS:
        own = [select_series(panel, series) for series in recorded]
        groups = _group_one_run(panel, own[0], runs[0]) if len(runs) == 1 else _group_runs(panel, own, runs, labels)
        charts = [Chart(panel, title, lines, time) for title, lines in groups.items()]
        if charts:
            found.append((panel, charts))
    return found


def owner_title(owner: str, names: Sequence[str]) -> str:
    """How the page names a model, an edge or an optimiser.

    Args:
        owner: as `split_name` gives it.
        names: of the models.
    """
    if owner in _OWNER_TITLES:
        return _OWNER_TITLES[owner]
    if "->" in owner:
        return owner.replace("->", " → ").replace("@", ", layer ")
    return f"{owner} {shorten(names[int(owner)], 36)}"


def _group_one_run(panel: Panel, series: Mapping[str, Series], run: RecordedRun) -> dict[str, list[Line]]:
    """The lines of one run by chart: one chart, one per layer, or with many edges one per learner."""
    many = len(series) > MAX_EDGE_LINES and all("->" in name for name in series)
    ordered = sorted(series, key=lambda name: _position(panel, name))
    without_color = [name for name in ordered if split_name(name)[1] in _OWNER_TITLES]
    groups: dict[str, list[Line]] = {}
    for name in ordered:
        kind, owner = split_name(name)
        edge, _, layer = owner.partition("@")
        source, _, learner = edge.rpartition("->")
        if name in without_color:
            color, dashes = "ink", without_color.index(name)
        else:
            color = str(int(source if many else learner) % COLOR_COUNT)
            dashes = list(panel.kinds).index(kind)
        titles = [f"learner {owner_title(learner, run.names)}" if many else "", layer and f"layer {layer}"]
        label = " ".join(filter(None, [owner_title(edge, run.names), panel.kinds[kind]]))
        groups.setdefault(", ".join(filter(None, titles)), []).append(Line(label, *series[name], color, dashes))
    return groups


def _group_runs(
    panel: Panel, recorded: Sequence[Mapping[str, Series]], runs: Sequence[RecordedRun], labels: Sequence[str]
) -> dict[str, list[Line]]:
    """The lines of several runs by chart: one for each model, edge or optimiser."""
    groups: dict[str, list[Line]] = {}
    for name in sorted({name for series in recorded for name in series}, key=lambda name: _position(panel, name)):
        kind, owner = split_name(name)
        titles = {owner_title(owner, run.names) for run, own in zip(runs, recorded, strict=True) if name in own}
        title = titles.pop() if len(titles) == 1 else f"model {owner}"
        for k, series in enumerate(recorded):
            if name in series:
                label = " ".join(filter(None, [labels[k], panel.kinds[kind]]))
                line = Line(label, *series[name], str(k % COLOR_COUNT), list(panel.kinds).index(kind))
                groups.setdefault(title, []).append(line)
    return groups


def _position(panel: Panel, name: str) -> tuple[Any, ...]:
    """Sorts series by model or edge, then by kind; owners that are neither come last."""
    kind, owner = split_name(name)
    order = list(_OWNER_TITLES).index(owner) if owner in _OWNER_TITLES else -1
    edge, _, layer = owner.partition("@")
    numbers = [int(word) for word in edge.split("->")][::-1] if order < 0 else []
    return order, layer, numbers, list(panel.kinds).index(kind)


def _best_index(panel: Panel, values: Sequence[float]) -> int:
    return index_of_max(values if panel.better == "larger" else [-value for value in values])
