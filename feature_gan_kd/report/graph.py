"""The wiring of a run as a graph: where the circles and arrows stand."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import Any

from feature_gan_kd.config.methods import LossWeights
from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.report.charts import COLORS
from feature_gan_kd.report.records import Run
from feature_gan_kd.report.table import shortened

WIDTH = 360
RADIUS = 25  # of a model's circle
MARGIN = 55  # above the highest circle's middle and below the lowest's
HEAD = 9  # length of an arrow's head
BOW = 0.13  # how far an arrow bends, as a part of its length

_WEIGHTS = ("temperature", "kl_weight", "adversarial_weight", "l1_weight", "l2_weight")


@dataclass(frozen=True)
class Node:
    """A model: its place, the height of its name, its number and its name."""

    x: float
    y: float
    label: float
    index: int
    color: int
    name: str
    frozen: bool


@dataclass(frozen=True)
class Arrow:
    """A lesson: a curve from source to learner, its head, and the place of its discriminator."""

    curve: str
    head: str
    color: int
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """The wiring on a plane of `WIDTH` by `height`."""

    nodes: list[Node]
    arrows: list[Arrow]
    height: float
    has_discriminators: bool
    width: float = WIDTH
    radius: float = RADIUS


def graph_of(run: Run) -> Graph:
    """Models on a circle, the first at its top (a pair side by side), and an arrow from each source to a learner."""
    count = len(run.names)
    ring = 105.0 if count == 2 else min(135.0, 92.0 + 6 * count)
    first = math.pi if count == 2 else -math.pi / 2
    places = [cmath.rect(ring, first + 2 * math.pi * k / count) for k in range(count)]
    top, bottom = (extreme(place.imag for place in places) for extreme in (min, max))
    corner = complex(-WIDTH / 2, top - MARGIN)
    frozen = run.about.get("frozen", ())
    room = 18 if count <= 4 else 12
    nodes = []
    for k, place in enumerate(places):
        above = place.imag < -1
        label = place.imag - top + MARGIN + (-RADIUS - 8 if above else RADIUS + 17)
        x, y = (place - corner).real, (place - corner).imag
        nodes.append(Node(x, y, label, k, k % COLORS, shortened(run.names[k], room), k in frozen))
    arrows = [_arrow(places[source] - corner, places[learner] - corner, learner) for source, learner in run.edges]
    return Graph(nodes, arrows, bottom - top + 2 * MARGIN, loss_weights_of(run).adversarial_weight > 0)


def loss_weights_of(run: Run) -> LossWeights:
    """The weights of a run's losses.

    Raises:
        UserError: for a method that does not exist, as in a run of a later version.
    """
    known = {key: run.settings[key] for key in ("method", *_WEIGHTS) if key in run.settings}
    return DistillConfig.from_dict(known).loss_weights


def terms_of(run: Run) -> list[str]:
    """What passes along every arrow, a line for each term of the losses."""
    loss_weights = loss_weights_of(run)
    terms = [
        (loss_weights.kl_weight, f"logits: T² KL(source ‖ learner), T = {loss_weights.temperature:g}"),
        (loss_weights.adversarial_weight, "feature maps: the learner's are to pass for the source's before D"),
        (loss_weights.l1_weight, "feature maps: mean absolute difference"),
        (loss_weights.l2_weight, "feature maps: mean squared difference"),
    ]
    lines = [f"{words}, weight {weight:g}" for weight, words in terms if weight > 0]
    if loss_weights.decay_only_update and not loss_weights.has_feature_loss:
        lines.append("no feature maps: the extractors' Adam steps by its weight decay alone")
    return lines or ["nothing: every model learns from the labels alone"]


def models_of(run: Run) -> list[dict[str, Any]]:
    """Per model its parameters and tapped maps, as far as the run has them on record."""
    taps = run.about.get("taps") or [{}] * len(run.names)
    return [
        {
            "parameters": f"{one['parameters']:,}" if "parameters" in one else "",
            "maps": [f"{tap['layer']} {'x'.join(map(str, tap['shape']))}" for tap in one.get("maps", ())],
        }
        for one in taps
    ]


def _arrow(source: complex, learner: complex, color: int) -> Arrow:
    across = learner - source
    middle = (source + learner) / 2 + across * complex(0, -BOW) * 2
    start = source + _towards(source, middle) * (RADIUS + 3)
    tip = learner + _towards(learner, middle) * (RADIUS + 3)
    along = -_towards(learner, middle)
    end = tip - along * HEAD * 0.8
    wings = [tip - along * HEAD + side * along * complex(0, HEAD * 0.45) for side in (1, -1)]
    place = (start + 2 * middle + end) / 4
    head = " ".join(_point(p) for p in (tip, *wings))
    return Arrow(f"M{_point(start)} Q{_point(middle)} {_point(end)}", head, color % COLORS, place.real, place.imag)


def _towards(here: complex, there: complex) -> complex:
    return (there - here) / abs(there - here)


def _point(p: complex) -> str:
    return f"{p.real:.1f},{p.imag:.1f}"
