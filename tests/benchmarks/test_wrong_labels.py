from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch

from benchmarks import wrong_labels
from tests.helpers.stand_ins import CIFAR, cifar100


def test_a_share_of_the_labels_is_that_of_another_class() -> None:
    labels = torch.arange(1000) % 10
    changed = wrong_labels.wrong_labels(labels, 0.4, seed=3)
    assert int((changed != labels).sum()) == 400
    assert 0 <= int(changed.min()) <= int(changed.max()) <= 9
    shifts = torch.bincount((changed - labels) % 10, minlength=10)
    assert shifts[0] == 600
    assert int(shifts[1:].min()) > 20  # every other class is drawn
    assert not torch.equal(changed, wrong_labels.wrong_labels(labels, 0.4, seed=4))


def test_the_copy_differs_in_the_training_labels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cifar100(tmp_path, train=200, test=20)
    words = [CIFAR, "wrong", "--share", "0.2", "--label-column", "fine_label"]
    assert wrong_labels.main(words) == 0
    before, after = datasets.load_dataset(CIFAR), datasets.load_dataset("wrong")
    assert sum(a != b for a, b in zip(before["train"]["fine_label"], after["train"]["fine_label"], strict=True)) == 40
    assert before["test"]["fine_label"] == after["test"]["fine_label"]
    assert after["train"].features["fine_label"] == before["train"].features["fine_label"]
    assert before["train"][0]["img"].tobytes() == after["train"][0]["img"].tobytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [([CIFAR, "wrong", "--share", "1"], "--share: 1 is not allowed"), ([CIFAR, "."], ".: is there already")],
)
def test_mistakes_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrong_labels.main(words) == 2
    assert capsys.readouterr().err.startswith(f"benchmarks.wrong_labels: error: {line}")
