"""Peak memory of one update."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.speed.rows import ROWS, Case, warm_ups


def peak_memory(case: Case, name: str) -> int:
    """Measures the peak bytes of the first updates: the allocator's on a GPU, the process's growth on a CPU (Linux)."""
    own = dataclasses.replace(case, **ROWS[name].changes)
    step, batch = ROWS[name].build(own), own.images()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = 0 if case.device == "cuda" else _resident("VmRSS")
    for _ in range(warm_ups(name) + ROWS[name].cycle):
        step(*batch)
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    """Returns the bytes of this process's memory now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


def measure_apart(pair: str, row: str, device: str) -> int:
    """Measures the peak of one row in its own process, so that no other row's memory counts."""
    words = [sys.executable, "-m", "benchmarks.speed", "--device", device, "--memory-of", pair, row]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))
