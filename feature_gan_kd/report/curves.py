"""Draws the learning curves of a run as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_gan_kd.report.panels import PANELS, Panel, select_series, split_name
from feature_gan_kd.report.records import RecordedRun, Series, collect_series, index_of_max
from feature_gan_kd.report.text_table import run_facts, run_title, shorten
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, PALE = "#222222", "#666666", "#9a9a9a"
RATE_STYLES = {"logit": (INK, "-"), "feature": (GREY, "--"), "discriminator": (PALE, ":")}

# Of the picture, in inches.
WIDTH, LEFT, ABOVE, BELOW = 11.0, 0.75, 0.62, 0.5
LABELS, WIDE_LABELS = 1.5, 3.2
SMALL, NORMAL, LARGE = 7.5, 8.5, 13.0  # sizes of text, in points
LINE_SPACING = 1.3


def curves_figure(run: RecordedRun) -> Figure:
    """Draws the learning curves as one matplotlib figure.

    The axes are labelled with the names of their panels, the lines with the names of `collect_series`. Accuracy
    spans the picture, the other panels stand two to a row, an odd last one alone. What was not recorded has no panel.
    """
    from matplotlib.figure import Figure

    series = collect_series(run)
    rows = _rows_of_panels(run, series)
    heights = [max(_axes_height(panel, lines) for panel, lines in row) for row in rows]
    end = max((times[-1] for times, _ in series.values()), default=1.0)
    title = textwrap.wrap(run_title(run), 92, break_on_hyphens=False)
    top = 0.48 + 0.24 * len(title)
    height = top + sum(heights) + len(rows) * (ABOVE + BELOW)
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    for text, down, size, weight, color in (
        ("\n".join(title), 0.16, LARGE, "bold", INK),
        (" · ".join(run_facts(run)), 0.22 + 0.24 * len(title), NORMAL, "normal", GREY),
    ):
        figure.text(
            0.25 / WIDTH, 1 - down / height, text, size=size, weight=weight, color=color, va="top", parse_math=False
        )
    for row, axes_height in zip(rows, heights, strict=True):
        top += ABOVE + axes_height
        across = WIDTH / len(row)
        for position, (panel, lines) in enumerate(row):
            axes_width = across - LEFT - (WIDE_LABELS if panel.name == "accuracy" else LABELS)
            left = position * across + LEFT
            axes = figure.add_axes((left / WIDTH, 1 - top / height, axes_width / WIDTH, axes_height / height))
            axes.set_xlim(0, end)
            _style_axes(axes, panel, "epoch" if run.epochs else "update")
            _draw_lines(axes, panel, lines)
            _label_ends(axes, panel, lines, run, (axes_width, axes_height))
        top += BELOW
    return figure


def write_curves(run: RecordedRun, path: Path) -> None:
    """Writes the learning curves as one PNG; an existing file keeps its content until the new one is complete.

    Args:
        run: what to draw.
        path: of the PNG.

    Raises:
        UserError: where the file cannot be written.
    """
    figure = curves_figure(run)
    try:
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise UserError(f"curves: {path} cannot be written ({error.strerror}): choose another place") from None


def _rows_of_panels(run: RecordedRun, series: Mapping[str, Series]) -> list[list[tuple[Panel, dict[str, Series]]]]:
    """The panels that have lines, row by row: accuracy, which is the first, alone, and then two in a row."""
    filled = [(panel, select_series(panel, series)) for panel in PANELS if panel.in_curves]
    filled = [(panel, lines) for panel, lines in filled if lines]
    alone = int(bool(filled) and filled[0][0].name == "accuracy")  # before the first evaluation there is none
    pairs = [filled[i : i + 2] for i in range(alone, len(filled), 2)]
    return [filled[:1], *pairs] if alone else pairs


def _axes_height(panel: Panel, lines: Mapping[str, Series]) -> float:
    """Inches that the axes need, for their labels to stand below one another."""
    least, each = (2.7, 2.4 * NORMAL) if panel.name == "accuracy" else (1.8, SMALL)
    return max(least, len(lines) * each * LINE_SPACING / 72)


def _line_style(panel: Panel, name: str) -> tuple[str, str]:
    """Colour and dashes: a model has one colour everywhere, and an edge that of its learner."""
    kind, owner = split_name(name)
    if kind == "lr":
        return RATE_STYLES[owner]
    color = INK if owner == "ensemble" else PALETTE[int(owner.split("->")[-1]) % len(PALETTE)]
    return color, "--" if list(panel.kinds).index(kind) else "-"


def _label(panel: Panel, name: str, line: Series, run: RecordedRun) -> str:
    """The words at the end of a line; on a second line, where the panel is accuracy, its last and best value."""
    times, values = line
    kind, owner = split_name(name)
    if panel.name == "accuracy":
        title = owner if owner == "ensemble" else f"{owner}  {shorten(run.names[int(owner)], 32)}"
        at = index_of_max(values)
        return f"{title}\nlast {values[-1]:.2f}, best {values[at]:.2f} in epoch {times[at]:.0f}"
    last = f"{values[-1]:{panel.digits}}"
    return " ".join(filter(None, [owner.replace("->", "→"), panel.kinds[kind], last]))


def _style_axes(axes: Axes, panel: Panel, time: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_label(panel.name)
    axes.set_title(panel.title, loc="left", pad=17, size=NORMAL + 1, weight="bold", color=INK)
    axes.annotate(panel.note, (0, 1), (0, 5), "axes fraction", "offset points", size=SMALL, color=GREY)
    axes.set_ylabel(panel.unit, size=NORMAL, color=GREY)
    axes.set_xlabel(time, size=NORMAL, color=GREY, labelpad=2)
    axes.tick_params(which="both", labelsize=SMALL, color=PALE, labelcolor=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.grid(color="#ebebeb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.logarithmic:
        axes.set_yscale("log")
    if panel.limits:
        axes.set_ylim(*panel.limits)
    if panel.level is not None:
        axes.axhline(panel.level, color=PALE, linewidth=0.9, label="_undecided")


def _draw_lines(axes: Axes, panel: Panel, lines: Mapping[str, Series]) -> None:
    for name, (x, y) in lines.items():
        color, dashes = _line_style(panel, name)
        axes.plot(
            x,
            y,
            dashes,
            color=color,
            linewidth=1.5,
            marker="o" if len(x) == 1 else "",  # a line of one point would be invisible
            markersize=4,
            drawstyle="steps-post" if panel.stepped else "default",
            clip_on=False,
            label=name,
        )
        if panel.name == "accuracy":
            at = index_of_max(y)
            (ring,) = axes.plot(x[at], y[at], "o", color=color, clip_on=False, zorder=3, label="_best")
            ring.set(markerfacecolor="white", markeredgewidth=1.5, markersize=7.5)
            axes.plot(x[-1], y[-1], "o", color=color, clip_on=False, zorder=4, markersize=4.5, label="_last")


def _label_ends(
    axes: Axes, panel: Panel, lines: Mapping[str, Series], run: RecordedRun, inches: tuple[float, float]
) -> None:
    """Writes each line's label to the right of its end and connects the two; no label covers another.

    Args:
        axes: with the lines drawn.
        panel: of the lines.
        lines: by name.
        run: whose models they name.
        inches: width and height of the axes.
    """
    size, rows = (NORMAL, 2.4) if panel.name == "accuracy" else (SMALL, 1)
    axes.get_ylim()  # fixes the limits of the data, on which the transform depends
    to_fraction = axes.transData + axes.transAxes.inverted()
    ends = sorted((float(to_fraction.transform((x[-1], y[-1]))[1]), name) for name, (x, y) in lines.items())
    places = _spread([height for height, _ in ends], rows * size * LINE_SPACING / 72 / inches[1])
    for (end, name), place in zip(ends, places, strict=True):
        color, dashes = _line_style(panel, name)
        title, *more = _label(panel, name, lines[name], run).split("\n")
        near, far = 1 + 0.06 / inches[0], 1 + 0.32 / inches[0]
        arrow = {"arrowstyle": "-", "color": color, "linestyle": dashes, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (near, end), (far, place), "axes fraction", "axes fraction", arrowprops=arrow)
        words: dict[str, Any] = {"size": size, "color": INK, "parse_math": False, "transform": axes.transAxes}
        far, apart = far + 0.04 / inches[0], 0.02 / inches[1]
        if more:
            axes.text(far, place + apart, title, va="bottom", weight="bold", **words)
            axes.text(far, place - apart, more[0], va="top", **words)
        else:
            axes.text(far, place, title, va="center_baseline", **words)


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places labels of height `gap` inside [0, 1] so that none covers another, near where they are wanted.

    Args:
        wanted: middles of the labels, rising.
        gap: their height.

    Returns:
        The middle of each label.
    """
    up, down = list(wanted), list(wanted)
    for i in range(1, len(wanted)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-i - 1] = min(down[-i - 1], down[-i] - gap)
    middle = [(a + b) / 2 for a, b in zip(up, down, strict=True)]
    count = len(wanted)
    return [min(max(place, (i + 0.5) * gap), 1 - (count - i - 0.5) * gap) for i, place in enumerate(middle)]
