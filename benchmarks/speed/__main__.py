"""The price of one update, side by side: interleaved rounds (A B C A B C ...), medians and ratios.

    python -m benchmarks.speed --quick
    python -m benchmarks.speed --json runs/speed.json

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.speed.rows import ROWS, Case

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
# Numerators and denominators of the ratios that the table ends with.
RATIOS = (
    ("exact", "floor"),
    ("exact", "plain"),
    ("logit", "plain"),
    ("textbook", "exact"),
    ("textbook-fp32", "exact"),
    ("dml-fp32", "logit-fp32"),
    ("dml-defaults", "logit"),
)


def main() -> None:
    """Times every row of every pair and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first pair, few rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", nargs="+", help="these alone [all]")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="these alone [all]")
    parser.add_argument("--compile", action="store_true", help="compile the networks of the bf16 rows")
    parser.add_argument("--rounds", type=int, help="interleaved rounds [7, quick 3]")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--memory-of", nargs=2, metavar=("PAIR", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    pairs = PAIRS[options.device]
    if options.memory_of:
        print(json.dumps(peak_memory(case_of(pairs[options.memory_of[0]], options), options.memory_of[1])))
        return
    names = options.pairs or (list(pairs)[:1] if options.quick else list(pairs))
    unknown = [name for name in names if name not in pairs]
    if unknown:
        parser.error(f"--pairs: {unknown[0]!r} is not allowed, expected {', '.join(pairs)}")
    results: dict[str, Any] = {"environment": environment(options.device), "compile": options.compile, "pairs": {}}
    print(json.dumps(results["environment"]))
    for name in names:
        case = case_of(pairs[name], options)
        rows = options.rows or list(ROWS)
        seconds = rounds(case, rows, options.rounds or (3 if options.quick else 7))
        memory = {} if options.quick else {row: _memory_apart(name, row, options) for row in rows}
        results["pairs"][name] = {"case": dataclasses.asdict(case), "seconds": seconds, "peak_bytes": memory}
        print(table(name, case, seconds, memory), flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=1))


def case_of(pair: tuple[tuple[str, str], int, int], options: argparse.Namespace) -> Case:
    """The pair as this run takes it."""
    models, size, batch = pair
    return Case(models, size, batch, options.device, compile=options.compile)


def rounds(case: Case, names: list[str], count: int) -> dict[str, list[float]]:
    """Seconds of one update by row, one figure per round; the rows take turns."""
    steps = {}
    for name in names:
        own = dataclasses.replace(case, **ROWS[name].changes)
        step, batch = ROWS[name].build(own), own.images()
        for _ in range(2):
            step(*batch)
        steps[name] = (step, batch, _repeats(step, batch, case.device))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        for name, (step, batch, repeats) in steps.items():
            seconds[name].append(_timed(step, batch, repeats, case.device))
    return seconds


def _repeats(step: Any, batch: Any, device: str) -> int:
    """So many updates that a figure takes about half a second."""
    return max(1, round(0.5 / _timed(step, batch, 1, device)))


def _timed(step: Any, batch: Any, repeats: int, device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        step(*batch)
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(case: Case, name: str) -> int:
    """Bytes at the peak of three updates: the allocator's on a GPU, this process's growth on a CPU."""
    own = dataclasses.replace(case, **ROWS[name].changes)
    step, batch = ROWS[name].build(own), own.images()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step(*batch)
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def _memory_apart(pair: str, row: str, options: argparse.Namespace) -> int:
    """The peak of one row in a process of its own, since a process's peak never falls."""
    words = [sys.executable, "-m", "benchmarks.speed", "--device", options.device, "--memory-of", pair, row]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


def environment(device: str) -> dict[str, Any]:
    """What the figures were measured with."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(pair: str, case: Case, seconds: dict[str, list[float]], memory: dict[str, int]) -> str:
    """Markdown: medians with their spread, against plain training, and the ratios that matter."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians.get("plain")
    lines = [
        f"\n{pair}: {' + '.join(case.models)}, {case.image_size} px, batch {case.batch}, {case.precision}"
        f"{', compiled' if case.compile else ''}\n",
        "| row | ms per update | min to max | against plain | images/s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in seconds.items():
        against = f"{medians[name] / base:.2f}" if base else "-"
        peak = f"{memory[name] / 2**20:.0f}" if name in memory else "-"
        lines.append(
            f"| {ROWS[name].title} | {1e3 * medians[name]:.1f} | {1e3 * min(values):.1f} to {1e3 * max(values):.1f} | "
            f"{against} | {case.batch / medians[name]:,.0f} | {peak} |"
        )
    lines.append("")
    for over, under in RATIOS:
        if over in seconds and under in seconds:
            ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
            lines.append(
                f"- {over} / {under}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} over "
                f"{len(ratios)} rounds)"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
