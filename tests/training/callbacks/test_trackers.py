"""Trackers, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from feature_gan_kd import UserError
from feature_gan_kd.cli import main
from tests.helpers.runs import AtStep, build

Figures = dict[str, list[tuple[int, float]]]


def cut() -> None:
    raise RuntimeError("the power went off")


def read(folder: Path) -> Figures:
    """What TensorBoard would show of a run: by name, steps and values."""
    reader = EventAccumulator(str(folder / "trackers" / "feature-gan-kd"))
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def recorded(folder: Path) -> Figures:
    """The same from `metrics.jsonl`."""
    found: Figures = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record["metrics"].items():
            # The record of an epoch repeats the metrics of its last updates.
            if (record["step"], value) not in found.get(name, []):
                found.setdefault(name, []).append((record["step"], value))
    return found


def assert_same(shown: Figures, expected: Figures) -> None:
    assert shown.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points], name
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


def test_tensorboard_has_every_figure(tmp_path: Path) -> None:
    build().fit(output_dir=tmp_path / "run", log_with="tensorboard")
    shown = read(tmp_path / "run")
    assert_same(shown, recorded(tmp_path / "run"))
    assert {
        "train/cross_entropy/0",
        "train/accuracy/1",
        "train/real/0->1",
        "train/images_per_second",
        "train/epoch_images_per_second",
        "lr/logit",
        "eval/accuracy/1",
        "eval/accuracy/ensemble",
        "eval/cross_entropy/0",
        "eval/images",
    } <= set(shown)
    assert {name.split("/")[0] for name in shown} == {"train", "eval", "lr"}
    assert len(shown["eval/accuracy/ensemble"]) == 3


def test_settings_are_there(tmp_path: Path) -> None:
    build(epochs=1).fit(output_dir=tmp_path / "run", log_with=["tensorboard"])
    (settings,) = (tmp_path / "run" / "trackers" / "feature-gan-kd").rglob("hparams.yml")
    text = settings.read_text()
    assert "method: afd" in text
    assert "lr: 0.05" in text


def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    """Updates that were logged after the last checkpoint, and done again, stand there once."""
    settings: dict[str, Any] = {"checkpoint_every_steps": 6, "log_every_steps": 1}
    with pytest.raises(RuntimeError):
        build(**settings).fit(output_dir=tmp_path / "run", log_with="tensorboard", callbacks=[AtStep(9, cut)])
    assert max(step for step, _ in read(tmp_path / "run")["train/kl/0"]) == 8
    build(**settings).fit(output_dir=tmp_path / "run", log_with="tensorboard", resume=True)
    assert_same(read(tmp_path / "run"), recorded(tmp_path / "run"))


class Listening(GeneralTracker):
    """A tracker of the user's own, as Accelerate documents them."""

    name = "listening"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.ended = False

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing."""

    def log(self, values: dict[str, Any], step: int | None, **kwargs: Any) -> None:
        """Keeps the step."""
        self.steps.append(step or 0)

    def finish(self) -> None:
        """Is over."""
        self.ended = True


def test_trackers_that_run_already_are_told_and_left_running() -> None:
    own = Listening()
    accelerator = Accelerator(log_with=own)
    accelerator.init_trackers("mine")
    build(epochs=1, accelerator=accelerator).fit()
    assert own.steps == [2, 4, 5, 5]
    assert not own.ended


def test_without_trackers_nothing_of_them_is_written(tmp_path: Path) -> None:
    build(epochs=1).fit(output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "trackers").exists()


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^log_with: 'tensorbord' is not allowed.*the closest is tensorboard$"):
        build().fit(output_dir=tmp_path / "run", log_with="tensorbord")
    with pytest.raises(UserError, match=r"^log_with: tensorboard writes files: give output_dir"):
        build().fit(log_with="tensorboard")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "'feature-gan-kd[trackers]'"), ("wandb", "wandb"), ("comet_ml", "comet_ml")],
)
def test_what_is_not_installed(
    name: str, package: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--epochs", "1", "--output-dir", "run", "--log-with", name])
    line = f"feature-gan-kd: error: --log-with: {name} is not installed: pip install {package}\n"
    assert capsys.readouterr().err == line
    assert not (here / "run").exists()


def test_wandb_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are in the run's folder, not where the command was typed."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    build(epochs=1).fit(output_dir=tmp_path / "run", log_with="wandb")
    (log,) = (tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    assert log.stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
