from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from benchmarks import few_labels
from tests.helpers.stand_ins import CIFAR, cifar100


def test_runs_have_as_many_updates_and_are_tabulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar100(tmp_path, train=400, test=20)
    regime = few_labels.REGIMES["scratch"]
    settings = {**regime.settings, "image_size": 8}
    small = dataclasses.replace(
        regime, networks=("cifar_resnet8", "cifar_resnet8"), images=300, updates=4, settings=settings
    )
    monkeypatch.setitem(few_labels.REGIMES, "scratch", small)
    arms = ["logit, labelled images alone", "logit, with the others"]
    words = ["--data", CIFAR, "--output-dir", "out", "--labels", "1", "--seeds", "0", "1", "--arms", *arms]
    assert few_labels.main(words) == 0
    results = [json.loads(path.read_text()) for path in sorted(Path("out/scratch").glob("*.json"))]
    assert len(results) == 4
    assert {one["updates"] for one in results} == {7, 8}  # whole epochs of 7 and of 2 updates
    assert few_labels.main(words) == 0  # nothing is repeated
    capsys.readouterr()
    assert few_labels.main(["--tabulate", "out/scratch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == arms
    assert few_labels.main([]) == 2
    first = sorted(Path("out/scratch").glob("*.json"))[0]
    first.write_text(json.dumps({**results[0], "processor": "another"}))  # never averaged with the others
    assert few_labels.main(["--tabulate", "out/scratch"]) == 2
    first.write_text(json.dumps({**results[0], "settings": {"method": "dml"}}))
    assert few_labels.main(["--tabulate", "out/scratch"]) == 2
    assert "holds results of different settings" in capsys.readouterr().err


def test_labels_are_drawn_from_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regime = dataclasses.replace(few_labels.REGIMES["scratch"], images=300)
    monkeypatch.chdir(tmp_path)
    cifar100(tmp_path, train=400, test=20)
    data = datasets.load_dataset(CIFAR)["train"]
    both = few_labels.draw(data, regime, 2, seed=0, others=True)
    counts = Counter(both["fine_label"])
    assert counts.pop(-1) == 100
    assert set(counts.values()) == {2}
    alone = few_labels.draw(data, regime, 2, seed=0, others=False)
    assert sorted(alone["fine_label"]) == sorted(label for label in both["fine_label"] if label >= 0)
