"""The table of results, the table of differences, the list of settings."""

from __future__ import annotations

from pathlib import Path

from feature_gan_kd.report import read_run
from feature_gan_kd.report.compare import Result, compared, differing, results_of, settings_of
from tests.report.written import change_description, read_lines, write_lines, write_run


def test_results_of_one_run(tmp_path: Path) -> None:
    assert results_of(read_run(write_run(tmp_path))) == [
        Result("0 cifar_resnet20", "0", "62.00", "64.00", "2"),
        Result("1 cifar_resnet32", "1", "62.25", "64.25", "2"),
        Result("ensemble", "ink", "71.00", "72.00", "2"),
    ]
    assert results_of(read_run(write_run(tmp_path / "young", epochs=0))) == []


def test_runs_against_the_first(tmp_path: Path) -> None:
    better = write_run(tmp_path / "b", names=["cifar_resnet20", "vit", "wrn"], epochs=4, planned=4)
    lines = read_lines(better)
    lines[-1]["accuracy"][0] = 61.5
    write_lines(better, lines)
    found = compared([read_run(write_run(tmp_path / "a")), read_run(better)], ["a", "b"])
    assert list(found) == ["0 cifar_resnet20", "model 1", "2 wrn", "ensemble"]
    assert found["0 cifar_resnet20"] == [
        Result("a", "0", "62.00", "64.00", "2"),
        Result("b", "1", "61.50", "66.00", "3", "-0.50", "+2.00"),
    ]
    assert found["2 wrn"] == [Result("b", "1", "64.50", "66.50", "3")]


def test_settings_that_differ(tmp_path: Path) -> None:
    first, same = (read_run(write_run(tmp_path / name)) for name in "ab")
    assert differing([first, same]) == []
    change_description(write_run(tmp_path / "c", method="logit", seed=3, names=["x", "y", "z"]), device="cpu")
    other = read_run(tmp_path / "c")
    rows = dict(differing([first, same, other]))
    assert rows == {
        "method": ["afd", "afd", "logit"],
        "adversarial_weight": ["1", "1", "0.0"],
        "seed": ["0", "0", "3"],
        "model 0": ["cifar_resnet20", "cifar_resnet20", "x"],
        "model 1": ["cifar_resnet32", "cifar_resnet32", "y"],
        "model 2": ["-", "-", "z"],
        "edges": ["0 → 1, 1 → 0", "0 → 1, 1 → 0", "0 → 1, 1 → 2, 2 → 0"],
        "device": ["-", "-", "cpu"],
    }


def test_the_command_is_no_setting(tmp_path: Path) -> None:
    runs = [read_run(change_description(write_run(tmp_path / name), command=name)) for name in "ab"]
    assert differing(runs) == []


def test_settings_with_their_defaults(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, lr=0.05, milestones=[0.5, 0.75]))
    own = {name: value for name, value, is_own in settings_of(run) if is_own}
    assert own == {"epochs": "3", "lr": "0.05", "milestones": "0.5, 0.75"}
    assert ("batch_size", "128", False) in settings_of(run)
    assert ("clip_grad", "none", False) in settings_of(run)
    assert ("momentum", "0.9", False) in settings_of(run)  # as the recipe has it


def test_a_setting_that_is_the_same_by_another_way_does_not_differ(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / "a", lr=0.01)), read_run(write_run(tmp_path / "b", recipe="finetune"))]
    rows = dict(differing(runs))
    assert "lr" not in rows
    assert rows["recipe"] == ["auto", "finetune"]
    assert rows["scheduler"] == ["multistep", "cosine"]


def test_settings_of_another_version_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = change_description(
        write_run(tmp_path), config={"method": "afd", "epochs": 3, "batch_size": 8, "seed": 0, "x": 1}
    )
    assert ("x", "1", True) in settings_of(read_run(folder))
