"""The charts of the page: which lines stand in which, their colours, and the same figures as words and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feature_gan_kd.report.panels import PANELS, Panel, of_panel
from feature_gan_kd.report.records import Run, Series, best, series
from feature_gan_kd.report.table import shortened

COLORS = 8  # of the style sheet, which has a set for light and one for dark
# More lines of edges than this in a chart are hard to tell apart: each learner gets a chart of its own.
MOST_EDGE_LINES = 8

_NAMED = {
    "ensemble": "ensemble",
    "logit": "models, logit loss",
    "feature": "extractors, feature loss",
    "discriminator": "discriminators",
    "updates": "updates",
    "epochs": "epochs with evaluation",
}


@dataclass(frozen=True)
class Line:
    """One series as it is drawn.

    Attributes:
        name: in the legend.
        times: epochs or updates, rising.
        values: at these times.
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
        panel: what they are.
        title: what sets this chart apart from the others of its panel; empty where there is only one.
        lines: at least one.
        time: the unit of the horizontal axis, `epoch` or `update`.
    """

    panel: Panel
    title: str
    lines: list[Line]
    time: str

    @property
    def marked(self) -> bool:
        """Whether last and best are marked."""
        return self.panel.better == "larger"

    def figure(self) -> dict[str, Any]:
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
                    "best": _best(panel, line.values) if self.marked else None,
                    "steps": panel.name == "rates",
                }
                for line in self.lines
            ],
        }

    def last(self, line: Line) -> str:
        """The words of a line in the legend."""
        words = f"{line.values[-1]:{self.panel.digits}}"
        if not self.marked:
            return words
        at = _best(self.panel, line.values)
        return f"last {words}, best {line.values[at]:{self.panel.digits}} ({self.time} {line.times[at]:.0f})"

    def words(self) -> str:
        """What a reader who does not see the chart is told."""
        said = [f"{self.panel.title}{self.title and f', {self.title}'}, in {self.panel.unit}."]
        for line in self.lines:
            first, last = (f"{line.values[i]:{self.panel.digits}}" for i in (0, -1))
            words = f"{line.name}: first {first}, last {last} at {self.time} {line.times[-1]:.4g}"
            if self.panel.better:
                at = _best(self.panel, line.values)
                value = f"{line.values[at]:{self.panel.digits}}"
                words += f", best {value} at {self.time} {line.times[at]:.4g}"
            said.append(f"{words}.")
        return " ".join(said)

    def rows(self) -> list[list[str]]:
        """Every time with the value of every line at it; empty where a line has none."""
        times = sorted({time for line in self.lines for time in line.times})
        columns = [dict(zip(line.times, line.values, strict=True)) for line in self.lines]
        return [[f"{t:.6g}", *(f"{c[t]:.5g}" if t in c else "" for c in columns)] for t in times]


def charts_of(runs: Sequence[Run], labels: Sequence[str]) -> list[tuple[Panel, list[Chart]]]:
    """The charts of one run, or of several laid over each other.

    One run has a chart per panel, its lines coloured by model as in `curves.png`. Several have a chart per panel
    and model, edge or optimiser, whose lines are coloured by run.

    Args:
        runs: to draw.
        labels: a short name of each run.

    Returns:
        Every panel of which anything is recorded, with its charts. Time is in epochs once every run has one.
    """
    in_epochs = all(run.epochs for run in runs)
    recorded = [series(run, None if in_epochs else 1) for run in runs]
    time = "epoch" if in_epochs else "update"
    found = []
    for panel in PANELS:
        own = [of_panel(panel, one) for one in recorded]
        groups = _by_learner(panel, own[0], runs[0]) if len(runs) == 1 else _by_run(panel, own, runs, labels)
        charts = [Chart(panel, title, lines, time) for title, lines in groups.items()]
        if charts:
            found.append((panel, charts))
    return found


def name_of(whose: str, names: Sequence[str]) -> str:
    """A model, an edge, an optimiser or a kind of speed, as the page names it."""
    if whose in _NAMED:
        return _NAMED[whose]
    if "->" in whose:
        return whose.replace("->", " → ").replace("@", ", layer ")
    return f"{whose} {shortened(names[int(whose)], 36)}"


def _by_learner(panel: Panel, lines: Mapping[str, Series], run: Run) -> dict[str, list[Line]]:
    """The lines of one run: together, or by layer, and where they belong to many edges by the learner of these."""
    many = len(lines) > MOST_EDGE_LINES and all("->" in key for key in lines)
    ordered = sorted(lines, key=lambda key: _position(panel, key))
    uncolored = [key for key in ordered if key.partition("/")[2] in _NAMED]
    groups: dict[str, list[Line]] = {}
    for key in ordered:
        kind, _, whose = key.partition("/")
        edge, _, layer = whose.partition("@")
        source, _, learner = edge.rpartition("->")
        color = "ink" if key in uncolored else str(int(source if many else learner) % COLORS)
        dashes = uncolored.index(key) if key in uncolored else list(panel.kinds).index(kind)
        titles = [f"learner {name_of(learner, run.names)}" if many else "", layer and f"layer {layer}"]
        name = " ".join(filter(None, [name_of(edge, run.names), panel.kinds[kind]]))
        groups.setdefault(", ".join(filter(None, titles)), []).append(Line(name, *lines[key], color, dashes))
    return groups


def _by_run(
    panel: Panel, recorded: Sequence[Mapping[str, Series]], runs: Sequence[Run], labels: Sequence[str]
) -> dict[str, list[Line]]:
    """The lines of several runs: those of one model, edge or optimiser together."""
    groups: dict[str, list[Line]] = {}
    for key in sorted({key for one in recorded for key in one}, key=lambda key: _position(panel, key)):
        kind, _, whose = key.partition("/")
        names = {name_of(whose, run.names) for run, one in zip(runs, recorded, strict=True) if key in one}
        title = names.pop() if len(names) == 1 else f"model {whose}"
        for k, one in enumerate(recorded):
            if key in one:
                name = " ".join(filter(None, [labels[k], panel.kinds[kind]]))
                line = Line(name, *one[key], str(k % COLORS), list(panel.kinds).index(kind))
                groups.setdefault(title, []).append(line)
    return groups


def _position(panel: Panel, key: str) -> tuple[Any, ...]:
    """Where a series stands: by model or edge, then by kind; what has a name comes last."""
    kind, _, whose = key.partition("/")
    order = list(_NAMED).index(whose) if whose in _NAMED else -1
    edge, _, layer = whose.partition("@")
    numbers = [int(word) for word in edge.split("->")][::-1] if order < 0 else []
    return order, layer, numbers, list(panel.kinds).index(kind)


def _best(panel: Panel, values: Sequence[float]) -> int:
    return best(values) if panel.better == "larger" else best([-value for value in values])
