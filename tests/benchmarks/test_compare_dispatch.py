"""Runs side by side, stopped, killed and resumed; a stand-in replaces the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks.compare.__main__ import main
from benchmarks.compare.dispatch import Outcome, run_all
from benchmarks.compare.runs import Machine, Run, list_runs, start
from feature_gan_kd.utils.files import atomic_file
from feature_gan_kd.utils.processor import processor_name
from tests.benchmarks.records import evaluation

ROOT = Path(__file__).parents[2]
LAUNCH = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
MACHINE = Machine(jobs=2, threads=1, launch=LAUNCH)


def count_starts(run: Run) -> int:
    """How often a run's process was started."""
    path = run.folder / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until(happened: Callable[[], bool]) -> None:
    """Waits for an event."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def command(folder: Path, *more: str) -> list[str]:
    """The command of a comparison."""
    words = [sys.executable, "-m", "benchmarks.compare", "--preset", "smoke", "--output-dir", str(folder)]
    return [*words, "--launch", " ".join(LAUNCH), *more]


def started(folder: Path, *more: str, seconds: float) -> subprocess.Popen[str]:
    """A comparison in a process, whose runs take some seconds."""
    environment = {**os.environ, "SECONDS": str(seconds)}

    def receive() -> None:  # also where the tests themselves run in the background, which ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command(folder, *more), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, preexec_fn=receive
    )


def test_every_run_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = list_runs("smoke", tmp_path)
    assert run_all(runs, data=None, machine=MACHINE) == Outcome(0, [], 0)
    assert run_all(runs, data=None, machine=MACHINE) == Outcome(0, [], 0)
    assert [count_starts(run) for run in runs] == [1] * 8
    assert capsys.readouterr().out.splitlines()[-1] == "8 runs, 8 finished"
    result = json.loads(runs[0].result.read_text())
    assert result["config"]["method"] == result["method"] == "vanilla"
    metrics = {"train/cross_entropy/0": 1.235, **evaluation(5.0, 6.0, 7.0), "eval/images": 4}
    assert [epoch["metrics"] for epoch in result["epochs"]] == [metrics] * 2
    assert (result["device"], result["processor"], result["precision"]) == ("cpu", processor_name(), "fp32")
    # Only what the command gives: a setting that a later version drops breaks no result.
    given = {"method", "seed", "epochs", "batch_size", "image_size", "max_train_samples", "max_eval_samples"}
    assert result["config"].keys() == given | {"lr", "adversarial_lr", "discriminator_lr"}
    assert result["launch"] == list(LAUNCH)


def test_a_run_that_another_has_just_finished_is_not_started(tmp_path: Path) -> None:
    (run,) = list_runs("smoke", tmp_path, ["*/vanilla/0"])
    run.result.parent.mkdir()
    run.result.write_text("{}")
    assert start(run, None, MACHINE) is None
    assert count_starts(run) == 0
    run.result.unlink()
    training = start(run, None, MACHINE)
    assert training is not None
    assert start(run, None, MACHINE) is None
    training.process.wait()
    training.log.close()
    assert count_starts(run) == 1


def test_a_failed_run_stops_only_those_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "vanilla")
    words = command(tmp_path, "--jobs", "2")[3:]
    assert main(words) == 1
    runs = {run.name: run for run in list_runs("smoke", tmp_path)}
    finished = [name for name, run in runs.items() if run.result.exists()]
    assert finished == ["tiny/logit/0", "tiny/afd/0", "tiny/logit/1", "tiny/afd/1"]
    lines = capsys.readouterr().err.splitlines()
    log = runs["tiny/vanilla/0"].log
    assert f"failed: tiny/vanilla/0: no luck with this one (status 3, see {log})" in lines
    assert "failed: tiny/offline-logit/1: needs tiny/vanilla/1 first" in lines
    assert lines[-1] == "4 of 8 runs are not finished: give the same command again to resume"
    monkeypatch.delenv("FAIL")
    assert main(words) == 0
    assert count_starts(runs["tiny/logit/0"]) == 1
    assert count_starts(runs["tiny/offline-logit/0"]) == 1


def test_results_alone_do_not_make_a_teacher(tmp_path: Path) -> None:
    """As where a comparison is resumed from committed results, which come without the models."""
    (vanilla,) = list_runs("smoke", tmp_path, ["tiny/vanilla/0"])
    vanilla.result.parent.mkdir()
    vanilla.result.write_text("{}")
    offline = list_runs("smoke", tmp_path, ["tiny/offline-logit/0"])
    outcome = run_all(offline, data=None, machine=MACHINE)
    missing = vanilla.folder / "networks" / "1-test_vit"
    said = f"{missing} does not exist: remove {vanilla.result}, so that its model is trained again"
    assert outcome.failed == [f"tiny/offline-logit/0: {said}"]
    vanilla.result.unlink()
    assert run_all([vanilla, *offline], data=None, machine=MACHINE).unfinished == 0


def test_a_result_that_cannot_be_written_is_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list_runs("smoke", tmp_path, ["*/afd/0", "*/logit/0"])

    def full_for_one(path: Path) -> AbstractContextManager[Path]:
        if path == runs[0].result:
            raise OSError(28, "No space left on device")
        return atomic_file(path)

    monkeypatch.setattr("benchmarks.compare.runs.atomic_file", full_for_one)
    outcome = run_all(runs, data=None, machine=MACHINE)
    assert outcome.unfinished == 1
    assert [line.split(": ")[:3] for line in outcome.failed] == [
        ["tiny/logit/0", "its result cannot be written", "OSError"]
    ]


def test_runs_share_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELL", "CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("SECONDS", "1")
    runs = list_runs("smoke", tmp_path, ["*/vanilla/*", "*/logit/*"])
    run_all(runs, data=None, machine=Machine(jobs=4, threads=1, gpus=(3, 5), launch=LAUNCH))
    assert sorted(run.log.read_text().splitlines()[1] for run in runs) == ["3", "3", "5", "5"]


def test_the_time_limit_stops_the_runs(tmp_path: Path) -> None:
    runs = list_runs("smoke", tmp_path, ["*/vanilla/0", "*/logit/0"])
    words = command(tmp_path, "--only", "*/vanilla/0", "*/logit/0", "--minutes", "0.05")
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "SECONDS": "60"}, capture_output=True, text=True)
    assert (done.returncode, count_starts(runs[0]), count_starts(runs[1])) == (0, 1, 0)
    assert done.stderr == "2 of 2 runs are not finished: give the same command again to resume\n"
    assert run_all(runs, data=None, machine=MACHINE) == Outcome(0, [], 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs(tmp_path: Path, number: signal.Signals) -> None:
    runs = list_runs("smoke", tmp_path, ["*/vanilla/0", "*/logit/0"])
    process = started(tmp_path, "--jobs", "2", seconds=60)
    wait_until(lambda: all(count_starts(run) for run in runs))
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 128 + number
    for run in runs:
        assert f"{run.name} stopped" in said
        with pytest.raises(ProcessLookupError):
            os.kill(int((run.folder / "starts").read_text()), 0)


def test_a_killed_comparison_is_resumed(tmp_path: Path) -> None:
    run, other = list_runs("smoke", tmp_path, ["*/vanilla/0", "*/logit/0"])
    process = started(tmp_path, "--only", "*/vanilla/0", "*/logit/0", seconds=4)
    wait_until(lambda: count_starts(run) == 1)
    process.kill()
    process.communicate()
    # The run that it started continues by itself; meanwhile nobody starts it a second time.
    heard = subprocess.run(command(tmp_path, "--only", run.name), cwd=ROOT, capture_output=True, text=True)
    assert f"{run.name} is running in another process" in heard.stdout
    assert run.result.exists()
    assert count_starts(other) == 0
    assert run_all([run, other], data=None, machine=MACHINE).unfinished == 0
    # The killed comparison started it once; the second start found that nothing was left to do.
    assert count_starts(run) == 2


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    (run,) = list_runs("smoke", tmp_path, ["*/vanilla/0"])
    process = started(tmp_path, "--only", run.name, seconds=60)
    wait_until(lambda: count_starts(run) == 1)
    os.kill(int((run.folder / "starts").read_text()), signal.SIGKILL)
    assert process.communicate()[0].splitlines()[-1].endswith("tiny/vanilla/0 failed")
    assert process.returncode == 1
    assert run_all([run], data=None, machine=MACHINE) == Outcome(0, [], 0)


def test_two_comparisons_share_the_runs_of_a_folder(tmp_path: Path) -> None:
    processes = [started(tmp_path, "--jobs", "2", seconds=0.3) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    assert [count_starts(run) for run in list_runs("smoke", tmp_path)] == [1] * 8
