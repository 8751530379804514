"""One of several processes that time the update of a pair; or a single one that times cycles of models."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.rows import feature_losses
from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.distributed.collectives import all_reduce_async, all_reduce_sum, rank, world_size
from feature_gan_kd.utils.memory import keep_freed_memory
from feature_gan_kd.utils.processor import fast_precision, mixed_precision

BATCH = 96
UPDATES = 4


def distiller(count: int) -> OnlineAdversarialDistiller:
    """Builds a cycle of `count` small ResNets."""
    return OnlineAdversarialDistiller(
        ["cifar_resnet14"] * count,
        num_classes=100,
        image_size=32,
        mixed_precision=mixed_precision(fast_precision()),
    )


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Returns `count` images of noise with labels."""
    generator = torch.Generator().manual_seed(rank())
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(0, 100, (count,), generator=generator)


def measure_models(counts: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Times one update by number of models, in processor seconds, one figure per round; they take turns."""
    built = {count: distiller(count) for count in counts}
    batch = noise(64)
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
    """Times an update and its parts, in seconds, and profiles how far the first exchange is hidden."""
    built = distiller(2)
    step = built.step
    assert step.feature_group is not None
    assert step.discriminator_group is not None
    groups = (*step.logit_groups, step.feature_group, step.discriminator_group)
    batch = noise(BATCH // world_size())
    for _ in range(2):
        built.training_step(*batch)
    found = {"step": _seconds(lambda: built.training_step(*batch))}
    found["second"] = _second_backward(built, batch[0])
    for parameter in (one for group in groups for one in group.parameters):
        parameter.grad = torch.zeros_like(parameter)
    found["fixed"] = _seconds(lambda: [group.optimizer.step() for group in groups])
    for parameter in (one for group in groups for one in group.parameters):
        parameter.grad = None
    gradients: list[Tensor | None] = [torch.zeros_like(parameter) for parameter in step.logit_groups[0].parameters]
    found["bytes"] = float(sum(one.nbytes for group in groups for one in group.parameters))
    found["bare exchange"] = _seconds(lambda: all_reduce_async(gradients)())
    all_reduce_sum(torch.zeros(1))  # waits for the others, so that all profile the same update
    if world_size() > 1:
        found |= _overlap(built, batch)
    return found


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(UPDATES):
        work()
    return (time.perf_counter() - began) / UPDATES


def _second_backward(built: OnlineAdversarialDistiller, images: Tensor) -> float:
    """Times the backward pass of the feature loss."""
    step = built.step
    assert step.feature_group is not None
    with step.autocast():
        loss, _ = feature_losses(step, [model(images)[1] for model in step.models])
    began = time.perf_counter()
    torch.autograd.grad(loss, step.feature_group.parameters, allow_unused=True)
    return time.perf_counter() - began


def _overlap(built: OnlineAdversarialDistiller, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Profiles one update: the seconds of the exchange of logit gradients, and those beside a backward pass."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        built.training_step(*batch)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = [one for one in json.loads(path.read_text())["traceEvents"] if one.get("ph") == "X"]
    size = sum(parameter.numel() for parameter in built.step.logit_groups[0].parameters)
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
