"""What a run has to show: its files read back, the final table, the learning curves. Never imports torch."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_gan_kd.callbacks import read_records
from feature_gan_kd.errors import UserError
from feature_gan_kd.history import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[list[float], list[float]]  # x (epochs, or updates before the first epoch is done) and y

# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, GREY, PALE = "#222222", "#666666", "#9a9a9a"
RATE_STYLES = {"logit": (INK, "-"), "feature": (GREY, "--"), "discriminator": (PALE, ":")}
NUMBERS = {"answers": ".2f", "rates": ".2g"}  # three digits elsewhere
# More points than this cannot be told apart on the page: records of longer runs are averaged in groups.
MOST_POINTS = 200

# Of the page, in inches; sizes of text, in points.
WIDTH, LEFT, ABOVE, BELOW = 11.0, 0.75, 0.62, 0.5
LABELS, WIDE_LABELS = 1.5, 3.2
SMALL, NORMAL, LARGE = 7.5, 8.5, 13.0
LINE_SPACING = 1.3


@dataclass(frozen=True)
class Run:
    """The files of a run.

    Attributes:
        names: of the networks, in order.
        steps: records written while training, oldest first.
        epochs: records of finished epochs, oldest first.
        settings: of the run, by name.
        about: all of `config.json`.
    """

    names: list[str]
    steps: list[Record]
    epochs: list[Record]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """Series of one unit, drawn together.

    Attributes:
        name: short, of the axes in the figure.
        title: above them.
        note: how to read them.
        unit: of the vertical axis.
        kinds: the kinds of series in it, with the word for each; the second one is dashed.
    """

    name: str
    title: str
    note: str
    unit: str
    kinds: Mapping[str, str]


PANELS = (
    Panel(
        "accuracy",
        "Top-1 accuracy on the evaluation images",
        "● last  ○ best · ensemble: mean of all logits",
        "%",
        {"top-1": ""},
    ),
    Panel(
        "cross-entropy",
        "Cross-entropy",
        "solid: training images, dashed: evaluation images",
        "nats",
        {"cross_entropy": "train", "loss": "eval"},
    ),
    Panel("logit", "Logit term: T² KL(source ‖ learner)", "training images, by learner", "nats", {"logit": ""}),
    Panel(
        "answers",
        "Mean answers of the discriminators",
        "solid: to the source's map (real), dashed: to the learner's (fake) · 0.5: undecided",
        "answer",
        {"real": "real", "fake": "fake"},
    ),
    Panel(
        "adversarial",
        "Adversarial and discriminator losses",
        "by learner · undecided: adversarial (solid) 0.25, discriminator (dashed) 0.5",
        "squared error",
        {"adversarial": "adv.", "discriminator": "disc."},
    ),
    Panel("l1", "L1 difference of the maps", "training images, by learner", "mean difference", {"l1": ""}),
    Panel("l2", "L2 difference of the maps", "training images, by learner", "mean squared difference", {"l2": ""}),
    Panel("rates", "Learning rates", "by optimiser, logarithmic", "learning rate", {"rate": ""}),
)


def read_run(folder: Path) -> Run:
    """Reads `config.json` and `metrics.jsonl`, of a finished run, one still going or one that was killed.

    Args:
        folder: the run's output folder.

    Raises:
        UserError: where there is no run, its files are damaged, or nothing is recorded yet.
    """
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    if not config.exists():
        raise UserError(f"run: {folder} holds no run (there is no config.json): name the output folder of one")
    try:
        about = json.loads(config.read_text())
        names, settings = [str(model["name"]) for model in about["models"]], about["config"]
        records = read_records(metrics) if metrics.exists() else []
        steps, epochs = ([one for one in records if one["event"] == event] for event in ("step", "epoch"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"run: the files in {folder} are damaged ({type(error).__name__}): name another run") from None
    if not records:
        raise UserError(f"run: {metrics} holds no records: wait for the first, or let the run go on (--resume)")
    return Run(names, steps, epochs, settings, about)


def table(run: Run) -> str:
    """The last and the best top-1 accuracy of every network and of the ensemble, and what they took.

    The seconds are those of the recorded epochs with their evaluation; images/s are training images in them.
    """
    frozen = run.about.get("frozen", ())
    names = {str(k): f"{k} {name}{' (frozen)' if k in frozen else ''}" for k, name in enumerate(run.names)}
    rows = [("network", "last top-1 %", "best top-1 %", "in epoch")]
    recorded = series(run)
    for whose, name in (names | {"ensemble": "ensemble"}).items():
        _, values = recorded.get(f"top-1/{whose}", ([], []))
        best = _best(values)
        shown = (f"{values[-1]:.2f}", f"{values[best]:.2f}", str(run.epochs[best]["epoch"])) if values else ("-",) * 3
        rows.append((name, *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    facts = [f"method {run.settings['method']}", *_facts(run)]
    if run.epochs:
        seconds = sum(one["seconds"] for one in run.epochs)
        images = sum(one["seconds"] * one["images_per_second"] for one in run.epochs)
        facts += [f"{seconds:,.1f} s", f"{images / seconds:,.0f} images/s"]
    return "\n".join([*lines, "", " · ".join(facts)])


def series(run: Run) -> dict[str, Series]:
    """Everything recorded over time, named as in the records.

    Returns:
        By `cross_entropy/0`, `real/0->1`, ... (means over updates), `top-1/0`, `top-1/ensemble` (%), `loss/0`
        (cross-entropy on the evaluation images) and `rate/logit`: the series, without points that are not finite.
    """
    length = run.epochs[0]["step"] / run.epochs[0]["epoch"] if run.epochs else 1
    found: dict[str, Series] = {}

    def add(step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            xs, ys = found.setdefault(key, ([], []))
            if math.isfinite(value):
                xs.append(step / length)
                ys.append(value)

    for one in _averaged(run.steps):
        add(one["step"], one["metrics"])
        add(one["step"], {f"rate/{kind}": rate for kind, rate in one["lr"].items() if rate > 0})
    for one in run.epochs:
        accuracy = {f"top-1/{k}": value for k, value in enumerate(one["accuracy"])}
        losses = {f"loss/{k}": value for k, value in enumerate(one["loss"])}
        add(one["step"], accuracy | {"top-1/ensemble": one["ensemble"]} | losses)
    return {key: (xs, ys) for key, (xs, ys) in found.items() if ys}


def curves(run: Run) -> Figure:
    """The learning curves as one matplotlib figure.

    The axes are labelled with the names of their panels, the lines with the keys of `series`. Accuracy stands
    across the page, the others two to a row, an odd last one alone. What was not recorded has no panel.
    """
    from matplotlib.figure import Figure

    recorded = series(run)
    filled = [(panel, _of(panel, recorded)) for panel in PANELS]
    filled = [(panel, lines) for panel, lines in filled if lines]
    wide = int(bool(run.epochs))
    rows = [filled[:wide], *(filled[i : i + 2] for i in range(wide, len(filled), 2))][1 - wide :]
    heights = [max(_height(panel, lines) for panel, lines in row) for row in rows]
    end = max((x[-1] for x, _ in recorded.values()), default=1.0)
    title = textwrap.wrap(_title(run), 92, break_on_hyphens=False)
    top = 0.48 + 0.24 * len(title)
    height = top + sum(heights) + len(rows) * (ABOVE + BELOW)
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    for text, down, size, weight, color in (
        ("\n".join(title), 0.16, LARGE, "bold", INK),
        (" · ".join(_facts(run)), 0.22 + 0.24 * len(title), NORMAL, "normal", GREY),
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
    temporary = path.with_name(f".{path.name}.partial")
    try:
        try:
            figure.savefig(temporary, format="png")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"curves: {path} cannot be written ({error.strerror}): choose another place") from None


def _averaged(steps: Sequence[Record]) -> list[Record]:
    """At most `MOST_POINTS` records: consecutive ones merged, their metrics weighted by their updates."""
    size = math.ceil(len(steps) / MOST_POINTS) or 1
    ends = [0, *(one["step"] for one in steps)]
    merged = []
    for first in range(0, len(steps), size):
        group = steps[first : first + size]
        updates = [ends[i + 1] - ends[i] for i in range(first, first + len(group))]
        metrics = {
            key: sum(one["metrics"][key] * count for one, count in zip(group, updates, strict=True)) / sum(updates)
            for key in group[-1]["metrics"]
        }
        merged.append({**group[-1], "metrics": metrics})
    return merged


def _best(values: Sequence[float]) -> int:
    """Where the first of the largest values stands."""
    return max(range(len(values)), key=values.__getitem__, default=0)


def _title(run: Run) -> str:
    names = [_shortened(name, 40) for name in run.names]
    data = str((run.about.get("data") or {}).get("name") or "unnamed data")
    return f"{run.settings['method']}: {', '.join(names[:-1])} and {names[-1]} on {_shortened(data, 60)}"


def _facts(run: Run) -> list[str]:
    facts = [f"{len(run.epochs)} of {run.settings['epochs']} epochs"]
    data = run.about.get("data") or {}
    if "train_images" in data:
        facts.append(f"{data['train_images']:,} training images, {data['evaluation_images']:,} evaluation images")
    return [*facts, f"batch {run.settings['batch_size']}", f"seed {run.settings['seed']}"]


def _shortened(text: str, most: int) -> str:
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _of(panel: Panel, recorded: Mapping[str, Series]) -> dict[str, Series]:
    """A panel's own series, by network or edge."""
    return {key: recorded[key] for kind in panel.kinds for key in sorted(recorded) if key.split("/")[0] == kind}


def _height(panel: Panel, lines: Mapping[str, Series]) -> float:
    """Inches that the axes need, for their labels to stand below one another."""
    least, each = (2.7, 2.4 * NORMAL) if panel.name == "accuracy" else (1.8, SMALL)
    return max(least, len(lines) * each * LINE_SPACING / 72)


def _style(panel: Panel, key: str) -> tuple[str, str]:
    """Colour and dashes: a network has one colour everywhere, and an edge and its discriminator the learner's."""
    kind, _, whose = key.partition("/")
    if kind == "rate":
        return RATE_STYLES[whose]
    color = INK if whose == "ensemble" else PALETTE[int(whose.split("->")[-1]) % len(PALETTE)]
    return color, "--" if list(panel.kinds).index(kind) else "-"


def _label(panel: Panel, key: str, values: Sequence[float], run: Run) -> str:
    kind, _, whose = key.partition("/")
    if kind == "top-1":
        name = whose if whose == "ensemble" else f"{whose}  {_shortened(run.names[int(whose)], 32)}"
        best = _best(values)
        return f"{name}\nlast {values[-1]:.2f}, best {values[best]:.2f} in epoch {run.epochs[best]['epoch']}"
    last = f"{values[-1]:{NUMBERS.get(panel.name, '#.3g')}}"
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
    if panel.name == "rates":
        axes.set_yscale("log")
    if panel.name == "answers":
        axes.set_ylim(0, 1)
        axes.axhline(0.5, color=PALE, linewidth=0.9, label="_undecided")
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
            best = _best(y)
            (ring,) = axes.plot(x[best], y[best], "o", color=color, clip_on=False, zorder=3, label="_best")
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
        name, *more = _label(panel, key, lines[key][1], run).split("\n")
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
