"""One run of a comparison: its command, where its files are, how it is started and how its result is written."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from benchmarks.compare.presets import METHODS, PAIRS, PRESETS, Options
from feature_gan_kd.utils.files import atomic_file
from feature_gan_kd.utils.processor import fast_precision, mixed_precision, processor_name


@dataclass(frozen=True)
class Run:
    """One training of a comparison.

    Attributes:
        preset: name of its preset.
        pair: name of its models.
        method: name of its method.
        seed: of its weights and data.
        comparison: folder of the whole comparison.
    """

    preset: str
    pair: str
    method: str
    seed: int
    comparison: Path

    @property
    def name(self) -> str:
        """`pair/method/seed`, which the patterns of `--only` match."""
        return f"{self.pair}/{self.method}/{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's own folder, which `feature-gan-kd train` writes."""
        return self.comparison / "runs" / self.preset / self.pair / self.method / str(self.seed)

    @property
    def log(self) -> Path:
        """The run's output; the file is locked while the run's process lives."""
        return self.folder.with_name(f"{self.seed}.log")

    @property
    def result(self) -> Path:
        """The result file, which exists once the run is finished."""
        return self.comparison / self.preset / f"{self.pair}-{self.method}-{self.seed}.json"

    @property
    def teacher(self) -> Run | None:
        """The vanilla run whose last model is this run's frozen teacher, if it has one."""
        is_offline = "frozen" in METHODS[self.method]
        return Run(self.preset, self.pair, "vanilla", self.seed, self.comparison) if is_offline else None

    @property
    def teacher_model(self) -> Path | None:
        """The folder in which the vanilla run leaves the frozen teacher."""
        models = PAIRS[self.pair]
        return self.teacher and self.teacher.folder / "networks" / f"{len(models) - 1}-{models[-1]}"

    @property
    def options(self) -> Options:
        """The options of the preset, of the precision and of the method."""
        preset = PRESETS[self.preset]
        precision = {"mixed-precision": mixed_precision(fast_precision())} if preset.for_cpu else {}
        return {**preset.options, **precision, **METHODS[self.method]}

    def command(self, data: str | None) -> list[str]:
        """Returns the arguments of `feature-gan-kd`; `data` replaces the preset's data set."""
        models = list(PAIRS[self.pair])
        if self.teacher_model is not None:
            models[-1] = f"local-dir:{self.teacher_model}"
        data = data or PRESETS[self.preset].data
        words = ["train", "--models", *models, "--seed", str(self.seed)]
        words += ["--data", data] if data else []
        words += ["--topology", "complete"] if self.pair.endswith("-complete") else []
        return [*words, *option_words(self.options), "--output-dir", str(self.folder)]


@dataclass(frozen=True)
class Machine:
    """What the runs use of this machine.

    Attributes:
        jobs: number of runs side by side.
        threads: CPU threads of one run.
        gpus: numbers of the GPUs that the runs share; empty leaves every run the GPUs that it sees.
        launch: the words that replace `python`, such as those of accelerate's launcher.
    """

    jobs: int
    threads: int
    gpus: tuple[int, ...] = ()
    launch: tuple[str, ...] = ()


@dataclass(frozen=True)
class StartedRun:
    """A run whose process was started.

    Attributes:
        run: the run.
        process: its process.
        gpu: number of the GPU that it was given.
        log: its open log; the lock on it lasts until both this program and the process have closed it.
    """

    run: Run
    process: subprocess.Popen[bytes]
    gpu: int | None
    log: IO[bytes]


def list_runs(preset: str, comparison: Path, only: Sequence[str] = ()) -> list[Run]:
    """Lists the runs of a preset: all methods and pairs of one seed before the next seed.

    Args:
        preset: its name.
        comparison: folder of the comparison.
        only: shell patterns for `pair/method/seed` or for one of its parts; empty takes all.
    """
    plan = PRESETS[preset]
    runs = [
        Run(preset, pair, method, seed, comparison)
        for seed in plan.seeds
        for pair in plan.pairs
        for method in (*plan.methods, *plan.more)
        if method in plan.methods or any(_matches(Run(preset, pair, method, seed, comparison), one) for one in only)
        if len(PAIRS[pair]) == 2 or "frozen" not in METHODS[method]
    ]
    return [run for run in runs if not only or any(_matches(run, pattern) for pattern in only)]


def _matches(run: Run, pattern: str) -> bool:
    return fnmatch(run.name, pattern) or any(fnmatch(part, pattern) for part in run.name.split("/"))


def option_words(options: Options) -> Iterator[str]:
    """Yields the words of options as a command line has them."""
    for name, value in options.items():
        yield f"--{name}"
        yield from (value,) if isinstance(value, str) else value


def start(run: Run, data: str | None, machine: Machine, gpu: int | None = None) -> StartedRun | None:
    """Starts or resumes a run, in a session of its own so that Ctrl-C reaches this program alone.

    The process inherits the lock on the open log. So the lock outlives this program if that is killed, and ends with
    the process.

    Returns:
        None where the run is finished, or where another process is running it.

    Raises:
        OSError: where the disk cannot hold it, or its teacher has a result but no model here.
    """
    if run.teacher is not None and run.teacher_model is not None and not run.teacher_model.is_dir():
        raise FileNotFoundError(
            f"{run.teacher_model} does not exist: remove {run.teacher.result}, so that its model is trained again"
        )
    run.folder.mkdir(parents=True, exist_ok=True)
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
    return StartedRun(run, process, gpu, log)


def is_running(run: Run) -> bool:
    """Returns whether a process is running it now."""
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


def write_result(run: Run, data: str | None, machine: Machine) -> None:
    """Writes the result file of a finished run and removes its checkpoints.

    Args:
        run: the run.
        data: as for `Run.command`.
        machine: what it used of this machine.

    Raises:
        OSError: where the disk cannot hold it.
        ValueError: where the run's own files are damaged.
    """
    about = json.loads((run.folder / "config.json").read_text())
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if record["event"] == "epoch"]
    given = {"seed", *(name.replace("-", "_") for name in run.options)}
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
        # Only what the command gives: a setting that a later version removes or renames then breaks no result.
        "config": {name: value for name, value in about["config"].items() if name in given},
        "data": about["data"],
        "versions": about["versions"],
        "device": about["device"],
        "processor": processor_name(),
        "precision": {"no": "fp32"}.get(precision := about["config"]["mixed_precision"], precision),
        "seconds": round(sum(epoch["seconds"] for epoch in epochs)),
        "finished": time.strftime("%Y-%m-%d"),
        "epochs": [
            {"epoch": epoch["epoch"], "step": epoch["step"], "metrics": _rounded(epoch["metrics"])} for epoch in epochs
        ],
    }
    run.result.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(run.result) as temporary:
        temporary.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Rounds evaluated accuracies to 0.001 %, so that single images still count, and other figures to four digits."""

    def rounded(name: str, value: float) -> float:
        if isinstance(value, int):
            return value
        return round(value, 3) if name.startswith("eval/accuracy/") else float(f"{value:.4g}")

    return {name: rounded(name, value) for name, value in metrics.items()}
