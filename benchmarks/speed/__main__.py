"""The price of one update, side by side: interleaved rounds (A B C A B C ...), medians and ratios.

    python -m benchmarks.speed --quick
    python -m benchmarks.speed --json runs/speed.json

Run it on a machine that does nothing else, or with one thread and `--clock processor`. LD_PRELOAD names another
allocator. A file of an earlier call is added to, pair by pair.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.speed.around import fit_and_bare, input_rate
from benchmarks.speed.clock import roof, timed
from benchmarks.speed.rows import ROWS, Case
from feature_gan_kd.utils.memory import keep_freed_memory

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
    ("floor-batched", "floor"),
    ("exact", "plain"),
    ("interval-4", "plain"),
    ("single", "plain"),
    ("logit", "plain"),
    ("lessons", "exact"),
    ("textbook", "exact"),
    ("textbook-fp32", "exact"),
    ("dml-fp32", "logit-fp32"),
    ("dml-fp32", "logit-fp32-cl"),
    ("dml-defaults", "logit"),
    ("exact", "exact-compiled"),
    ("logit", "logit-compiled"),
    ("exact", "exact-graphs"),
    ("logit", "logit-graphs"),
    ("exact", "exact-compiled-graphs"),
)
MEMORY_RATIOS = (("exact", "logit"),)
COMPILED = ("exact-compiled", "logit-compiled", "exact-compiled-graphs")
GRAPHS = ("exact-graphs", "logit-graphs", "exact-compiled-graphs")
MUTUAL = ("dml-fp32", "dml-defaults")


def main() -> None:
    """Times every row of every pair and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first pair, few rounds, nothing compiled, no memory")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", nargs="+", help="these alone [all]")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="these alone [all that the pair takes]")
    parser.add_argument("--rounds", type=int, help="interleaved rounds [7, quick 3]")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: the time that its threads worked, for a machine that does other things too; with one thread",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks of memory out")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--memory-of", nargs=2, metavar=("PAIR", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA GPU")
    if options.device == "cpu" and set(options.rows or ()) & set(GRAPHS):
        parser.error("--rows: CUDA graphs are for --device cuda")
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
    print(json.dumps(results["environment"]))
    for name in names:
        case = case_of(pairs[name], options)
        rows = options.rows or [row for row in ROWS if _is_for(row, case, quick=options.quick)]
        count = options.rounds or (3 if options.quick else 7)
        seconds = rounds(case, rows, count)
        pair = {
            "case": dataclasses.asdict(case),
            "seconds": seconds,
            "peak_bytes": {}
            if options.quick or options.no_memory
            else {row: _memory_apart(name, row, options.device) for row in rows},
            "fit": fit_and_bare(case, min(count, 2) if options.quick else count),
            "roof": roof(case, statistics.median(seconds["exact"])) if "exact" in seconds else None,
        }
        results["pairs"][name] = pair
        _write(results, options.json)
        print(table(name, pair), flush=True)
    results["input_images_per_second"] = input_rate(case_of(pairs[names[0]], options))
    print(f"\ninput pipeline alone, 32x32: {results['input_images_per_second']:,.0f} images/s")
    _write(results, options.json)


def _is_for(row: str, case: Case, *, quick: bool) -> bool:
    if row in GRAPHS and case.device != "cuda":
        return False
    if row in COMPILED:
        return case.image_size == 32 and not quick
    if row == "floor-batched" and quick:  # no way to do it, but one that was tried
        return False
    # pytorch-dml asks every model with an image of 32 pixels first, which a ViT for other images refuses.
    return row not in MUTUAL or case.image_size == 32 or not any(name.startswith("vit") for name in case.models)


def _write(results: dict[str, Any], path: Path | None) -> None:
    """Into the file, beside the pairs that an earlier call measured there."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text())["pairs"] if path.exists() else {}
    path.write_text(json.dumps({**results, "pairs": {**earlier, **results["pairs"]}}, indent=1))


def case_of(pair: tuple[tuple[str, str], int, int], options: argparse.Namespace) -> Case:
    """The pair as this run takes it."""
    models, size, batch = pair
    return Case(models, size, batch, options.device, clock=options.clock)


def rounds(case: Case, names: list[str], count: int) -> dict[str, list[float]]:
    """Seconds of one update by row, one figure per round; the rows take turns."""
    steps = {}
    for name in names:
        own = dataclasses.replace(case, **ROWS[name].changes)
        step, batch = ROWS[name].build(own), own.images()
        for _ in range(_warm_ups(name)):
            step(*batch)
        steps[name] = (step, batch, _repeats(step, batch, case, ROWS[name].cycle))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        for name, (step, batch, repeats) in steps.items():
            seconds[name].append(timed(lambda step=step, batch=batch: step(*batch), repeats, case))
    return seconds


def _warm_ups(row: str) -> int:
    """Updates before the clock starts; with CUDA graphs the fourth is recorded."""
    return (4 if row in GRAPHS else 2) * ROWS[row].cycle


def _repeats(step: Any, batch: Any, case: Case, cycle: int) -> int:
    """So many updates that a figure takes about half a second."""
    return cycle * max(1, round(0.5 / (cycle * timed(lambda: step(*batch), cycle, case))))


def peak_memory(case: Case, name: str) -> int:
    """Bytes at the peak of the first updates: the allocator's on a GPU, what this process grew by on a CPU (Linux)."""
    own = dataclasses.replace(case, **ROWS[name].changes)
    step, batch = ROWS[name].build(own), own.images()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = 0 if case.device == "cuda" else _resident("VmRSS")
    for _ in range(_warm_ups(name) + ROWS[name].cycle):
        step(*batch)
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    """Bytes of this process's memory now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


def _memory_apart(pair: str, row: str, device: str) -> int:
    """The peak of one row in a process of its own, since a process's peak never falls."""
    words = [sys.executable, "-m", "benchmarks.speed", "--device", device, "--memory-of", pair, row]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured with."""
    name = torch.cuda.get_device_name() if options.device == "cuda" else _processor()
    return {
        "device": name,
        **({"instructions": _instructions(), "allocator": _allocator()} if options.device == "cpu" else {}),
        "clock": options.clock,
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


def _instructions() -> list[str]:
    """Those of the processor's that decide how fast products of matrices are, in fp32 and in bf16."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return [one for one in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if one in flags]


def _allocator() -> str:
    """What gives this process its memory: the C library, or what was loaded before it."""
    return Path(os.environ.get("LD_PRELOAD", "")).name or platform.libc_ver()[0] or "unknown"


def table(name: str, pair: dict[str, Any]) -> str:
    """Markdown: medians with their spread, against plain training, and the ratios that matter."""
    case, seconds, memory = pair["case"], pair["seconds"], pair["peak_bytes"]
    medians = {row: statistics.median(values) for row, values in seconds.items()}
    lines = [
        f"\n{name}: {' + '.join(case['models'])}, {case['image_size']} px, batch {case['batch']}, "
        f"{case['precision']}\n",
        "| row | ms per update | min to max | against plain | images/s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row, values in seconds.items():
        against = f"{medians[row] / medians['plain']:.2f}" if "plain" in medians else "-"
        peak = f"{memory[row] / 2**20:.0f}" if row in memory else "-"
        lines.append(
            f"| {ROWS[row].title} | {1e3 * medians[row]:.1f} | {1e3 * min(values):.1f} to {1e3 * max(values):.1f} | "
            f"{against} | {case['batch'] / medians[row]:,.0f} | {peak} |"
        )
    lines.append("")
    lines += [_ratio(over, under, seconds) for over, under in RATIOS if over in seconds and under in seconds]
    lines += [
        f"- peak memory, {over} / {under}: {memory[over] / memory[under]:.3f}"
        for over, under in MEMORY_RATIOS
        if over in memory and under in memory
    ]
    lines.append(_ratio("fit", "bare step", pair["fit"]))
    if pair["roof"]:
        lines.append(
            f"- arithmetic: {pair['roof']['step'] / 1e9:.0f} GFLOP/s in exact updates, {pair['roof']['share']:.0%} of "
            f"what a large product of matrices reaches here ({pair['roof']['matrices'] / 1e9:.0f})"
        )
    return "\n".join(lines)


def _ratio(over: str, under: str, seconds: dict[str, list[float]]) -> str:
    ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return (
        f"- {over} / {under}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} over "
        f"{len(ratios)} rounds)"
    )


if __name__ == "__main__":
    main()
