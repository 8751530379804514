"""SIGTERM and Ctrl-C: the step is finished, a checkpoint is written, and the run goes on as if nothing had been."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from feature_gan_kd import Interrupted
from feature_gan_kd.cli import command_line
from feature_gan_kd.training import checkpoint_files
from feature_gan_kd.training.checkpoint_files import load_newest
from feature_gan_kd.training.signals import StopSignals
from tests.helpers.runs import AtStep, assert_same_run, at_forward, build, records, steps_of

ROOT = Path(__file__).parents[2]


def sends(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    build(checkpoint_every_steps=None).fit(output_dir=folder)
    return folder


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> object:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 3), (signal.SIGTERM, 5), (signal.SIGTERM, 12)])
def test_a_signal_ends_the_run_after_its_step(number: int, step: int, undisturbed: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, and between its last update and its evaluation."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as stop:
        build(checkpoint_every_steps=None).fit(output_dir=folder, callbacks=[AtStep(step, sends(number))])
    assert isinstance(stop.value, Interrupted)
    assert stop.value.signal == number
    name = signal.Signals(number).name
    assert str(stop.value) == f"{name}: stopped after step {step} of 15, its checkpoint is in {folder}"
    assert steps_of(folder)[-1] == step
    build(checkpoint_every_steps=None).fit(output_dir=folder, resume=True)
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("grad_accum_steps", [1, 3])
def test_a_signal_in_the_middle_of_a_step(grad_accum_steps: int, tmp_path: Path) -> None:
    """The step is finished, with all parts of an accumulation."""
    settings = {"grad_accum_steps": grad_accum_steps, "checkpoint_every_steps": None, "epochs": 2}
    build(**settings).fit(output_dir=tmp_path / "undisturbed")
    distiller = build(**settings)
    at_forward(distiller.models[0], 6 * grad_accum_steps + 1, sends(signal.SIGTERM), training=True)
    with pytest.raises(Interrupted):
        distiller.fit(output_dir=tmp_path / "run")
    assert steps_of(tmp_path / "run") == [5, 7]
    build(**settings).fit(output_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_a_signal_in_an_evaluation(undisturbed: Path, tmp_path: Path) -> None:
    """It is not finished: the checkpoint has the updates of the epoch, and the run goes on with the evaluation."""
    folder, distiller = tmp_path / "run", build(checkpoint_every_steps=None)
    at_forward(distiller.models[1], 2, sends(signal.SIGTERM), training=False)
    with pytest.raises(Interrupted):
        distiller.fit(output_dir=folder)
    assert steps_of(folder) == [5, 10]
    assert [record["epoch"] for record in records(folder) if record["event"] == "epoch"] == [1]
    build(checkpoint_every_steps=None).fit(output_dir=folder, resume=True)
    assert_same_run(folder, undisturbed)


def test_a_second_ctrl_c_leaves_at_once(undisturbed: Path, tmp_path: Path) -> None:
    """Here while the checkpoint of the first one is written: the one before stays good."""
    folder, real = tmp_path / "run", checkpoint_files.save_file

    def save_file(*args: object) -> None:
        real(*args)
        if steps_of(folder) == [5]:
            assert (folder / "checkpoints" / ".step-7.writing").exists()
            sends(signal.SIGINT)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files, "save_file", save_file)
        with pytest.raises(KeyboardInterrupt) as stop:
            build(checkpoint_every_steps=None).fit(output_dir=folder, callbacks=[AtStep(7, sends(signal.SIGINT))])
    assert not isinstance(stop.value, Interrupted)
    assert steps_of(folder) == [5]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-5"]
    assert load_newest(folder / "checkpoints", None) is not None
    build(checkpoint_every_steps=None).fit(output_dir=folder, resume=True)
    assert_same_run(folder, undisturbed)


def test_a_second_sigterm_changes_nothing() -> None:
    with StopSignals() as signals:
        sends(signal.SIGTERM)()
        sends(signal.SIGTERM)()
        with pytest.raises(Interrupted, match="SIGTERM"):
            signals.check()


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup, or for a job that a shell put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            sends(signal.SIGINT)()
            signals.check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_another_thread_and_without_a_folder(tmp_path: Path) -> None:
    """A thread hears no signals and must not touch the handlers; without a folder nothing is promised."""
    results = []
    thread = threading.Thread(target=lambda: results.append(build(epochs=1).fit()))
    thread.start()
    thread.join()
    assert results[0].last["step"] == 5
    with pytest.raises(Interrupted, match="SIGINT: stopped after step 2 of 5, nothing was written"):
        build(epochs=1).fit(callbacks=[AtStep(2, sends(signal.SIGINT))])


# The program itself.


def train(folder: Path, data: Path, log: Path) -> subprocess.Popen[bytes]:
    """`train` in a session of its own, as a shell starts it, images read by a process of its own."""
    options = ["--models", "test_resnet", "test_vit", "--image-size", "16", "--augmentation", "resized-crop"]
    options += [
        "--epochs",
        "9",
        "--batch-size",
        "8",
        "--num-workers",
        "1",
        "--log-every-steps",
        "5",
        "--data",
        str(data),
    ]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "feature_gan_kd", "train", *options, "--output-dir", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=file,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_the_command_ends_with_the_command_that_goes_on(number: int, code: int, tmp_path: Path) -> None:
    """The signal reaches every process of the run, as that of a terminal or a scheduler does."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    from PIL import Image

    table = {"image": [Image.new("RGB", (16, 16), (k % 256, 0, 0)) for k in range(400)], "label": [0, 1] * 200}
    (tmp_path / "two words").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "two words" / f"{split}.parquet")
    log, run = tmp_path / "log", tmp_path / "run"
    process = train(run, tmp_path / "two words", log)
    begin = time.monotonic()
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():  # while images are read
        assert process.poll() is None, log.read_text()
        assert time.monotonic() - begin < 60
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(20) == code, log.read_text()
    *_, said, command = log.read_text().splitlines()
    name = signal.Signals(number).name
    assert said.startswith(f"feature-gan-kd: {name}: stopped after step ")
    assert said.endswith(f" of 450, its checkpoint is in {run}; continue it with")
    assert steps_of(run)[-1] == int(said.split()[5])
    assert shlex.split(command)[-3:] == ["--output-dir", str(run), "--resume"]
    assert str(tmp_path / "two words") in shlex.split(command)
    assert "Traceback" not in log.read_text()


def test_the_command_that_goes_on_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["train", "--data", "a b", "--resume", "--output-dir", "run"]
    monkeypatch.setattr(sys, "argv", ["/opt/x/feature-gan-kd", *typed])
    command_line.typed.set(typed)
    assert command_line.resume_command() == "/opt/x/feature-gan-kd train --data 'a b' --output-dir run --resume"
    monkeypatch.setattr(sys, "argv", ["/x/feature_gan_kd/__main__.py", *typed])
    assert command_line.resume_command().startswith(f"{shlex.quote(sys.executable)} -m feature_gan_kd train ")


def test_all_processes_stop_after_the_same_step(by_two: Path) -> None:
    """The signal reaches the second alone; the run that goes on ends as the undisturbed one."""
    folder = by_two / "stopped"
    said = [(folder / f"stopped-{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1]
    # In the seventh forward pass: the first two updates of several processes are rehearsed.
    assert said[0].startswith("SIGTERM: stopped after step 5 of 10")
    assert_same_run(folder / "run", folder / "undisturbed")
