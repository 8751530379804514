"""Many runs on one machine, some side by side; stopped at any point, they go on later."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from benchmarks.compare.runs import Machine, Run, Training, begin, carried_out, keep

PAUSE = 0.2  # seconds between two looks at what runs


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        unfinished: how many runs have no result.
        failed: what to say of each that failed or could not begin.
        signal: number of the one that stopped everything, or 0.
    """

    unfinished: int
    failed: list[str]
    signal: int


def carry_out(runs: Sequence[Run], *, data: str | None, machine: Machine, seconds: float | None = None) -> Outcome:
    """Carries out what is not finished; a run whose teacher is not ready waits for it.

    Runs that another comparison carries out in the same folder, or a process that a killed one left, are waited for.
    SIGTERM, Ctrl-C and the end of the time stop the runs after their next batch, with a checkpoint each; a second
    Ctrl-C does not wait for that.

    Args:
        runs: of a grid, in the order to begin them.
        data: as of `Run.command`.
        machine: that they are carried out on.
        seconds: to stop after.
    """
    crew = _Crew(runs, data, machine)
    end = None if seconds is None else time.monotonic() + seconds
    with _signals() as heard:
        try:
            while not heard and (end is None or time.monotonic() < end) and crew.go_on():
                time.sleep(PAUSE)
        finally:
            crew.stop()
    return Outcome(sum(not run.result.exists() for run in runs), crew.failed, heard[0] if heard else 0)


class _Crew:
    """What waits, what runs and what failed.

    Attributes:
        failed: what to say of each run that failed or could not begin.
    """

    def __init__(self, runs: Sequence[Run], data: str | None, machine: Machine) -> None:
        self.failed: list[str] = []
        self._data = data
        self._machine = machine
        self._waiting = [run for run in runs if not run.result.exists()]
        self._running: list[Training] = []
        self._elsewhere: set[Run] = set()
        print(f"{len(runs)} runs, {len(runs) - len(self._waiting)} finished", flush=True)

    def go_on(self) -> bool:
        """Looks after what ended and begins what can begin; whether there is anything to wait for."""
        for training in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(training)
            self._settle(training)
        self._waiting = [run for run in self._waiting if not run.result.exists()]
        for run in self._ready():
            if len(self._running) < self._machine.jobs:
                self._begin(run)
        if self._running or self._carried_out_elsewhere() or self._ready():
            return True
        self.failed += [f"{run.name}: needs {run.teacher.name} first" for run in self._waiting if run.teacher]
        return False

    def stop(self) -> None:
        """Tells what runs to stop, and waits until it has."""
        for training in self._running:
            training.process.send_signal(signal.SIGTERM)
        for training in self._running:
            training.process.wait()
            if training.process.returncode == 0:
                self._settle(training)
            else:
                _say(f"{training.run.name} stopped")
                training.log.close()

    def _ready(self) -> list[Run]:
        return [run for run in self._waiting if run.teacher is None or run.teacher.result.exists()]

    def _begin(self, run: Run) -> None:
        used = [training.gpu for training in self._running]
        gpu = min(self._machine.gpus, key=used.count, default=None)
        try:
            training = begin(run, self._data, self._machine, gpu)
        except OSError as error:
            self._waiting.remove(run)
            self._fail(run, str(error))
            return
        if training is not None:
            self._waiting.remove(run)
            self._running.append(training)
            _say(run.name)

    def _settle(self, training: Training) -> None:
        """Keeps the result of a run that ended well; says what went wrong with another."""
        run, status = training.run, training.process.returncode
        with training.log:
            if status != 0:
                self._fail(run, f"{_last_line(run)} (status {status}, see {run.log})")
                return
            try:
                keep(training, self._data, self._machine)
            except (OSError, ValueError, KeyError) as error:
                self._fail(run, f"its result cannot be kept: {type(error).__name__}: {error}")
            else:
                _say(f"{run.name} finished")

    def _fail(self, run: Run, reason: str) -> None:
        self.failed.append(f"{run.name}: {reason}")
        _say(f"{run.name} failed")

    def _carried_out_elsewhere(self) -> set[Run]:
        """Runs to wait for, or their teachers, that other processes carry out; each is told of once."""
        own = {training.run for training in self._running}
        needed = {run if run.teacher is None else run.teacher for run in self._waiting} | set(self._waiting)
        found = {run for run in needed - own if carried_out(run)}
        for run in found - self._elsewhere:
            _say(f"{run.name} is carried out by another process")
        self._elsewhere |= found
        return found


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The numbers of the SIGTERM and Ctrl-C heard so far; one that is ignored, as under nohup, stays ignored."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        heard.append(number)

    both = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in both if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, hear)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def _last_line(run: Run) -> str:
    lines = run.log.read_text(errors="replace").strip().splitlines()
    return lines[-1]
