"""Runs the trainings of a comparison on one machine, several side by side; a stopped one is resumed later."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from benchmarks.compare.runs import Machine, Run, StartedRun, is_running, start, write_result

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended.

    Attributes:
        unfinished: number of runs without a result.
        failed: a message for each run that failed or could not start.
        signal: number of the signal that stopped the runs, or 0.
    """

    unfinished: int
    failed: list[str]
    signal: int


def run_all(runs: Sequence[Run], *, data: str | None, machine: Machine, seconds: float | None = None) -> Outcome:
    """Runs what is not finished; a run whose teacher is not ready waits for it.

    It also waits for runs that another process runs in the same folder: another comparison, or a training that
    outlived a killed one. SIGTERM, Ctrl-C and the time limit stop each run after its next batch, with a checkpoint; a
    second Ctrl-C does not wait for that.

    Args:
        runs: in the order in which they start.
        data: as for `Run.command`.
        machine: what the runs use of this machine.
        seconds: the time limit.
    """
    dispatcher = _Dispatcher(runs, data, machine)
    end = None if seconds is None else time.monotonic() + seconds
    with _received_signals() as received:
        try:
            while not received and (end is None or time.monotonic() < end) and dispatcher.advance():
                time.sleep(POLL_SECONDS)
        finally:
            dispatcher.stop()
    unfinished = sum(not run.result.exists() for run in runs)
    return Outcome(unfinished, dispatcher.failed, received[0] if received else 0)


class _Dispatcher:
    """Starts waiting runs while there is room, and writes the results of those that end.

    Attributes:
        failed: a message for each run that failed or could not start.
    """

    def __init__(self, runs: Sequence[Run], data: str | None, machine: Machine) -> None:
        self.failed: list[str] = []
        self._data = data
        self._machine = machine
        self._waiting = [run for run in runs if not run.result.exists()]
        self._started: list[StartedRun] = []
        self._elsewhere: set[Run] = set()
        print(f"{len(runs)} runs, {len(runs) - len(self._waiting)} finished", flush=True)

    def advance(self) -> bool:
        """Finishes the runs that ended and starts those that can start; returns whether any is left to wait for."""
        for started in [one for one in self._started if one.process.poll() is not None]:
            self._started.remove(started)
            self._finish(started)
        self._waiting = [run for run in self._waiting if not run.result.exists()]
        for run in self._ready():
            if len(self._started) < self._machine.jobs:
                self._start(run)
        if self._started or self._running_elsewhere() or self._ready():
            return True
        self.failed += [f"{run.name}: needs {run.teacher.name} first" for run in self._waiting if run.teacher]
        return False

    def stop(self) -> None:
        """Tells every started run to stop, and waits until it has."""
        for started in self._started:
            started.process.send_signal(signal.SIGTERM)
        for started in self._started:
            started.process.wait()
            if started.process.returncode == 0:
                self._finish(started)
            else:
                _say(f"{started.run.name} stopped")
                started.log.close()

    def _ready(self) -> list[Run]:
        return [run for run in self._waiting if run.teacher is None or run.teacher.result.exists()]

    def _start(self, run: Run) -> None:
        used = [started.gpu for started in self._started]
        gpu = min(self._machine.gpus, key=used.count, default=None)
        try:
            started = start(run, self._data, self._machine, gpu)
        except OSError as error:
            self._waiting.remove(run)
            self._fail(run, str(error))
            return
        if started is not None:
            self._waiting.remove(run)
            self._started.append(started)
            _say(run.name)

    def _finish(self, started: StartedRun) -> None:
        """Writes the result of a run that succeeded; reports why another failed."""
        run, status = started.run, started.process.returncode
        with started.log:
            if status != 0:
                self._fail(run, f"{_last_line(run)} (status {status}, see {run.log})")
                return
            try:
                write_result(run, self._data, self._machine)
            except (OSError, ValueError, KeyError) as error:
                self._fail(run, f"its result cannot be written: {type(error).__name__}: {error}")
            else:
                _say(f"{run.name} finished")

    def _fail(self, run: Run, reason: str) -> None:
        self.failed.append(f"{run.name}: {reason}")
        _say(f"{run.name} failed")

    def _running_elsewhere(self) -> set[Run]:
        """Returns the waiting runs, and teachers, that other processes run; reports each of them once."""
        own = {started.run for started in self._started}
        needed = {run if run.teacher is None else run.teacher for run in self._waiting} | set(self._waiting)
        found = {run for run in needed - own if is_running(run)}
        for run in found - self._elsewhere:
            _say(f"{run.name} is running in another process")
        self._elsewhere |= found
        return found


@contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Collects the numbers of SIGTERM and Ctrl-C; a signal that is ignored, as under nohup, stays ignored."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    both = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in both if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def _last_line(run: Run) -> str:
    lines = run.log.read_text(errors="replace").strip().splitlines()
    return lines[-1]
