"""Times one update, done in several ways: interleaved rounds (A B C A B C ...), medians and ratios.

    python -m benchmarks.speed --quick
    python -m benchmarks.speed --json runs/speed.json

Run it on a machine that does nothing else, or with one thread and `--clock processor`. LD_PRELOAD selects another
allocator. On a CPU the precision is bf16 where the processor computes in it, else fp32. The figures are added to the
file of an earlier call, pair by pair, if that ran on the same processor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.speed.around import fit_and_bare, input_rate
from benchmarks.speed.clock import roof, timed
from benchmarks.speed.memory import measure_apart, peak_memory
from benchmarks.speed.rows import COMPILED, GRAPHS, ROWS, Case, warm_ups
from benchmarks.speed.table import table
from feature_gan_kd.utils.memory import keep_freed_memory
from feature_gan_kd.utils.processor import Precision, fast_precision, instructions, processor_name

PAIRS: dict[str, dict[str, tuple[tuple[str, str], int, int]]] = {
    "cpu": {
        "r20+r20": (("cifar_resnet20", "cifar_resnet20"), 32, 128),
        "r20+r32": (("cifar_resnet20", "cifar_resnet32"), 32, 128),
        "r18+r34": (("resnet18", "resnet34"), 64, 64),
        "vit+r18": (("vit_tiny_patch16_224", "resnet18"), 64, 64),
    },
    "cuda": {
        "r32+r32": (("cifar_resnet32", "cifar_resnet32"), 32, 128),
        "r20+r32": (("cifar_resnet20", "cifar_resnet32"), 32, 128),
        "r18+r34": (("resnet18", "resnet34"), 224, 256),
        "vit+r18": (("vit_tiny_patch16_224", "resnet18"), 224, 256),
    },
}
MUTUAL = ("dml-fp32", "dml-defaults")


def main() -> None:
    """Times every row of every pair, prints the tables and writes the figures."""
    parser = _parser()
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: cuda is not available, there is no CUDA GPU: use cpu")
    if options.device == "cpu" and set(options.rows or ()) & set(GRAPHS):
        parser.error("--rows: CUDA graphs need --device cuda")
    warnings.simplefilter("ignore")
    keep_freed_memory()  # as `feature-gan-kd train` does
    pairs = PAIRS[options.device]
    if options.memory_of:
        print(json.dumps(peak_memory(case_of(pairs[options.memory_of[0]], options), options.memory_of[1])))
        return
    names = options.pairs or (list(pairs)[:1] if options.quick else list(pairs))
    unknown = [name for name in names if name not in pairs]
    if unknown:
        parser.error(f"--pairs: {unknown[0]!r} is not allowed, expected {', '.join(pairs)}")
    results: dict[str, Any] = {"environment": environment(options), "pairs": {}}
    conflict = conflict_with(results["environment"], options.json)
    if conflict:
        parser.error(conflict)
    print(json.dumps(results["environment"]))
    for name in names:
        results["pairs"][name] = pair = measure_pair(name, case_of(pairs[name], options), options)
        _write(results, options.json)
        print(table(name, pair), flush=True)
    results["input_images_per_second"] = input_rate(case_of(pairs[names[0]], options))
    print(f"\ninput pipeline alone, 32x32: {results['input_images_per_second']:,.0f} images/s")
    _write(results, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the first pair, few rounds, not compiled, no memory")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", nargs="+", help="only these [all]")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="only these [all that the pair allows]")
    parser.add_argument("--rounds", type=int, help="interleaved rounds [7, quick 3]")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: the time that its threads worked, for a machine that also does other work; use one thread",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--memory-of", nargs=2, metavar=("PAIR", "ROW"), help=argparse.SUPPRESS)
    return parser


def measure_pair(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Measures the rows of a pair, `fit`, and the share of the processor's arithmetic."""
    rows = options.rows or [row for row in ROWS if _is_for(row, case, quick=options.quick)]
    count = options.rounds or (3 if options.quick else 7)
    seconds = time_rows(case, rows, count)
    measures_memory = not (options.quick or options.no_memory)
    return {
        "case": dataclasses.asdict(case),
        "seconds": seconds,
        "peak_bytes": {row: measure_apart(name, row, options.device) for row in rows} if measures_memory else {},
        "fit": fit_and_bare(case, min(count, 2) if options.quick else count),
        "roof": roof(case, statistics.median(seconds["exact"])) if "exact" in seconds else None,
    }


def conflict_with(environment: dict[str, Any], path: Path | None) -> str | None:
    """Says why figures measured here do not belong into a file of an earlier call; None where they do."""
    if path is None or not path.exists():
        return None
    earlier = json.loads(path.read_text())["environment"]
    names = [name for name in ("device", "instructions", "precision") if earlier.get(name) != environment.get(name)]
    if not names:
        return None
    differing = ", ".join(f"{name} {earlier.get(name)}, not {environment.get(name)}" for name in names)
    return f"--json: {path} has figures of another machine ({differing}): name another file"


def _is_for(row: str, case: Case, *, quick: bool) -> bool:
    if row in GRAPHS and case.device != "cuda":
        return False
    if row in COMPILED:
        return case.image_size == 32 and not quick
    if row == "floor-batched" and quick:  # this way was only tried: nobody would use it
        return False
    # pytorch-dml first calls every model with an image of 32 pixels, which a ViT built for another size refuses.
    return row not in MUTUAL or case.image_size == 32 or not any(name.startswith("vit") for name in case.models)


def _write(results: dict[str, Any], path: Path | None) -> None:
    """Writes the figures into the file, beside the pairs that an earlier call measured."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text())["pairs"] if path.exists() else {}
    path.write_text(json.dumps({**results, "pairs": {**earlier, **results["pairs"]}}, indent=1))


def case_of(pair: tuple[tuple[str, str], int, int], options: argparse.Namespace) -> Case:
    """Returns the pair with the device, clock and precision of this run."""
    models, size, batch = pair
    return Case(models, size, batch, options.device, precision_of(options.device), clock=options.clock)


def precision_of(device: str) -> Precision:
    """Returns the precision that is fast on a device."""
    return "bf16" if device == "cuda" else fast_precision()


def time_rows(case: Case, names: list[str], count: int) -> dict[str, list[float]]:
    """Times one update of every row, in seconds, one figure per round; the rows take turns."""
    steps = {}
    for name in names:
        own = dataclasses.replace(case, **ROWS[name].changes)
        step, batch = ROWS[name].build(own), own.images()
        for _ in range(warm_ups(name)):
            step(*batch)
        steps[name] = (step, batch, _repeats(step, batch, case, ROWS[name].cycle))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        for name, (step, batch, repeats) in steps.items():
            seconds[name].append(timed(lambda step=step, batch=batch: step(*batch), repeats, case))
    return seconds


def _repeats(step: Any, batch: Any, case: Case, cycle: int) -> int:
    """Returns the number of updates that take about half a second."""
    return cycle * max(1, round(0.5 / (cycle * timed(lambda: step(*batch), cycle, case))))


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what the figures were measured with."""
    name = torch.cuda.get_device_name() if options.device == "cuda" else processor_name()
    return {
        "device": name,
        **({"instructions": instructions(), "allocator": _allocator()} if options.device == "cpu" else {}),
        "precision": precision_of(options.device),
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _allocator() -> str:
    """Names the allocator of this process: the C library's, or the library that was loaded before it."""
    return Path(os.environ.get("LD_PRELOAD", "")).name or platform.libc_ver()[0] or "unknown"


if __name__ == "__main__":
    main()
