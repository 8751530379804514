"""Which series are drawn together, and how they are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from feature_gan_kd.report.records import Series


@dataclass(frozen=True)
class Panel:
    """Series of one unit, drawn together.

    Attributes:
        name: short, of the axes in the figure.
        title: above them.
        note: how to read them.
        unit: of the vertical axis.
        kinds: the kinds of series in it, with the word for each; the second one is dashed.
        digits: of a value, as a format.
        better: which value of a series is its best, where one is.
        limits: of the vertical axis, where they are fixed.
        level: of a line for comparison.
        logarithmic: the vertical axis.
        in_curves: whether `curves.png` has it, besides the page.
    """

    name: str
    title: str
    note: str
    unit: str
    kinds: Mapping[str, str]
    digits: str = "#.3g"
    better: Literal["larger", "smaller"] | None = None
    limits: tuple[float, float] | None = None
    level: float | None = None
    logarithmic: bool = False
    in_curves: bool = True


PANELS = (
    Panel(
        "accuracy",
        "Top-1 accuracy on the evaluation images",
        "● last  ○ best · ensemble: mean of all logits",
        "%",
        {"top-1": ""},
        digits=".2f",
        better="larger",
    ),
    Panel(
        "training accuracy",
        "Top-1 accuracy in training",
        "on the training images as they are augmented, means over updates",
        "%",
        {"accuracy": ""},
        digits=".2f",
        in_curves=False,
    ),
    Panel(
        "cross-entropy",
        "Cross-entropy",
        "solid: training images, dashed: evaluation images",
        "nats",
        {"cross_entropy": "train", "loss": "eval"},
        better="smaller",
    ),
    Panel(
        "logit",
        "Logit term: T² KL(source ‖ learner)",
        "training images, by learner",
        "nats",
        {"logit": ""},
        better="smaller",
    ),
    Panel(
        "answers",
        "Mean answers of the discriminators",
        "solid: to the source's map (real), dashed: to the learner's (fake) · 0.5: undecided",
        "answer",
        {"real": "real", "fake": "fake"},
        digits=".2f",
        limits=(0, 1),
        level=0.5,
    ),
    Panel(
        "adversarial",
        "Adversarial and discriminator losses",
        "by learner · undecided: adversarial (solid) 0.25, discriminator (dashed) 0.5",
        "squared error",
        {"adversarial": "adv.", "discriminator": "disc."},
    ),
    Panel(
        "l1",
        "L1 difference of the maps",
        "training images, by learner",
        "mean difference",
        {"l1": ""},
        better="smaller",
    ),
    Panel(
        "l2",
        "L2 difference of the maps",
        "training images, by learner",
        "mean squared difference",
        {"l2": ""},
        better="smaller",
    ),
    Panel(
        "right answers",
        "Right answers of the discriminators",
        "to the source's map and the learner's · 50: they cannot tell them apart",
        "%",
        {"right": ""},
        digits=".2f",
        limits=(0, 100),
        level=50,
        in_curves=False,
    ),
    Panel(
        "similarity",
        "Similarity of the maps",
        "source's map and learner's · solid: linear CKA, 1 for the same up to rotation, shift and scale, 0 for "
        "independent; dashed: cosine of the pooled maps",
        "similarity",
        {"similarity": "CKA", "cosine": "cosine"},
        digits=".3f",
        in_curves=False,
    ),
    Panel(
        "gradients",
        "What the optimisers are given",
        "by learner, logarithmic · solid: gradient of the logit loss, dashed: of the feature loss, dotted: the weight "
        "decay beside the latter",
        "norm",
        {"gradient_logit": "logit", "gradient_feature": "feature", "decay_feature": "decay"},
        digits=".2g",
        logarithmic=True,
        in_curves=False,
    ),
    Panel(
        "updates",
        "How far the optimisers step",
        "by learner, logarithmic · solid: on the logit loss, dashed: on the feature loss",
        "norm",
        {"update_logit": "logit", "update_feature": "feature"},
        digits=".2g",
        logarithmic=True,
        in_curves=False,
    ),
    Panel(
        "directions",
        "Where the steps on the feature loss lead",
        "cosine with, solid: the way down the gradient, dashed: the way to smaller weights",
        "cosine",
        {"descent_feature": "gradient", "shrinkage_feature": "shrinkage"},
        digits=".3f",
        level=0,
        in_curves=False,
    ),
    Panel(
        "discriminators",
        "What moves the discriminators",
        "logarithmic · solid: gradient, dashed: weight decay, dotted: step",
        "norm",
        {"gradient_discriminator": "gradient", "decay_discriminator": "decay", "update_discriminator": "step"},
        digits=".2g",
        logarithmic=True,
        in_curves=False,
    ),
    Panel(
        "rates",
        "Learning rates",
        "by optimiser, logarithmic",
        "learning rate",
        {"rate": ""},
        digits=".2g",
        logarithmic=True,
    ),
    Panel(
        "throughput",
        "Throughput",
        "training images a second · updates alone, and whole epochs with evaluation and checkpoints",
        "images/s",
        {"speed": ""},
        digits=",.0f",
        in_curves=False,
    ),
)


def of_panel(panel: Panel, recorded: Mapping[str, Series]) -> dict[str, Series]:
    """A panel's own series, by name; without what a logarithmic axis has no place for."""
    own = {key: recorded[key] for kind in panel.kinds for key in sorted(recorded) if key.split("/")[0] == kind}
    if not panel.logarithmic:
        return own
    positive = {key: [(x, y) for x, y in zip(*one, strict=True) if y > 0] for key, one in own.items()}
    return {key: ([x for x, _ in points], [y for _, y in points]) for key, points in positive.items() if points}
