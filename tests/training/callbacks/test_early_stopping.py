"""Early stopping: the rule, the same end after a resume, and on every process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd import Callback, EarlyStopping
from feature_gan_kd.training.history import History
from tests.helpers.runs import AtStep, assert_same_run, build

SETTINGS: dict[str, Any] = {"epochs": 30, "lr": 1e-4, "early_stopping_patience": 2}


class PowerCutError(Exception):
    """Stands for the power going off."""


def cut() -> None:
    raise PowerCutError


def record(accuracy: list[float], ensemble: float) -> dict[str, Any]:
    metrics = {f"eval/accuracy/{k}": value for k, value in enumerate(accuracy)}
    return {"epoch": 1, "metrics": {**metrics, "eval/accuracy/ensemble": ensemble, "train/accuracy/0": 99.0}}


def ends(stopping: EarlyStopping, *seen: tuple[list[float], float]) -> list[bool]:
    return [stopping.on_evaluate(record(*one)) for one in seen]


def test_any_new_best_counts() -> None:
    """Of the second model, then of the ensemble; falling and standing still do not."""
    seen = [([50.0, 40.0], 60.0), ([40.0, 41.0], 50.0), ([40.0, 40.0], 60.5), ([50.0, 41.0], 60.5), ([1.0, 1.0], 1.0)]
    assert ends(EarlyStopping(2), *seen) == [False, False, False, False, True]
    assert ends(EarlyStopping(1), *seen) == [False, False, False, True, True]


def test_a_least_gain() -> None:
    """Small gains add up against the best that counted."""
    seen = [([50.0], 50.0), ([50.4], 50.4), ([50.8], 50.8), ([51.2], 51.2), ([51.6], 51.6)]
    assert ends(EarlyStopping(3, min_delta=1.0), *seen) == [False] * 5
    assert ends(EarlyStopping(2, min_delta=1.0), *seen) == [False, False, True, False, False]


def test_a_model_that_is_never_right_still_ends() -> None:
    assert ends(EarlyStopping(2), *[([0.0], 0.0)] * 4) == [False, False, True, True]


def test_it_hears_again_what_was_before() -> None:
    history = History()
    for accuracy in (50.0, 60.0, 55.0):
        history.add(record([accuracy], 60.0))
    stopping = EarlyStopping(2)
    for _ in range(2):  # a second fit with the same object begins anew
        stopping.on_start(0, 9, history)
        assert ends(stopping, ([60.0], 60.0)) == [True]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    history = build(**SETTINGS).fit(output_dir=folder)
    assert 3 <= len(history.epochs) < 20
    return folder


def test_a_run_ends_where_the_rule_says(undisturbed: Path) -> None:
    """And publishes its last weights as one that came to its end."""
    epochs = [line for line in lines(undisturbed) if line["event"] == "epoch"]
    values = [[one["metrics"][f"eval/accuracy/{whose}"] for whose in (0, 1, "ensemble")] for one in epochs]
    rose = [
        k for k in range(len(values)) if any(values[k][i] > max([-1, *(v[i] for v in values[:k])]) for i in range(3))
    ]
    assert len(epochs) == rose[-1] + 1 + 2
    assert [one.get("stopped") for one in epochs] == [None] * (len(epochs) - 1) + [True]
    assert {path.name for path in (undisturbed / "networks").iterdir()} == {
        f"{k}-RandomModel{which}" for k in (0, 1) for which in ("", "-best")
    }


def test_a_resumed_run_ends_there_too(undisturbed: Path, tmp_path: Path) -> None:
    """Cut in the epoch in which the patience runs out, after one in which it had begun to."""
    last = lines(undisturbed)[-1]["step"]
    with pytest.raises(PowerCutError):
        build(**SETTINGS).fit(output_dir=tmp_path / "run", callbacks=[AtStep(last - 2, cut)])
    build(**SETTINGS).fit(output_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed)
    build(**SETTINGS).fit(output_dir=tmp_path / "run", resume=True)  # nothing is left to be done
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_callback_of_ones_own_ends_a_run(tmp_path: Path) -> None:
    """Once it has asked for the end the run is over, though a resumed one has another object."""

    class EnoughAt(Callback):
        def __init__(self, epoch: int) -> None:
            self.epoch = epoch

        def on_evaluate(self, record: dict[str, Any]) -> bool:
            return record["epoch"] == self.epoch

    history = build().fit(output_dir=tmp_path / "run", callbacks=[EnoughAt(2)])
    assert [one["epoch"] for one in history.epochs] == [1, 2]
    resumed = build().fit(output_dir=tmp_path / "run", resume=True)
    assert [one["epoch"] for one in resumed.epochs] == [1, 2]


def test_all_processes_end_after_the_same_epoch(by_one: Path, by_two: Path) -> None:
    """Only the first one hears the evaluations."""
    for folder in (by_one, by_two):
        epochs = [line["epoch"] for line in lines(folder / "ended early") if line["event"] == "epoch"]
        assert epochs == [1, 2, 3]
