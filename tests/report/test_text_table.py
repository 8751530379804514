"""The table of a run whose records are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_gan_kd.cli import main
from feature_gan_kd.report import comparison_table, read_run, results_table
from feature_gan_kd.training.history import History
from tests.report.fake_runs import read_lines, write_lines, write_run


class TestTable:
    def test_table_agrees_with_the_history(self, real: tuple[Path, History]) -> None:
        folder, history = real
        rows = [line.split() for line in results_table(read_run(folder)).splitlines()]
        for k, name in enumerate(("test_resnet", "test_vit")):
            best = history.best[k]
            last = history.epochs[-1]["metrics"][f"eval/accuracy/{k}"]
            assert rows[k + 1] == [str(k), name, f"{last:.2f}", f"{best['accuracy']:.2f}", str(best["epoch"])]
        assert rows[3][:2] == ["ensemble", f"{history.epochs[-1]['metrics']['eval/accuracy/ensemble']:.2f}"]

    def test_exactly(self, tmp_path: Path) -> None:
        assert results_table(read_run(write_run(tmp_path))).splitlines() == [
            "model             last top-1 %  best top-1 %  in epoch",
            "0 cifar_resnet20         62.00         64.00         2",
            "1 cifar_resnet32         62.25         64.25         2",
            "ensemble                 71.00         72.00         2",
            "",
            "method afd · 3 of 3 epochs · 50,000 training images, 10,000 evaluation images · batch 128 · seed 0 · "
            "6.0 s · 200 images/s",
        ]

    def test_unfinished_with_a_frozen_teacher(self, tmp_path: Path) -> None:
        run = write_run(tmp_path, epochs=1, planned=30, frozen=[0], edges=[(0, 1)])
        lines = results_table(read_run(run)).splitlines()
        assert lines[1] == "0 cifar_resnet20 (frozen)         62.00         62.00         1"
        assert lines[-1].startswith("method afd · 1 of 30 epochs · ")

    def test_before_the_first_epoch_is_done(self, tmp_path: Path) -> None:
        lines = results_table(read_run(write_run(tmp_path, epochs=0))).splitlines()
        assert lines[1].split() == ["0", "cifar_resnet20", "-", "-", "-"]
        assert lines[-1].endswith("batch 128 · seed 0")


def test_runs_beside_each_other(tmp_path: Path) -> None:
    """A model that only one of them has gets a dash."""
    alone, together = write_run(tmp_path / "alone", epochs=2), write_run(tmp_path / "together", names=["a", "b", "c"])
    text = comparison_table([read_run(alone), read_run(together)], ["alone", "together"])
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][-2:] == ["alone", "together"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2", "ensemble"]
    last, other = (read_run(folder).epochs[-1]["metrics"] for folder in (alone, together))
    assert rows[1][-2:] == [f"{last['eval/accuracy/0']:.2f}", f"{other['eval/accuracy/0']:.2f}"]
    assert rows[3][-2:] == ["-", f"{other['eval/accuracy/2']:.2f}"]


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_run(tmp_path / name)) for name in ("alone", "together")]
    main(["report", *folders])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.split()[-2:] == ["alone", "together"]
    assert last.endswith("report.html")


def test_the_best_epoch_is_that_of_the_best_metric(tmp_path: Path) -> None:
    """As `-best` is published: by cross-entropy the first epoch, though a later one has the best accuracy."""
    folder = write_run(tmp_path, epochs=3, best_metric="cross_entropy")
    lines = read_lines(folder)
    for epoch, line in enumerate(one for one in lines if one["event"] == "epoch"):
        line["metrics"]["eval/cross_entropy/0"] = [0.5, 0.9, 0.7][epoch]
    write_lines(folder, lines)
    run = read_run(folder)
    text = results_table(run)
    first = run.epochs[0]["metrics"]["eval/accuracy/0"]
    row = next(line.split() for line in text.splitlines() if line.startswith("0 "))
    assert row[-2:] == [f"{first:.2f}", "1"]
    assert "at best cross_entropy" in text.splitlines()[0]
    assert "best epochs by cross_entropy" in text
