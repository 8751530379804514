"""Scores against figures that are counted image by image, and a whole pass of evaluation."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.training import scores
from feature_gan_kd.training.evaluate import evaluate
from feature_gan_kd.training.scores import ScoreCounts


def counted(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The figures, image by image and class by class, in plain Python."""
    answers = [max(range(len(row)), key=row.__getitem__) for row in logits.tolist()]
    among = [
        label in sorted(range(len(row)), key=row.__getitem__)[-5:]
        for row, label in zip(logits.tolist(), labels, strict=True)
    ]
    pairs = list(zip(labels.tolist(), answers, strict=True))
    shares, f1 = [], []
    for k in range(logits.shape[1]):
        own = [answer == k for label, answer in pairs if label == k]
        shares.append(100 * sum(own) / len(own) if own else None)
        named = [label == k for label, answer in pairs if answer == k]
        if own or named:
            precision, recall = (sum(one) / len(one) if one else 0.0 for one in (named, own))
            f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    return {
        "accuracy": 100 * sum(a == b for a, b in pairs) / len(pairs),
        "top5": 100 * sum(among) / len(among) if logits.shape[1] > 5 else None,
        "cross_entropy": float(F.cross_entropy(logits.double(), labels)),
        "macro_f1": 100 * sum(f1) / len(f1),
        "class_accuracy": shares,
        "confusions": sorted(((*pair, n) for pair, n in wrong.items()), key=lambda one: (-one[2], *one[:2])),
    }


@pytest.mark.parametrize("classes", [3, 8])
@pytest.mark.parametrize("matrix", [True, False])
def test_they_are_what_counting_gives(classes: int, matrix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 1 has no image, class 0 is never answered; two batches of different sizes."""
    monkeypatch.setattr(scores, "MAX_CONFUSION_CLASSES", 100 if matrix else 2)
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, 41, classes, generator=generator)
    logits[..., 0] = -9
    labels = torch.randint(0, classes, (41,), generator=generator)
    labels[labels == 1] = 2
    counts = ScoreCounts(2, classes, None)
    for part in (slice(0, 30), slice(30, 41)):
        for owner, own in enumerate(logits[:, part]):
            counts.add(owner, own, labels[part])
    found, class_images = counts.scores()
    assert class_images == [int((labels == k).sum()) for k in range(classes)]
    for own, expected in zip(found, (counted(one, labels) for one in logits), strict=True):
        for name in ("accuracy", "top5", "cross_entropy", "macro_f1"):
            value = expected[name]
            assert getattr(own, name) == (None if value is None else pytest.approx(value, rel=1e-5)), name
        assert own.class_accuracy == pytest.approx(expected["class_accuracy"])
        assert own.confusions == (expected["confusions"] if matrix else [])


class Fixed(nn.Module):
    """Answers with what the images hold, scaled."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 4)."""
        self.calls += 1
        return images.flatten(1) * self.scale


def test_teams_share_a_pass() -> None:
    """Each team has its own ensemble; a model of two teams is asked once for each batch."""
    images = torch.randn(6, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    a, b, c = Fixed(1.0), Fixed(-3.0), Fixed(0.5)
    seen: list[list[Tensor]] = []
    first, second = evaluate(
        [[a, b], [a, c]], [(images, labels)], 4, on_first_batch=lambda *batch: seen.append(batch[2])
    )
    assert a.calls == 1
    assert first.models[0] == second.models[0]
    assert first.ensemble.accuracy == counted(images.flatten(1) * -1, labels)["accuracy"]
    assert second.ensemble.accuracy == counted(images.flatten(1) * 0.75, labels)["accuracy"]
    torch.testing.assert_close(seen[0][1], images.flatten(1) * -3)
    assert [first.images, first.class_images] == [6, [2, 2, 1, 1]]
    assert not math.isnan(first.models[1].macro_f1)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(UserError, match=r"^evaluation data: it holds no images"):
        evaluate([[Fixed(1.0)]], [], 4)
