"""The topology of a run as a drawing: where its circles and arrows stand, and what passes along the arrows."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import Any

from feature_gan_kd.report.charts import COLOR_COUNT
from feature_gan_kd.report.records import RecordedRun
from feature_gan_kd.report.text_table import shorten

WIDTH = 360
RADIUS = 25  # of a model's circle
MARGIN = 55  # above the highest circle's centre and below the lowest's
HEAD = 9  # length of an arrow's head
BEND = 0.13  # how far an arrow bends, as a fraction of its length


@dataclass(frozen=True)
class ModelCircle:
    """A model as a circle.

    Attributes:
        x: of its centre.
        y: likewise.
        name_y: baseline of its name.
        index: of the model.
        color: of the style sheet.
        name: as it is shown.
        frozen: whether the model is.
    """

    x: float
    y: float
    name_y: float
    index: int
    color: int
    name: str
    frozen: bool


@dataclass(frozen=True)
class EdgeArrow:
    """An edge as an arrow from source to learner.

    Attributes:
        curve: as an SVG path.
        head: points of its triangle.
        color: the learner's.
        x: of its discriminator, in the middle of the curve.
        y: likewise.
    """

    curve: str
    head: str
    color: int
    x: float
    y: float


@dataclass(frozen=True)
class TopologyDrawing:
    """The topology on a plane of `width` by `height`.

    Attributes:
        circles: one per model.
        arrows: one per edge; none where the method lets no model teach another.
        height: of the plane.
        has_discriminators: whether one stands on every arrow.
        width: of the plane.
        radius: of the circles.
    """

    circles: list[ModelCircle]
    arrows: list[EdgeArrow]
    height: float
    has_discriminators: bool
    width: float = WIDTH
    radius: float = RADIUS


def draw_topology(run: RecordedRun) -> TopologyDrawing:
    """Draws models on a circle, the first at its top (a pair side by side), and an arrow along each teaching edge."""
    count = len(run.names)
    ring = 105.0 if count == 2 else min(135.0, 92.0 + 6 * count)
    first = math.pi if count == 2 else -math.pi / 2
    centers = [cmath.rect(ring, first + 2 * math.pi * k / count) for k in range(count)]
    top, bottom = (extreme(center.imag for center in centers) for extreme in (min, max))
    corner = complex(-WIDTH / 2, top - MARGIN)
    room = 18 if count <= 4 else 12
    circles = []
    for k, center in enumerate(centers):
        above = center.imag < -1
        x, y = (center - corner).real, (center - corner).imag
        name_y = y + (-RADIUS - 8 if above else RADIUS + 17)
        circles.append(ModelCircle(x, y, name_y, k, k % COLOR_COUNT, shorten(run.names[k], room), k in run.frozen))
    arrows = [_arrow(centers[source] - corner, centers[learner] - corner, learner) for source, learner in _taught(run)]
    return TopologyDrawing(circles, arrows, bottom - top + 2 * MARGIN, run.config.loss_weights.adversarial_weight > 0)


def describe_edges(run: RecordedRun) -> list[str]:
    """Which model teaches which, a sentence for each arrow of the drawing."""
    return [f"{source} {run.names[source]} teaches {learner} {run.names[learner]}." for source, learner in _taught(run)]


def describe_loss_terms(run: RecordedRun) -> list[str]:
    """What passes along every arrow, a line for each term of the losses; empty where no model teaches another."""
    weights = run.config.loss_weights
    classes = run.classes
    shared = [(s, k) for s, k in run.edges if not classes or (classes[s] == classes[k] and classes[s] != 0)]
    alone = ", ".join(f"{source}→{learner}" for source, learner in shared)
    where = "" if len(shared) == len(run.edges) else f" ({alone}, which know the same classes)"
    changes = "".join(f", {words}" for words in weights.logit_term_words)
    by_class = ", class by class" if run.config.discriminator_classes else ""
    target = "target" if weights.targets == "ensemble" else "source"
    logits = f"logits{where}: T² KL({target} ‖ learner){changes}, T = {weights.temperature:g}"
    terms = [
        (weights.kl_weight if shared else 0, logits),
        (
            weights.adversarial_weight,
            f"feature maps: the discriminator D must not tell the learner's from the source's{by_class}",
        ),
        (weights.l1_weight, "feature maps: mean absolute difference"),
        (weights.l2_weight, "feature maps: mean squared difference"),
        (weights.aligned_weight, "feature maps: 1 - cosine at each position"),
        (weights.statistics_weight, "feature maps: means and deviations of the channels"),
        (weights.relation_weight, "feature maps: similarities between the images of a batch"),
    ]
    lines = [f"{words}, weight {weight:g}" for weight, words in terms if weight > 0]
    if weights.has_feature_loss and weights.max_grid is not None:
        lines.append(f"feature maps are averaged to at most {weights.max_grid}x{weights.max_grid} positions before")
    if lines and weights.decay_only_update and not weights.has_feature_loss:
        lines.append("no feature maps: the extractors' Adam steps by its weight decay alone")
    return lines


def model_details(run: RecordedRun) -> list[dict[str, Any]]:
    """For each model its parameters and tapped maps, as far as the run's description has them."""
    taps = run.description.get("taps") or [{}] * len(run.names)
    return [
        {
            "parameters": f"{one['parameters']:,}" if "parameters" in one else "",
            "maps": [f"{tap['layer']} {'x'.join(map(str, tap['shape']))}" for tap in one.get("maps", ())],
        }
        for one in taps
    ]


def _taught(run: RecordedRun) -> list[tuple[int, int]]:
    """The edges along which anything is taught: none with method `vanilla`, which has a topology all the same."""
    return run.edges if describe_loss_terms(run) else []


def _arrow(source: complex, learner: complex, color: int) -> EdgeArrow:
    across = learner - source
    middle = (source + learner) / 2 + across * complex(0, -BEND) * 2
    start = source + _direction(source, middle) * (RADIUS + 3)
    tip = learner + _direction(learner, middle) * (RADIUS + 3)
    along = -_direction(learner, middle)
    end = tip - along * HEAD * 0.8
    wings = [tip - along * HEAD + side * along * complex(0, HEAD * 0.45) for side in (1, -1)]
    place = (start + 2 * middle + end) / 4
    head = " ".join(_point(p) for p in (tip, *wings))
    curve = f"M{_point(start)} Q{_point(middle)} {_point(end)}"
    return EdgeArrow(curve, head, color % COLOR_COUNT, place.real, place.imag)


def _direction(here: complex, there: complex) -> complex:
    return (there - here) / abs(there - here)


def _point(p: complex) -> str:
    return f"{p.real:.1f},{p.imag:.1f}"
