"""Runs of a grid: which there are, whether they are done, and how one is carried out and kept."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from benchmarks.compare.presets import METHODS, PAIRS, PRESETS, Options
from feature_gan_kd.utils.files import atomic_file


@dataclass(frozen=True)
class Run:
    """One training of the grid.

    Attributes:
        preset: name of its preset.
        pair: name of its models.
        method: name of its method.
        seed: of its weights and data.
        folder: of the whole comparison.
    """

    preset: str
    pair: str
    method: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """`pair/method/seed`, what `--only` is matched with."""
        return f"{self.pair}/{self.method}/{self.seed}"

    @property
    def place(self) -> Path:
        """The run's own folder, as `feature-gan-kd train` writes it."""
        return self.folder / "runs" / self.preset / self.pair / self.method / str(self.seed)

    @property
    def log(self) -> Path:
        """What the run prints; locked while it is being carried out."""
        return self.place.with_name(f"{self.seed}.log")

    @property
    def result(self) -> Path:
        """The file that is written when it is finished."""
        return self.folder / self.preset / f"{self.pair}-{self.method}-{self.seed}.json"

    @property
    def teacher(self) -> Run | None:
        """The run whose last model is this one's frozen source, if it has one."""
        offline = "frozen" in METHODS[self.method]
        return Run(self.preset, self.pair, "vanilla", self.seed, self.folder) if offline else None

    @property
    def teachers_model(self) -> Path | None:
        """The folder of the frozen model, as the vanilla run leaves it."""
        models = PAIRS[self.pair]
        return self.teacher and self.teacher.place / "networks" / f"{len(models) - 1}-{models[-1]}"

    def command(self, data: str | None) -> list[str]:
        """The arguments of `feature-gan-kd`; `data` takes the place of the preset's."""
        preset, models = PRESETS[self.preset], list(PAIRS[self.pair])
        if self.teachers_model is not None:
            models[-1] = f"local-dir:{self.teachers_model}"
        data = data or preset.data
        words = ["train", "--models", *models, "--seed", str(self.seed)]
        words += ["--data", data] if data else []
        words += ["--topology", "complete"] if self.pair.endswith("-complete") else []
        words += _words({**preset.options, **METHODS[self.method]})
        return [*words, "--output-dir", str(self.place)]


@dataclass(frozen=True)
class Machine:
    """What runs are carried out on.

    Attributes:
        jobs: runs side by side.
        threads: of one run, on CPUs.
        gpus: shared out among the runs; empty leaves every run those that it sees.
        launch: what stands in the place of python, such as accelerate's launcher.
    """

    jobs: int
    threads: int
    gpus: tuple[int, ...] = ()
    launch: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """A run that is being carried out.

    Attributes:
        run: which.
        process: that does it.
        gpu: that was given to it.
        log: open, and locked with it until both this program and the process have closed it.
    """

    run: Run
    process: subprocess.Popen[bytes]
    gpu: int | None
    log: IO[bytes]


def grid(preset: str, folder: Path, only: Sequence[str] = ()) -> list[Run]:
    """The runs of a preset, all methods and pairs of one seed before the next seed.

    Args:
        preset: its name.
        folder: of the comparison.
        only: patterns of the shell on `pair/method/seed`, or parts of it; empty takes all.
    """
    plan = PRESETS[preset]
    runs = [
        Run(preset, pair, method, seed, folder)
        for seed in plan.seeds
        for pair in plan.pairs
        for method in (*plan.methods, *plan.more)
        if method in plan.methods or any(_matches(Run(preset, pair, method, seed, folder), one) for one in only)
        if len(PAIRS[pair]) == 2 or "frozen" not in METHODS[method]
    ]
    return [run for run in runs if not only or any(_matches(run, pattern) for pattern in only)]


def _matches(run: Run, pattern: str) -> bool:
    return fnmatch(run.name, pattern) or any(fnmatch(part, pattern) for part in run.name.split("/"))


def _words(options: Options) -> Iterator[str]:
    for name, value in options.items():
        yield f"--{name}"
        yield from (value,) if isinstance(value, str) else value


def begin(run: Run, data: str | None, machine: Machine, gpu: int | None = None) -> Training | None:
    """Begins a run or goes on with it, in a session of its own: only its parent tells it to stop.

    The lock is on the open log, which the process inherits: it outlives this program if that is killed, and never
    the process.

    Returns:
        None where the run is finished, or another comparison or a process that a killed one left carries it out.

    Raises:
        OSError: where the disk cannot hold it, or its teacher has a result but no model here.
    """
    if run.teacher is not None and run.teachers_model is not None and not run.teachers_model.is_dir():
        raise FileNotFoundError(
            f"{run.teachers_model} is not there: remove {run.teacher.result}, so that its model is trained again"
        )
    run.place.mkdir(parents=True, exist_ok=True)
    log = run.log.open("ab")
    if not _lock(log) or run.result.exists():
        log.close()
        return None
    words = [*(machine.launch or (sys.executable,)), "-m", "feature_gan_kd", *run.command(data), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(machine.threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n".encode())
    log.flush()
    process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
    return Training(run, process, gpu, log)


def carried_out(run: Run) -> bool:
    """Whether some process carries the run out now."""
    try:
        with run.log.open("ab") as log:
            return not _lock(log)
    except FileNotFoundError:
        return False


def _lock(log: IO[bytes]) -> bool:
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep(training: Training, data: str | None, machine: Machine) -> None:
    """Writes a finished run's result file and removes its checkpoints.

    Args:
        training: what was carried out.
        data: as of `Run.command`.
        machine: it was carried out on.

    Raises:
        OSError: where the disk cannot hold it.
        ValueError: where the run's own files are damaged.
    """
    run = training.run
    about = json.loads((run.place / "config.json").read_text())
    records = [json.loads(line) for line in (run.place / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if record["event"] == "epoch"]
    result: dict[str, Any] = {
        "preset": run.preset,
        "pair": run.pair,
        "method": run.method,
        "seed": run.seed,
        "command": ["feature-gan-kd", *run.command(data)],
        "launch": list(machine.launch),
        "models": [model["name"] for model in about["models"]],
        "frozen": about["frozen"],
        "feature_layers": about["feature_layers"],
        "config": about["config"],
        "data": about["data"],
        "versions": about["versions"],
        "seconds": round(sum(epoch["seconds"] for epoch in epochs)),
        "finished": time.strftime("%Y-%m-%d"),
        "epochs": [
            {
                "epoch": epoch["epoch"],
                "step": epoch["step"],
                "accuracy": [round(value, 3) for value in epoch["accuracy"]],
                "ensemble": round(epoch["ensemble"], 3),
                "metrics": {key: float(f"{value:.4g}") for key, value in epoch["metrics"].items()},
            }
            for epoch in epochs
        ],
    }
    run.result.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(run.result) as temporary:
        temporary.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    shutil.rmtree(run.place / "checkpoints", ignore_errors=True)
