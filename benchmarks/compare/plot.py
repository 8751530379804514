"""Comparisons as pictures: the accuracy of every method after the last epoch, and over the epochs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.compare.differences import estimate
from benchmarks.compare.result_file import ENSEMBLE, MEAN
from benchmarks.compare.results import Comparison
from benchmarks.compare.tables import title
from feature_gan_kd.utils.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, PALE = "#222222", "#666666", "#9a9a9a"
DASHES = ("-", "--", ":", "-.")
SMALL, NORMAL, LARGE = 7.5, 8.5, 12.0  # points
WIDTH, ABOVE, BELOW = 11.0, 1.0, 0.8  # inches
ROW, EPOCHS_TALL = 0.17, 2.1  # of one model of one method; of the axes of the epochs
MARKERS = {MEAN: "s", ENSEMBLE: "D"}  # in addition to the colour
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": SMALL}


def draw_comparisons(comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Writes `PRESET-PAIR.png` for each comparison; further schedules of one preset and pair get a number after it.

    Raises:
        OSError: where the disk cannot hold them.
    """
    paths: list[Path] = []
    for one in comparisons:
        name = f"{one.preset}-{one.pair}"
        number = sum(other.preset == one.preset and other.pair == one.pair for other in comparisons[: len(paths)])
        path = folder / f"{name}{f'-{number + 1}' if number else ''}.png"
        with atomic_file(path) as temporary:  # a stopped program leaves no half picture
            draw(one).savefig(temporary, format="png")
        paths.append(path)
    return paths


def draw(comparison: Comparison) -> Figure:
    """Draws a comparison: its methods on the left, all epochs and the last quarter of them on the right."""
    names = comparison.curve_names()
    tall = max(5.0, len(comparison.results) * (len(names) + 1) * ROW)
    height = ABOVE + tall + BELOW
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    heading = textwrap.fill(title(comparison), 100, max_lines=2, placeholder=" …")
    figure.text(0.25 / WIDTH, 1 - 0.15 / height, heading, size=LARGE, weight="bold", color=INK, va="top")
    methods = figure.add_axes((1.45 / WIDTH, BELOW / height, 3.9 / WIDTH, tall / height))
    _draw_methods(methods, comparison, names)
    models = methods.get_legend_handles_labels()[0]
    figure.legend(handles=models, loc="lower left", bbox_to_anchor=(1.35 / WIDTH, 0), ncols=len(names), **LEGEND)
    shown = MEAN if MEAN in names else names[0]
    means = {method: _mean_curve(comparison.curves(method, shown).values()) for method in comparison.results}
    means = {method: mean for method, mean in means.items() if mean}
    evaluated = comparison.any_result.evaluated
    for top, part in ((0.0, 1.0), (2.9, 0.25)):
        bottom = height - ABOVE - top - EPOCHS_TALL
        axes = figure.add_axes((6.1 / WIDTH, bottom / height, 2.9 / WIDTH, EPOCHS_TALL / height))
        _draw_epochs(axes, evaluated, means, part)
        heading = f"Over the epochs, {shown}" if part == 1 else "The last quarter of them"
        _dress(axes, heading, "means over the seeds · in the legend after the last epoch" if part == 1 else "", "epoch")
    return figure


def _draw_methods(axes: Axes, comparison: Comparison, names: Sequence[str]) -> None:
    """Draws a group of rows for each method: the seeds as small rings, their mean with its interval."""
    colors = {name: PALETTE[k % len(PALETTE)] for k, name in enumerate(names)} | {MEAN: GREY, ENSEMBLE: INK}
    group = len(names) + 1
    for k, method in enumerate(comparison.results):
        if k:
            axes.axhline(k * group - 1, color="#ebebeb", linewidth=0.7)
        for j, name in enumerate(names):
            values = list(comparison.scores(method, name).values())
            if not values:
                continue
            place, mean, marker = k * group + j, estimate(values), MARKERS.get(name, "o")
            axes.errorbar(mean.mean, place, xerr=mean.half_width, color=colors[name], capsize=2.5, elinewidth=1.2)
            axes.plot(mean.mean, place, marker, color=colors[name], markersize=5.5, zorder=3)
            seeds = axes.plot(values, [place] * len(values), "o", color=colors[name], markersize=3, zorder=4)
            seeds[0].set(markerfacecolor="white", markeredgewidth=0.8)
    for name in names:
        axes.plot([], [], MARKERS.get(name, "o"), color=colors[name], markersize=5.5, label=name)
    axes.set_yticks([k * group + (len(names) - 1) / 2 for k in range(len(comparison.results))], comparison.results)
    axes.set_ylim(len(comparison.results) * group - 1, -1)
    note = "small rings: single seeds · bars: 95 % interval of the mean (Student's t)"
    _dress(axes, "Last epoch, by method", note, "top-1 %")
    axes.tick_params(axis="y", length=0, labelsize=NORMAL, labelcolor=INK)
    axes.grid(axis="y", visible=False)


def _mean_curve(curves: Collection[Sequence[float]]) -> list[float]:
    """Returns the mean over the seeds by epoch; empty where there is no curve."""
    return [math.fsum(values) / len(curves) for values in zip(*curves, strict=True)]


def _draw_epochs(axes: Axes, evaluated: Sequence[int], means: Mapping[str, Sequence[float]], part: float) -> None:
    """Draws a line per method over the last part of the epochs; the legend lists them by their last value."""
    styles = {method: divmod(k, len(PALETTE)) for k, method in enumerate(means)}
    for method, mean in sorted(means.items(), key=lambda item: -item[1][-1]):
        dashes, color = styles[method]
        first = len(mean) - max(1, round(part * len(mean)))
        axes.plot(
            *(evaluated[first:], mean[first:], DASHES[dashes]),
            color=PALETTE[color],
            linewidth=1.4,
            marker="o" if len(mean) - first == 1 else "",
            label=f"{method}  {mean[-1]:.2f}",
        )
    axes.set_ylabel("top-1 %", size=NORMAL, color=GREY)
    if part == 1:
        axes.legend(**LEGEND, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _dress(axes: Axes, heading: str, note: str, unit: str) -> None:
    axes.set_xlabel(unit, size=NORMAL, color=GREY, labelpad=2)
    axes.set_title(heading, loc="left", pad=17, size=NORMAL + 1, weight="bold", color=INK)
    axes.annotate(note, (0, 1), (0, 5), "axes fraction", "offset points", size=SMALL, color=GREY)
    axes.tick_params(which="both", labelsize=SMALL, color=PALE, labelcolor=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.grid(color="#ebebeb", linewidth=0.7)
    axes.set_axisbelow(True)
