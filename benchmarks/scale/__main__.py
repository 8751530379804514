"""Measures how the cost of an update grows with the number of models and of processes.

    python -m benchmarks.scale --json benchmarks/results/scale.json

Models: cycles of 2 to 8, the time of one update divided by their number, in processor time with one thread.
Processes: one with two threads, then one, two and three on gloo with one thread each, in wall time; a profile shows how
long the first exchange of gradients runs beside the second backward pass. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.scale.model import prediction
from benchmarks.scale.worker import BATCH, measure_models
from feature_gan_kd.utils.memory import keep_freed_memory
from feature_gan_kd.utils.processor import fast_precision, instructions, processor_name

COUNTS = (2, 3, 4, 6, 8)


def main() -> None:
    """Measures, prints two tables, and writes the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("models", "processes"), help="one of the two [both]")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    earlier = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    machine = {"processor": processor_name(), "instructions": instructions(), "precision": fast_precision()}
    if options.only and earlier and earlier.get("machine") != machine:
        parser.error(f"--only: {options.json} has figures of another machine: measure both, without --only")
    results: dict[str, Any] = {**earlier, "torch": torch.__version__, "machine": machine}
    if options.only != "processes":
        torch.set_num_threads(1)
        keep_freed_memory()  # as `feature-gan-kd train` does
        results["models"] = {str(k): one for k, one in measure_models(COUNTS, options.rounds).items()}
        print(models_table(results["models"]))
    if options.only != "models":
        runs: dict[str, list[dict[str, float]]] = {"1x2": [], "1x1": [], "2x1": [], "3x1": []}
        for _ in range(options.rounds):
            for name, measured in runs.items():
                measured.append(launch(*map(int, name.split("x"))))
        results["processes"] = runs
        print(processes_table(runs))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))


def launch(processes: int, threads: int) -> dict[str, float]:
    """Starts several processes, and returns what the first of them measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(29_600 + int(time.time()) % 300), "-m", "benchmarks.scale.worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def models_table(models: dict[str, list[float]]) -> str:
    """Returns the table of the time of one update, as a whole and per model."""
    lines = ["| models in the cycle | ms per update | ms per model | against 2 |", "|---|---|---|---|"]
    base = statistics.median(models["2"]) / 2
    for count, seconds in models.items():
        each = statistics.median(seconds) / int(count)
        lines.append(f"| {count} | {1e3 * each * int(count):.1f} | {1e3 * each:.1f} | {each / base:.2f} |")
    return "\n".join(lines)


def processes_table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Returns the table of throughput with one global batch, beside what the model of docs/scaling.md predicts."""
    medians = {name: {key: statistics.median(one[key] for one in runs[name]) for key in runs[name][0]} for name in runs}
    base = medians["1x2"]["step"]
    lines = [
        f"Global batch {BATCH}.\n",
        "| processes x threads | ms per update | images/s | against 1x2 | model, ms | exchanged MB | overlapped |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in medians.items():
        count = int(name.split("x")[0])
        model = f"{1e3 * prediction(medians['1x1'], medians['1x2'], one, count):.1f}" if name != "1x2" else "-"
        overlap = f"{one['overlapped'] / one['first exchange']:.0%}" if count > 1 else "-"
        lines.append(
            f"| {name} | {1e3 * one['step']:.1f} | {BATCH / one['step']:.0f} | {base / one['step']:.2f} | {model} | "
            f"{one['bytes'] / 1e6:.2f} | {overlap} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
