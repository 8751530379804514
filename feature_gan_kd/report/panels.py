"""Which series are drawn together, and what a reader is told about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from feature_gan_kd.report.records import EPOCH_SPEED, UPDATE_SPEED, Series


@dataclass(frozen=True)
class Panel:
    """Series of one unit that are drawn together.

    Attributes:
        name: short; it labels the axes in the matplotlib figure.
        title: above the axes.
        note: how to read the lines.
        unit: of the vertical axis.
        kinds: the kinds of series in the panel, each with the word that the legend adds for it. The kind of a series
            is its name without its owner (`train/real` of `train/real/0->1`). The first kind is drawn solid, the
            second dashed, the third dotted.
        digits: how a value is formatted.
        better: whether the best value of a series is its largest or its smallest; None where it has no best one.
        limits: of the vertical axis, where they are fixed.
        level: a horizontal line for comparison.
        logarithmic: whether the vertical axis is logarithmic.
        stepped: whether a line keeps a value until the next one.
        in_curves: whether `curves.png` shows the panel, besides the page.
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
    stepped: bool = False
    in_curves: bool = True


PANELS = (
    Panel(
        "accuracy",
        "Top-1 accuracy on the evaluation images",
        "● last  ○ best · ensemble: mean of all logits · dashed: averaged weights, where the run has them",
        "%",
        {"eval/accuracy": "", "eval/ema_accuracy": "averaged"},
        digits=".2f",
        better="larger",
    ),
    Panel(
        "training accuracy",
        "Top-1 accuracy in training",
        "on the training images as they are augmented, means over updates",
        "%",
        {"train/accuracy": ""},
        digits=".2f",
        in_curves=False,
    ),
    Panel(
        "top-5",
        "Top-5 accuracy on the evaluation images",
        "the right class is one of the five most probable · dashed: averaged weights",
        "%",
        {"eval/top5": "", "eval/ema_top5": "averaged"},
        digits=".2f",
        better="larger",
        in_curves=False,
    ),
    Panel(
        "macro F1",
        "Macro F1 on the evaluation images",
        "mean over the classes of the harmonic mean of precision and recall · dashed: averaged weights",
        "%",
        {"eval/macro_f1": "", "eval/ema_macro_f1": "averaged"},
        digits=".2f",
        better="larger",
        in_curves=False,
    ),
    Panel(
        "cross-entropy",
        "Cross-entropy",
        "solid: training images, dashed: evaluation images, dotted: the same of averaged weights",
        "nats",
        {"train/cross_entropy": "train", "eval/cross_entropy": "eval", "eval/ema_cross_entropy": "averaged"},
        better="smaller",
    ),
    Panel(
        "kl",
        "KL to the peers: T² KL(source ‖ learner)",
        "training images, by learner · or the logit_loss that was chosen",
        "nats",
        {"train/kl": ""},
        better="smaller",
    ),
    Panel(
        "confident targets",
        "Images whose target is confident enough to teach",
        "share of the training images at or above the confidence_threshold, by learner",
        "%",
        {"train/confident": ""},
        digits=".2f",
        limits=(0, 100),
        in_curves=False,
    ),
    Panel(
        "answers",
        "Mean answers of the discriminators",
        "solid: to the source's map (real), dashed: to the learner's (fake) · 0.5: undecided",
        "answer",
        {"train/real": "real", "train/fake": "fake"},
        digits=".2f",
        limits=(0, 1),
        level=0.5,
    ),
    Panel(
        "adversarial",
        "Adversarial and discriminator losses",
        "by learner · undecided: adversarial (solid) 0.25, discriminator (dashed) 0.5",
        "squared error",
        {"train/adversarial": "adv.", "train/discriminator": "disc."},
    ),
    Panel(
        "l1",
        "L1 distance of the feature maps",
        "training images, by learner",
        "mean difference",
        {"train/l1": ""},
        better="smaller",
    ),
    Panel(
        "l2",
        "L2 distance of the feature maps",
        "training images, by learner",
        "mean squared difference",
        {"train/l2": ""},
        better="smaller",
    ),
    Panel(
        "aligned",
        "Alignment of the feature maps: 1 - cosine at each position",
        "training images, by learner",
        "1 - cosine",
        {"train/aligned": ""},
        better="smaller",
    ),
    Panel(
        "statistics",
        "Statistics of the channels: squared differences of means and deviations",
        "training images, by learner",
        "mean squared difference",
        {"train/statistics": ""},
        better="smaller",
    ),
    Panel(
        "relation",
        "Similarities between the images of a batch: KL(source ‖ learner)",
        "training images, by learner",
        "nats",
        {"train/relation": ""},
        better="smaller",
    ),
    Panel(
        "right answers",
        "Right answers of the discriminators",
        "to the source's map and to the learner's · 50: they cannot tell the two apart",
        "%",
        {"train/right": ""},
        digits=".2f",
        limits=(0, 100),
        level=50,
        in_curves=False,
    ),
    Panel(
        "similarity",
        "Similarity of the feature maps",
        "of source and learner · solid: linear CKA, 1 for maps equal up to rotation, shift and scale, 0 for "
        "independent ones; dashed: cosine of the pooled maps",
        "similarity",
        {"eval/similarity": "CKA", "eval/cosine": "cosine"},
        digits=".3f",
        in_curves=False,
    ),
    Panel(
        "gradients",
        "Gradients and weight decay",
        "by learner, logarithmic · solid: gradient of the logit loss, dashed: of the feature loss, dotted: the weight "
        "decay added to the latter",
        "norm",
        {"train/gradient_logit": "logit", "train/gradient_feature": "feature", "train/decay_feature": "decay"},
        digits=".2g",
        logarithmic=True,
        in_curves=False,
    ),
    Panel(
        "updates",
        "Size of the optimisers' steps",
        "by learner, logarithmic · solid: steps on the logit loss, dashed: on the feature loss",
        "norm",
        {"train/update_logit": "logit", "train/update_feature": "feature"},
        digits=".2g",
        logarithmic=True,
        in_curves=False,
    ),
    Panel(
        "directions",
        "Direction of the steps on the feature loss",
        "between a step and, solid: the negative gradient, dashed: the negative weights (the step shrinks them)",
        "cosine",
        {"train/descent_feature": "gradient", "train/shrinkage_feature": "shrinkage"},
        digits=".3f",
        level=0,
        in_curves=False,
    ),
    Panel(
        "discriminators",
        "Gradients and steps of the discriminators",
        "logarithmic · solid: gradient, dashed: weight decay, dotted: step",
        "norm",
        {
            "train/gradient_discriminator": "gradient",
            "train/decay_discriminator": "decay",
            "train/update_discriminator": "step",
        },
        digits=".2g",
        logarithmic=True,
        in_curves=False,
    ),
    Panel(
        "learning rates",
        "Learning rates",
        "by optimiser, that of the logit loss by model where they differ, logarithmic",
        "learning rate",
        {"lr/logit": "logit", "lr": ""},
        digits=".2g",
        logarithmic=True,
        stepped=True,
    ),
    Panel(
        "throughput",
        "Throughput",
        "training images per second · in updates alone, and in whole epochs with evaluation and checkpoints",
        "images/s",
        {UPDATE_SPEED: "updates", EPOCH_SPEED: "epochs with evaluation"},
        digits=",.0f",
        in_curves=False,
    ),
)


def split_name(name: str) -> tuple[str, str]:
    """Splits the name of a series into its kind and its owner.

    The owner is a model (`0`, also of `lr/logit/0`), an edge (`0->1`, with several layers `0->1@0`), the ensemble or an
    optimiser (of `lr/logit`). A figure of the whole run, such as `train/images_per_second`, has none: its kind is its
    whole name.
    """
    kind, _, owner = name.rpartition("/")
    return (name, "") if kind in ("train", "eval") else (kind, owner)


def select_series(panel: Panel, series: Mapping[str, Series]) -> dict[str, Series]:
    """Selects the series of a panel, by name; points that a logarithmic axis cannot show are left out."""
    own = {name: series[name] for kind in panel.kinds for name in sorted(series) if split_name(name)[0] == kind}
    if not panel.logarithmic:
        return own
    positive = {name: [(x, y) for x, y in zip(*one, strict=True) if y > 0] for name, one in own.items()}
    return {name: ([x for x, _ in points], [y for _, y in points]) for name, points in positive.items() if points}
