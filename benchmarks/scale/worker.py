"""One of several processes that measure the update of a pair; or one alone that measures cycles of models."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.distributed.collectives import all_reduce_async, all_reduce_sum, rank, world_size
from feature_gan_kd.utils.memory import keep_freed_memory

BATCH = 96
UPDATES = 4


def distiller(count: int) -> OnlineAdversarialDistiller:
    """A cycle of so many small ResNets."""
    return OnlineAdversarialDistiller(
        ["cifar_resnet14"] * count, num_classes=100, image_size=32, mixed_precision="bf16"
    )


def images(count: int) -> tuple[Tensor, Tensor]:
    """Noise with labels."""
    generator = torch.Generator().manual_seed(rank())
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(0, 100, (count,), generator=generator)


def measure_models(counts: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Processor seconds of one update by number of models, one figure per round; they take turns."""
    built = {count: distiller(count) for count in counts}
    batch = images(64)
    for one in built.values():
        one.training_step(*batch)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count, one in built.items():
            began = time.process_time()
            one.training_step(*batch)
            seconds[count].append(time.process_time() - began)
    return seconds


def measure() -> dict[str, float]:
    """Seconds of one update and of its parts, and how far the first exchange ran beside the second backward pass."""
    built = distiller(2)
    step = built.step
    assert step.feature_group is not None
    batch = images(BATCH // world_size())
    for _ in range(2):
        built.training_step(*batch)
    found = {"step": _seconds(lambda: built.training_step(*batch))}
    gradients: dict[str, list[Tensor | None]] = {}
    marks: dict[str, float] = {}

    def keep(kind: str, values: list[Tensor | None]) -> None:
        gradients[kind] = values
        marks[kind] = time.perf_counter()

    step.gradients(*batch, torch.tensor(float(BATCH)), keep)
    found["second"] = marks["feature"] - marks["logit"]
    metrics = {"loss": torch.zeros(())}
    found["fixed"] = _seconds(lambda: step.apply(dict(gradients), metrics))
    moved = {kind: sum(one.nbytes for one in values if one is not None) for kind, values in gradients.items()}
    found["bytes"] = float(sum(moved.values()))
    found["bare exchange"] = _seconds(lambda: all_reduce_async(gradients["logit"])())
    all_reduce_sum(torch.zeros(1))
    if world_size() > 1:
        found |= _overlap(built, batch)
    return found


def _seconds(work: object) -> float:
    began = time.perf_counter()
    for _ in range(UPDATES):
        work()  # type: ignore[operator]
    return (time.perf_counter() - began) / UPDATES


def _overlap(built: OnlineAdversarialDistiller, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """From a profile of one update: seconds of the exchange of logit gradients, and of those while a backward ran."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        built.training_step(*batch)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = [one for one in json.loads(path.read_text())["traceEvents"] if one.get("ph") == "X"]
    size = sum(parameter.numel() for parameter in built.step.logit_group.parameters)
    exchange = next(
        one for one in events if one["name"] == "gloo:all_reduce" and str(size) in str(one["args"].get("Input Dims"))
    )
    start, end = exchange["ts"], exchange["ts"] + exchange["dur"]
    backward = [one for one in events if one["name"].startswith("autograd::engine::evaluate_function")]
    beside = sum(max(0.0, min(end, one["ts"] + one["dur"]) - max(start, one["ts"])) for one in backward)
    return {"first exchange": exchange["dur"] / 1e6, "overlapped": beside / 1e6}


if __name__ == "__main__":
    keep_freed_memory()
    result = measure()
    if rank() == 0:
        print(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
