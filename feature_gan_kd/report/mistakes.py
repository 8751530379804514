"""Reads `evaluation.json` of a run for the page: hard classes, confused classes, and images with all answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feature_gan_kd.report.charts import COLOR_COUNT
from feature_gan_kd.report.records import RecordedRun
from feature_gan_kd.report.text_table import shorten
from feature_gan_kd.utils.errors import UserError

HARDEST = 10
"""Classes in the table of the hardest, and pairs in the list of a model's confusions."""

MAX_DRAWN_CLASSES = 200
"""With more classes the cells of a confusion matrix are too small to see."""

MIN_DRAWN_SHARE = 0.005
"""Cells with a smaller share of their row are not drawn."""


@dataclass(frozen=True)
class ConfusionCell:
    """One cell of a drawn confusion matrix.

    Attributes:
        column: position of the answer.
        row: position of the label.
        share: of the images of the label, in (0, 1].
        is_right: whether the answer is the label.
        text: the cell in words.
    """

    column: int
    row: int
    share: float
    is_right: bool
    text: str


@dataclass(frozen=True)
class ModelMistakes:
    """The mistakes of one model.

    Attributes:
        title: of the model.
        color: of its lines.
        cells: of its confusion matrix; empty with too many classes.
        confusions: label, wrong answer and number of images, the most frequent first.
    """

    title: str
    color: str
    cells: list[ConfusionCell]
    confusions: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Sample:
    """An evaluation image with the answers of all models.

    Attributes:
        data_url: the image.
        label: its class.
        answers: of each model: the class, the percentage that it gives it, and whether it is right.
    """

    data_url: str
    label: str
    answers: list[tuple[str, str, bool]]


@dataclass(frozen=True)
class Mistakes:
    """What the models of a run confuse.

    Attributes:
        epoch: after which they were evaluated.
        classes: number of classes.
        models: one for each model, then the ensemble.
        hardest: class, images, and the accuracy of each model and the ensemble as text; the hardest first.
        samples: images.
        titles: and colours of the models, in order.
    """

    epoch: int
    classes: int
    models: list[ModelMistakes]
    hardest: list[tuple[str, int, list[str]]]
    samples: list[Sample]
    titles: list[tuple[str, str]]


def read_mistakes(run: RecordedRun) -> Mistakes | None:
    """Reads the last evaluation of a run; None where there is none.

    Raises:
        UserError: where the file is damaged.
    """
    file = run.folder / "evaluation.json"
    if not file.exists():
        return None
    try:
        return _mistakes(json.loads(file.read_text()), run)
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"run: {file} is damaged ({type(error).__name__}): remove it, or evaluate again by resuming the run"
        ) from None


def _mistakes(content: Any, run: RecordedRun) -> Mistakes:
    counts = [int(count) for count in content["class_images"]]
    names = content["class_names"] or [str(k) for k in range(len(counts))]
    names = [shorten(str(names[k]), 30) for k in range(len(counts))]
    titles = [(f"{k} {shorten(name, 36)}", str(k % COLOR_COUNT)) for k, name in enumerate(run.names)]
    scores = [*content["models"], content["ensemble"]]
    if len(scores) != len(titles) + 1:
        raise ValueError
    models = [
        ModelMistakes(title, color, _cells(own["confusions"], counts, names), _pairs(own["confusions"], names))
        for own, (title, color) in zip(scores, [*titles, ("ensemble", "ink")], strict=True)
    ]
    return Mistakes(
        int(content["epoch"]),
        len(counts),
        models,
        _hardest(scores, counts, names),
        [_sample(one, names) for one in content["samples"]],
        titles,
    )


def _cells(confusions: Sequence[Any], counts: Sequence[int], names: Sequence[str]) -> list[ConfusionCell]:
    if len(counts) > MAX_DRAWN_CLASSES:
        return []
    wrong = [(int(label), int(answer), int(count)) for label, answer, count in confusions]
    lost = [0] * len(counts)
    for label, _, count in wrong:
        lost[label] += count
    right = [(k, k, count - lost[k]) for k, count in enumerate(counts)]
    return [
        ConfusionCell(
            answer, label, count / counts[label], label == answer, f"{names[label]} as {names[answer]}: {count}"
        )
        for label, answer, count in (*right, *wrong)
        if count and count / counts[label] >= MIN_DRAWN_SHARE
    ]


def _pairs(confusions: Sequence[Any], names: Sequence[str]) -> list[tuple[str, str, int]]:
    return [(names[label], names[answer], int(count)) for label, answer, count in confusions[:HARDEST]]


def _hardest(scores: Sequence[Any], counts: Sequence[int], names: Sequence[str]) -> list[tuple[str, int, list[str]]]:
    """The classes that the ensemble classifies worst, those with images only."""
    seen = [k for k, count in enumerate(counts) if count]
    seen.sort(key=lambda k: (scores[-1]["class_accuracy"][k], k))
    return [(names[k], counts[k], [f"{own['class_accuracy'][k]:.1f}" for own in scores]) for k in seen[:HARDEST]]


def _sample(content: Any, names: Sequence[str]) -> Sample:
    label, url = int(content["label"]), str(content["image"])
    if not url.startswith("data:image/png;base64,"):
        raise ValueError
    answers = [(int(answer), float(share)) for answer, share in content["answers"]]
    return Sample(
        url, names[label], [(names[answer], f"{100 * share:.0f} %", answer == label) for answer, share in answers]
    )
