"""The learning curves of a run as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_gan_kd.report.panels import PANELS, Panel, of_panel
from feature_gan_kd.report.records import Run, Series, best, series
from feature_gan_kd.report.table import facts_of, shortened, title_of
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, PALE = "#222222", "#666666", "#9a9a9a"
RATE_STYLES = {"logit": (INK, "-"), "feature": (GREY, "--"), "discriminator": (PALE, ":")}

# Of the page, in inches; sizes of text, in points.
WIDTH, LEFT, ABOVE, BELOW = 11.0, 0.75, 0.62, 0.5
LABELS, WIDE_LABELS = 1.5, 3.2
SMALL, NORMAL, LARGE = 7.5, 8.5, 13.0
LINE_SPACING = 1.3


def curves(run: Run) -> Figure:
    """The learning curves as one matplotlib figure.

    The axes are labelled with the names of their panels, the lines with the keys of `series`. Accuracy stands
    across the page, the others two to a row, an odd last one alone. What was not recorded has no panel.
    """
    from matplotlib.figure import Figure

    recorded = series(run)
    filled = [(panel, of_panel(panel, recorded)) for panel in PANELS if panel.in_curves]
    filled = [(panel, lines) for panel, lines in filled if lines]
    wide = int(bool(run.epochs))
    rows = [filled[:wide], *(filled[i : i + 2] for i in range(wide, len(filled), 2))][1 - wide :]
    heights = [max(_height(panel, lines) for panel, lines in row) for row in rows]
    end = max((x[-1] for x, _ in recorded.values()), default=1.0)
    title = textwrap.wrap(title_of(run), 92, break_on_hyphens=False)
    top = 0.48 + 0.24 * len(title)
    height = top + sum(heights) + len(rows) * (ABOVE + BELOW)
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    for text, down, size, weight, color in (
        ("\n".join(title), 0.16, LARGE, "bold", INK),
        (" · ".join(facts_of(run)), 0.22 + 0.24 * len(title), NORMAL, "normal", GREY),
    ):
        figure.text(
            0.25 / WIDTH, 1 - down / height, text, size=size, weight=weight, color=color, va="top", parse_math=False
        )
    for row, tall in zip(rows, heights, strict=True):
        top += ABOVE + tall
        across = WIDTH / len(row)
        for position, (panel, lines) in enumerate(row):
            room = across - LEFT - (WIDE_LABELS if panel.name == "accuracy" else LABELS)
            box = ((position * across + LEFT) / WIDTH, 1 - top / height, room / WIDTH, tall / height)
            axes = figure.add_axes(box)
            axes.set_xlim(0, end)
            _draw(axes, panel, lines, "epoch" if run.epochs else "update")
            _label_ends(axes, panel, lines, run, (room, tall))
        top += BELOW
    return figure


def draw_curves(run: Run, path: Path) -> None:
    """Writes the learning curves as one PNG; a file already there is replaced only by a whole one.

    Args:
        run: what to draw.
        path: of the PNG.

    Raises:
        UserError: where it cannot be written.
    """
    figure = curves(run)
    try:
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise UserError(f"curves: {path} cannot be written ({error.strerror}): choose another place") from None


def _height(panel: Panel, lines: Mapping[str, Series]) -> float:
    """Inches that the axes need, for their labels to stand below one another."""
    least, each = (2.7, 2.4 * NORMAL) if panel.name == "accuracy" else (1.8, SMALL)
    return max(least, len(lines) * each * LINE_SPACING / 72)


def _style(panel: Panel, key: str) -> tuple[str, str]:
    """Colour and dashes: a model has one colour everywhere, and an edge and its discriminator the learner's."""
    kind, _, whose = key.partition("/")
    if kind == "rate":
        return RATE_STYLES[whose]
    color = INK if whose == "ensemble" else PALETTE[int(whose.split("->")[-1]) % len(PALETTE)]
    return color, "--" if list(panel.kinds).index(kind) else "-"


def _label(panel: Panel, key: str, line: Series, run: Run) -> str:
    times, values = line
    kind, _, whose = key.partition("/")
    if kind == "top-1":
        name = whose if whose == "ensemble" else f"{whose}  {shortened(run.names[int(whose)], 32)}"
        at = best(values)
        return f"{name}\nlast {values[-1]:.2f}, best {values[at]:.2f} in epoch {times[at]:.0f}"
    last = f"{values[-1]:{panel.digits}}"
    return " ".join(filter(None, [whose.replace("->", "→"), panel.kinds[kind], last]))


def _draw(axes: Axes, panel: Panel, lines: Mapping[str, Series], time: str) -> None:
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
    for key, (x, y) in lines.items():
        color, dashes = _style(panel, key)
        point = "o" if len(x) == 1 else ""
        steps = "steps-post" if panel.name == "rates" else "default"
        axes.plot(
            x,
            y,
            dashes,
            color=color,
            linewidth=1.5,
            marker=point,
            markersize=4,
            drawstyle=steps,
            clip_on=False,
            label=key,
        )
        if panel.name == "accuracy":
            at = best(y)
            (ring,) = axes.plot(x[at], y[at], "o", color=color, clip_on=False, zorder=3, label="_best")
            ring.set(markerfacecolor="white", markeredgewidth=1.5, markersize=7.5)
            axes.plot(x[-1], y[-1], "o", color=color, clip_on=False, zorder=4, markersize=4.5, label="_last")


def _label_ends(axes: Axes, panel: Panel, lines: Mapping[str, Series], run: Run, inches: tuple[float, float]) -> None:
    """Writes each line's label at the right of its end, tied to it, none over another."""
    size, rows = (NORMAL, 2.4) if panel.name == "accuracy" else (SMALL, 1)
    axes.get_ylim()  # settles the scale
    to_fraction = axes.transData + axes.transAxes.inverted()
    ends = sorted((float(to_fraction.transform((x[-1], y[-1]))[1]), key) for key, (x, y) in lines.items())
    places = _spread([height for height, _ in ends], rows * size * LINE_SPACING / 72 / inches[1])
    for (end, key), place in zip(ends, places, strict=True):
        color, dashes = _style(panel, key)
        name, *more = _label(panel, key, lines[key], run).split("\n")
        near, far = 1 + 0.06 / inches[0], 1 + 0.32 / inches[0]
        arrow = {"arrowstyle": "-", "color": color, "linestyle": dashes, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (near, end), (far, place), "axes fraction", "axes fraction", arrowprops=arrow)
        words: dict[str, Any] = {"size": size, "color": INK, "parse_math": False, "transform": axes.transAxes}
        far, apart = far + 0.04 / inches[0], 0.02 / inches[1]
        if more:
            axes.text(far, place + apart, name, va="bottom", weight="bold", **words)
            axes.text(far, place - apart, more[0], va="top", **words)
        else:
            axes.text(far, place, name, va="center_baseline", **words)


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Middles of labels of height `gap` inside [0, 1], none over another, near the wanted ones, which are sorted."""
    up, down = list(wanted), list(wanted)
    for i in range(1, len(wanted)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-i - 1] = min(down[-i - 1], down[-i] - gap)
    middle = [(a + b) / 2 for a, b in zip(up, down, strict=True)]
    count = len(wanted)
    return [min(max(place, (i + 0.5) * gap), 1 - (count - i - 0.5) * gap) for i, place in enumerate(middle)]
