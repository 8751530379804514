"""The table of results, the table of differences, the list of settings."""

from __future__ import annotations

import json
from pathlib import Path

from feature_gan_kd.report import read_run
from feature_gan_kd.report.accuracy_table import (
    AccuracyRow,
    accuracy_rows,
    compare_accuracies,
)
from feature_gan_kd.report.settings_table import differing_settings, list_settings
from tests.report.fake_runs import change_description, read_lines, write_lines, write_run


def test_the_settings_of_single_models_are_listed_and_compared(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "own")
    description = json.loads((folder / "config.json").read_text())
    description["models"][1] |= {"lr": 5e-4, "optimizer": "adamw"}
    (folder / "config.json").write_text(json.dumps(description))
    own, plain = read_run(folder), read_run(write_run(tmp_path / "plain"))
    assert ("lr of model 1", "0.0005", True) in list_settings(own)
    assert dict(differing_settings([own, plain])) == {
        "lr of model 1": ["0.0005", "-"],
        "optimizer of model 1": ["adamw", "-"],
    }


def test_results_of_one_run(tmp_path: Path) -> None:
    assert accuracy_rows(read_run(write_run(tmp_path))) == [
        AccuracyRow("0 cifar_resnet20", "0", "62.00", "64.00", "2"),
        AccuracyRow("1 cifar_resnet32", "1", "62.25", "64.25", "2"),
        AccuracyRow("ensemble", "ink", "71.00", "72.00", "2"),
    ]
    assert accuracy_rows(read_run(write_run(tmp_path / "young", epochs=0))) == []


def test_runs_against_the_first(tmp_path: Path) -> None:
    better = write_run(tmp_path / "b", names=["cifar_resnet20", "vit", "wrn"], epochs=4, planned=4)
    lines = read_lines(better)
    lines[-1]["metrics"]["eval/accuracy/0"] = 61.5
    write_lines(better, lines)
    found = compare_accuracies([read_run(write_run(tmp_path / "a")), read_run(better)], ["a", "b"])
    assert list(found) == ["0 cifar_resnet20", "model 1", "2 wrn", "ensemble"]
    assert found["0 cifar_resnet20"] == [
        AccuracyRow("a", "0", "62.00", "64.00", "2"),
        AccuracyRow("b", "1", "61.50", "66.00", "3", "-0.50", "+2.00"),
    ]
    assert found["2 wrn"] == [AccuracyRow("b", "1", "64.50", "66.50", "3")]


def test_settings_that_differ(tmp_path: Path) -> None:
    first, same = (read_run(write_run(tmp_path / name)) for name in "ab")
    assert differing_settings([first, same]) == []
    change_description(write_run(tmp_path / "c", method="logit", seed=3, names=["x", "y", "z"]), device="cpu")
    other = read_run(tmp_path / "c")
    rows = dict(differing_settings([first, same, other]))
    assert rows == {
        "method": ["afd", "afd", "logit"],
        "adversarial_weight": ["1.0", "1.0", "0.0"],
        "seed": ["0", "0", "3"],
        "model 0": ["cifar_resnet20", "cifar_resnet20", "x"],
        "model 1": ["cifar_resnet32", "cifar_resnet32", "y"],
        "model 2": ["-", "-", "z"],
        "topology": ["0 → 1, 1 → 0", "0 → 1, 1 → 0", "0 → 1, 1 → 2, 2 → 0"],
        "device": ["-", "-", "cpu"],
    }


def test_the_command_is_no_setting(tmp_path: Path) -> None:
    runs = [read_run(change_description(write_run(tmp_path / name), command=name)) for name in "ab"]
    assert differing_settings(runs) == []


def test_settings_with_their_defaults(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, lr=0.05, milestones=[0.5, 0.75]))
    own = {name: value for name, value, is_own in list_settings(run) if is_own}
    assert own == {"epochs": "3", "lr": "0.05"}
    assert ("batch_size", "128", False) in list_settings(run)
    assert ("clip_grad", "none", False) in list_settings(run)
    assert ("momentum", "0.9", False) in list_settings(run)  # as the recipe has it


def test_a_setting_that_is_the_same_by_another_way_does_not_differ(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / "a", lr=0.01)), read_run(write_run(tmp_path / "b", recipe="finetune"))]
    rows = dict(differing_settings(runs))
    assert "lr" not in rows
    assert rows["recipe"] == ["auto", "finetune"]
    assert rows["scheduler"] == ["multistep", "cosine"]
