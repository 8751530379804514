"""Times work on a device, and measures the most that the device reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.rows import Case, distiller


def now(case: Case) -> float:
    """Returns the seconds of the case's clock, after the device has finished its work."""
    if case.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if case.clock == "processor" else time.perf_counter()


def timed(work: Callable[[], object], repeats: int, case: Case) -> float:
    """Returns the mean seconds of one of several repetitions."""
    began = now(case)
    for _ in range(repeats):
        work()
    return (now(case) - began) / repeats


def roof(case: Case, seconds: float) -> dict[str, float]:
    """Measures FLOP/s of an update of `seconds` (`step`) and of a large product (`matrices`), and their `share`."""
    step, batch = distiller(case, method="afd").training_step, case.images()
    with FlopCounterMode(display=False) as counter:
        step(*batch)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    side = 8192 if case.device == "cuda" else 2048
    matrix = torch.randn(side, side, device=case.device).to(dtype)
    matrices = 2 * side**3 / min(timed(lambda: matrix @ matrix, 5, case) for _ in range(4))
    reached = counter.get_total_flops() / seconds
    return {"step": reached, "matrices": matrices, "share": reached / matrices}
