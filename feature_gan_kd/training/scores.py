"""What one pass over evaluation images says of each model: accuracies, losses, and which classes are confused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_CONFUSION_CLASSES = 2000
"""With more classes a matrix of all pairs would take too much memory: confusions are not counted."""

TOP = 5
"""Of top-5 accuracy, which is measured where there are more classes."""


@dataclass(frozen=True)
class Scores:
    """How one model, or an ensemble, answers.

    Attributes:
        accuracy: top-1, in percent.
        top5: accuracy of the five most probable classes together, in percent; None for at most five classes.
        cross_entropy: mean, in nats.
        macro_f1: mean over the classes of the harmonic mean of precision and recall, in percent; classes that neither
            the labels nor the answers name are left out.
        class_accuracy: for each class the percentage of its images that are classified right; None without images.
        confusions: label, wrong answer and number of images, the most frequent first; empty with more than
            `MAX_CONFUSION_CLASSES` classes.
    """

    accuracy: float
    top5: float | None
    cross_entropy: float
    macro_f1: float
    class_accuracy: list[float | None]
    confusions: list[tuple[int, int, int]]

    def metrics(self) -> dict[str, float]:
        """The figures of a record, by name."""
        named = {name: getattr(self, name) for name in ("accuracy", "top5", "cross_entropy", "macro_f1")}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a data set.

    Attributes:
        models: of each model.
        ensemble: of the mean of the models' logits (paper, section 4).
        images: number of images.
        class_images: number of images of each class.
        ema: the same of the models' averaged weights; its ensemble has a model without them as it is. None where no
            model has them.
        averaged: of `ema`, the models that have averaged weights; None elsewhere: all.
    """

    models: list[Scores]
    ensemble: Scores
    images: int
    class_images: list[int]
    ema: Evaluation | None = None
    averaged: tuple[int, ...] | None = None

    def metrics(self) -> dict[str, float]:
        """The figures of a record, under their full names."""
        averaged = {} if self.ema is None else self.ema._named("eval/ema_")
        return {**self._named("eval/"), **averaged, "eval/images": self.images}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, see `OnlineAdversarialDistiller.evaluate`."""
        lists = ("accuracy", "top5", "cross_entropy", "macro_f1", "class_accuracy", "confusions")
        return {
            **{name: [getattr(model, name) for model in self.models] for name in lists},
            "ensemble": self.ensemble.accuracy,
            "ensemble_scores": dataclasses.asdict(self.ensemble),
            "images": self.images,
            "class_images": self.class_images,
            "ema": None if self.ema is None else {**self.ema.to_dict(), "averaged": self.ema.averaged},
        }

    def _named(self, prefix: str) -> dict[str, float]:
        shown = range(len(self.models)) if self.averaged is None else self.averaged
        owners = {**{str(k): self.models[k] for k in shown}, "ensemble": self.ensemble}
        figures = {owner: scores.metrics() for owner, scores in owners.items()}
        names = figures["ensemble"]
        return {f"{prefix}{name}/{owner}": own[name] for name in names for owner, own in figures.items()}


class ScoreCounts:
    """Counts on the device, batch by batch, what `Scores` needs. Sums, so that shares of different sizes count right.

    Args:
        models: number of models and ensembles.
        classes: number of logits.
        device: of the logits.
    """

    def __init__(self, models: int, classes: int, device: torch.device | None) -> None:
        self.classes = classes
        self.has_matrix = classes <= MAX_CONFUSION_CLASSES
        # float64 counts images exactly. Right answers, right ones among five, and the sum of the cross-entropies.
        self.sums = torch.zeros(models, 3, dtype=torch.float64, device=device)
        # By label and answer; without the matrix the images, the answers and the right ones of each class.
        shape = (models, classes * classes) if self.has_matrix else (models, 3 * classes)
        self.counts = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, owner: int, logits: Tensor, labels: Tensor) -> None:
        """Counts the answers of one model or ensemble to one batch.

        Args:
            owner: its position.
            logits: (batch, classes).
            labels: (batch,) class indices.
        """
        answers = logits.argmax(1)
        right = answers == labels
        among = (logits.topk(min(TOP, self.classes), 1).indices == labels[:, None]).any(1)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        self.sums[owner] += torch.stack([right.sum().double(), among.sum().double(), loss.double()])
        if self.has_matrix:
            cells, weights = labels * self.classes + answers, torch.ones_like(labels, dtype=torch.float64)
        else:
            cells = torch.cat([labels, answers + self.classes, answers + 2 * self.classes])
            weights = torch.cat([torch.ones_like(labels), torch.ones_like(labels), right.long()]).double()
        self.counts[owner].scatter_add_(0, cells, weights)

    def scores(self) -> tuple[list[Scores], list[int]]:
        """The scores of every model and ensemble, and the number of images of each class."""
        sums, counts = self.sums.tolist(), self.counts.cpu()
        if self.has_matrix:
            matrices = counts.view(len(sums), self.classes, self.classes)
            actual, named, right = matrices.sum(2), matrices.sum(1), matrices.diagonal(dim1=1, dim2=2)
        else:
            actual, named, right = counts.view(len(sums), 3, self.classes).unbind(1)
        found = []
        images = float(actual[0].sum())
        for k, (correct, among, loss) in enumerate(sums):
            known = actual[k] + named[k] > 0
            f1 = 2 * right[k][known] / (actual[k] + named[k])[known]
            own = [100 * r / a if a else None for r, a in zip(right[k].tolist(), actual[k].tolist(), strict=True)]
            found.append(
                Scores(
                    100 * correct / images,
                    100 * among / images if self.classes > TOP else None,
                    loss / images,
                    100 * float(f1.mean()),
                    own,
                    _confusions(matrices[k]) if self.has_matrix else [],
                )
            )
        return found, [int(count) for count in actual[0].tolist()]


def _confusions(matrix: Tensor) -> list[tuple[int, int, int]]:
    """The wrong answers in a matrix (labels, answers) of counts, the most frequent first, then by label and answer."""
    pairs = matrix.nonzero()
    cells = zip(pairs.tolist(), matrix[pairs[:, 0], pairs[:, 1]].tolist(), strict=True)
    wrong = [(label, answer, int(count)) for (label, answer), count in cells if label != answer]
    return sorted(wrong, key=lambda one: (-one[2], *one[:2]))
