"""Compares the methods of the paper, in one code base in which only the loss differs.

    python -m benchmarks.compare --preset cpu --output-dir runs/compare
    python -m benchmarks.compare --tabulate runs/compare

To resume a stopped or killed comparison, give the same command again: finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.compare.dispatch import run_all
from benchmarks.compare.presets import PRESETS
from benchmarks.compare.result_file import computed
from benchmarks.compare.results import collect
from benchmarks.compare.runs import Machine, Run, list_runs
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file
from feature_gan_kd.utils.processor import fast_precision, processor_name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a comparison or tabulates one.

    Returns:
        The exit status: 0 (also where the time limit was reached), 1 where a run failed, 2 for a mistake in the
        arguments, 128 + the number of the signal that stopped it.
    """
    try:
        options = _parser().parse_args(arguments)
        return _run(options) if options.tabulate is None else _tabulate(options)
    except UserError as error:
        print(f"benchmarks.compare: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, help="; ".join(f"{k}: {v.about}" for k, v in PRESETS.items()))
    parser.add_argument(
        "--output-dir", type=Path, help="of results and runs; with --tabulate: of tables and plots [DIR]"
    )
    parser.add_argument("--data", help="as for `feature-gan-kd train` [the preset's data set on the hub]")
    parser.add_argument(
        "--only", nargs="+", help="only runs whose pair/method/seed, or a part of it, matches a pattern"
    )
    parser.add_argument("--jobs", type=_above_zero(int), help="runs side by side [1, or one on each of --gpus]")
    parser.add_argument("--gpus", type=int, nargs="+", help="numbers of the GPUs that the runs share")
    parser.add_argument("--threads", type=_above_zero(int), help="CPU threads of a run [the cores divided by --jobs]")
    parser.add_argument("--minutes", type=_above_zero(float), help="time limit; the same command resumes")
    parser.add_argument("--launch", help='replaces python, for example "accelerate launch --num_processes 8"')
    parser.add_argument("--tabulate", type=Path, metavar="DIR", help="make tables and plots of an --output-dir")
    parser.add_argument("--markdown", action="store_true", help="with --tabulate: print the tables, write nothing")
    return parser


def _above_zero(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not allowed, expected a number above 0")
        return value

    number.__name__ = "number" if kind is float else "whole number"  # argparse names it in an error
    return number


def _run(options: argparse.Namespace) -> int:
    if options.preset is None or options.output_dir is None:
        raise UserError("--preset and --output-dir are needed, or --tabulate DIR")
    if options.markdown:
        raise UserError("--markdown: needs --tabulate DIR")
    runs = list_runs(options.preset, options.output_dir, options.only or ())
    if not runs:
        patterns = " ".join(options.only)
        raise UserError(f"--only: {patterns} matches no run of {options.preset}, expected such as afd or r20+r20/*/0")
    gpus = tuple(options.gpus or ())
    jobs = options.jobs or len(gpus) or 1
    machine = Machine(
        jobs=jobs,
        threads=options.threads or max(1, (os.cpu_count() or 1) // jobs),
        gpus=gpus,
        launch=tuple(shlex.split(options.launch or "")),
    )
    if machine.launch and shutil.which(machine.launch[0]) is None:
        raise UserError(f"--launch: there is no command {machine.launch[0]}: install it or name another")
    _create(options.output_dir)
    _check_machine(runs)
    outcome = run_all(
        runs, data=options.data, machine=machine, seconds=None if options.minutes is None else 60 * options.minutes
    )
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    if outcome.unfinished:
        count = f"{outcome.unfinished} of {len(runs)} runs"
        print(f"{count} are not finished: give the same command again to resume", file=sys.stderr)
    return 128 + outcome.signal if outcome.signal else int(bool(outcome.failed))


def _check_machine(runs: Sequence[Run]) -> None:
    """Raises UserError where finished runs were computed on another processor or in another precision than others will.

    They could not be tabulated together, and that should be said before hours of training.
    """
    for run in runs:
        try:
            contents = json.loads(run.result.read_bytes())
            precision, device = contents["precision"], contents.get("device", "cpu")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not finished, or damaged: --tabulate says so
        expected = fast_precision() if PRESETS[run.preset].for_cpu else precision
        if device == "cpu" and (precision, contents.get("processor")) != (expected, processor_name()):
            raise UserError(
                f"--output-dir: {run.result} was computed {computed(contents)}, this machine computes in {expected} on "
                f"{processor_name()}: name another folder"
            )


def _tabulate(options: argparse.Namespace) -> int:
    for name in ("preset", "data", "only", "jobs", "gpus", "threads", "minutes", "launch"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: is not allowed with --tabulate, which takes all results of its folder")
    try:
        from benchmarks.compare.plot import draw_comparisons
        from benchmarks.compare.tables import markdown
    except ModuleNotFoundError as error:
        raise UserError(f"--tabulate: {error.name} is missing: pip install -e '.[benchmarks]'") from None
    comparisons, left_out = collect(options.tabulate)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    page = markdown(comparisons, left_out)
    print(page, end="")
    if options.markdown:
        return 0
    folder = _create(options.output_dir or options.tabulate)
    try:
        with atomic_file(folder / "comparison.md") as temporary:
            temporary.write_text(page, encoding="utf-8")
        plots = draw_comparisons(comparisons, folder)
    except OSError as error:
        raise UserError(f"--output-dir: {folder} cannot be written ({error.strerror}): name another") from None
    print("written:", *(str(path) for path in (folder / "comparison.md", *plots)), sep="\n  ", file=sys.stderr)
    return 0


def _create(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir: {folder} cannot be created ({error.strerror}): name another") from None
    return folder


if __name__ == "__main__":
    sys.exit(main())
