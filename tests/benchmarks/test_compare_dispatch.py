"""Runs side by side, stopped, killed and gone on with; a stand-in takes the place of the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.compare.__main__ import main
from benchmarks.compare.dispatch import Outcome, carry_out
from benchmarks.compare.runs import Machine, Run, begin, grid

ROOT = Path(__file__).parents[2]
LAUNCH = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
MACHINE = Machine(jobs=2, threads=1, launch=LAUNCH)


def starts(run: Run) -> int:
    """How often a run's process was started."""
    path = run.place / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def until(happened: Callable[[], bool]) -> None:
    """Waits for it."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def command(folder: Path, *more: str) -> list[str]:
    """Of a comparison in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.compare", "--preset", "smoke", "--output-dir", str(folder)]
    return [*words, "--launch", " ".join(LAUNCH), *more]


def begun(folder: Path, *more: str, seconds: float) -> subprocess.Popen[str]:
    """A comparison whose runs take a while."""
    environment = {**os.environ, "SECONDS": str(seconds)}

    def hear() -> None:  # also where the tests themselves run in the background, deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command(folder, *more), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, preexec_fn=hear
    )


def test_every_run_is_carried_out_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = grid("smoke", tmp_path)
    assert carry_out(runs, data=None, machine=MACHINE) == Outcome(0, [], 0)
    assert carry_out(runs, data=None, machine=MACHINE) == Outcome(0, [], 0)
    assert [starts(run) for run in runs] == [1] * 8
    assert capsys.readouterr().out.splitlines()[-1] == "8 runs, 8 finished"
    result = json.loads(runs[0].result.read_text())
    assert result["config"]["method"] == result["method"] == "vanilla"
    assert [epoch["accuracy"] for epoch in result["epochs"]] == [[5, 6]] * 2
    assert result["launch"] == list(LAUNCH)


def test_a_run_that_another_has_just_finished_is_not_begun(tmp_path: Path) -> None:
    (run,) = grid("smoke", tmp_path, ["*/vanilla/0"])
    run.result.parent.mkdir()
    run.result.write_text("{}")
    assert begin(run, None, MACHINE) is None
    assert starts(run) == 0
    run.result.unlink()
    training = begin(run, None, MACHINE)
    assert training is not None
    assert begin(run, None, MACHINE) is None
    training.process.wait()
    training.log.close()
    assert starts(run) == 1


def test_a_failed_run_stops_only_those_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "vanilla")
    words = command(tmp_path, "--jobs", "2")[3:]
    assert main(words) == 1
    runs = {run.name: run for run in grid("smoke", tmp_path)}
    finished = [name for name, run in runs.items() if run.result.exists()]
    assert finished == ["tiny/logit/0", "tiny/afd/0", "tiny/logit/1", "tiny/afd/1"]
    lines = capsys.readouterr().err.splitlines()
    log = runs["tiny/vanilla/0"].log
    assert f"failed: tiny/vanilla/0: no luck with this one (status 3, see {log})" in lines
    assert "failed: tiny/offline-kl/1: needs tiny/vanilla/1 first" in lines
    assert lines[-1] == "4 of 8 runs are not finished: the same command goes on"
    monkeypatch.delenv("FAIL")
    assert main(words) == 0
    assert starts(runs["tiny/logit/0"]) == 1
    assert starts(runs["tiny/offline-kl/0"]) == 1


def test_results_alone_do_not_make_a_teacher(tmp_path: Path) -> None:
    """As where the committed results are gone on with: they come without the models."""
    (vanilla,) = grid("smoke", tmp_path, ["tiny/vanilla/0"])
    vanilla.result.parent.mkdir()
    vanilla.result.write_text("{}")
    offline = grid("smoke", tmp_path, ["tiny/offline-kl/0"])
    outcome = carry_out(offline, data=None, machine=MACHINE)
    missing = vanilla.place / "networks" / "1-test_vit"
    said = f"{missing} is not there: remove {vanilla.result}, so that its model is trained again"
    assert outcome.failed == [f"tiny/offline-kl/0: {said}"]
    vanilla.result.unlink()
    assert carry_out([vanilla, *offline], data=None, machine=MACHINE).unfinished == 0


def test_what_cannot_be_kept_is_a_failure_too(tmp_path: Path) -> None:
    runs = grid("smoke", tmp_path, ["*/afd/0", "*/logit/0"])
    runs[0].result.parent.mkdir()
    runs[0].result.with_name(f".{runs[0].result.name}.writing").mkdir()
    outcome = carry_out(runs, data=None, machine=MACHINE)
    assert outcome.unfinished == 1
    assert [line.split(": ")[:3] for line in outcome.failed] == [
        ["tiny/logit/0", "its result cannot be kept", "IsADirectoryError"]
    ]


def test_gpus_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELL", "CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("SECONDS", "1")
    runs = grid("smoke", tmp_path, ["*/vanilla/*", "*/logit/*"])
    carry_out(runs, data=None, machine=Machine(jobs=4, threads=1, gpus=(3, 5), launch=LAUNCH))
    assert sorted(run.log.read_text().splitlines()[1] for run in runs) == ["3", "3", "5", "5"]


def test_the_time_is_over(tmp_path: Path) -> None:
    runs = grid("smoke", tmp_path, ["*/vanilla/0", "*/logit/0"])
    words = command(tmp_path, "--only", "*/vanilla/0", "*/logit/0", "--minutes", "0.05")
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "SECONDS": "60"}, capture_output=True, text=True)
    assert (done.returncode, starts(runs[0]), starts(runs[1])) == (0, 1, 0)
    assert done.stderr == "2 of 2 runs are not finished: the same command goes on\n"
    assert carry_out(runs, data=None, machine=MACHINE) == Outcome(0, [], 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs(tmp_path: Path, number: signal.Signals) -> None:
    runs = grid("smoke", tmp_path, ["*/vanilla/0", "*/logit/0"])
    process = begun(tmp_path, "--jobs", "2", seconds=60)
    until(lambda: all(starts(run) for run in runs))
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 128 + number
    for run in runs:
        assert f"{run.name} stopped" in said
        with pytest.raises(ProcessLookupError):
            os.kill(int((run.place / "starts").read_text()), 0)


def test_a_killed_comparison_is_gone_on_with(tmp_path: Path) -> None:
    run, other = grid("smoke", tmp_path, ["*/vanilla/0", "*/logit/0"])
    process = begun(tmp_path, "--only", "*/vanilla/0", "*/logit/0", seconds=4)
    until(lambda: starts(run) == 1)
    process.kill()
    process.communicate()
    # What it began goes on by itself; nobody begins it a second time as long as it does.
    heard = subprocess.run(command(tmp_path, "--only", run.name), cwd=ROOT, capture_output=True, text=True)
    assert f"{run.name} is carried out by another process" in heard.stdout
    assert run.result.exists()
    assert starts(other) == 0
    assert carry_out([run, other], data=None, machine=MACHINE).unfinished == 0
    # Once by the killed one, once to find that nothing is left to do.
    assert starts(run) == 2


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    (run,) = grid("smoke", tmp_path, ["*/vanilla/0"])
    process = begun(tmp_path, "--only", run.name, seconds=60)
    until(lambda: starts(run) == 1)
    os.kill(int((run.place / "starts").read_text()), signal.SIGKILL)
    assert process.communicate()[0].splitlines()[-1].endswith("tiny/vanilla/0 failed")
    assert process.returncode == 1
    assert carry_out([run], data=None, machine=MACHINE) == Outcome(0, [], 0)


def test_two_comparisons_share_the_runs_of_a_folder(tmp_path: Path) -> None:
    processes = [begun(tmp_path, "--jobs", "2", seconds=0.3) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    assert [starts(run) for run in grid("smoke", tmp_path)] == [1] * 8
