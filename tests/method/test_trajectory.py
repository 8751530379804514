"""Nothing is read back from the device between two records; updates are to the bit what they were."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.training.callbacks import Callback
from tests.helpers.worker import SmallModel, normalised

READS = [
    Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
    Tensor.__index__, Tensor.nonzero, torch.nonzero, torch.equal, Tensor.equal, torch.allclose,
]  # fmt: skip


class Reads(TorchFunctionMode):
    """Counts, by the number of updates done, the calls that wait for the device and read from it."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.found: Counter[tuple[int, str]] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            self.found[self.step, function.__name__] += 1
        return function(*args, **(kwargs or {}))


class ReadsInside(TorchDispatchMode):
    """The same of what operators read by themselves."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.reads.found[self.reads.step, "_local_scalar_dense"] += 1
        return function(*args, **(kwargs or {}))


class Counting(Callback):
    """Tells the counter how many updates are done."""

    def __init__(self, reads: Reads) -> None:
        self.reads = reads

    def on_step(self, step: int) -> None:
        """After every update."""
        self.reads.step = step


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"method": "logit"},
        {"adversarial_interval": 2},
        {"joint_backward": True},
        {"momentum": 0.0},
        {"grad_accum_steps": 2, "clip_grad": 1.0},
        {"mixed_precision": "bf16"},
    ],
    ids=lambda mode: ", ".join(mode) or "exact",
)
def test_nothing_is_read_from_the_device_between_two_records(mode: dict[str, Any], tmp_path: Path) -> None:
    models = [SmallModel(width, nn.BatchNorm2d(width), torch.float32) for width in (4, 6)]
    distiller = OnlineAdversarialDistiller(
        models, image_size=8, max_train_samples=48, batch_size=4, log_every_steps=5, epochs=2, **mode
    )
    reads = Reads()
    with reads, ReadsInside(reads):
        distiller.fit(callbacks=[Counting(reads)], output_dir=tmp_path / "run")
    steps = {step for step, _ in reads.found}
    # Each optimiser's first step is one that has to look; then the records after 5, 10, 15 and 20 updates, and the
    # end of the two epochs after 12 and 24.
    allowed = {0, 1, 5, 10, 12, 15, 20, 24}
    assert steps <= allowed, sorted(reads.found)
    assert {5, 10, 15, 20} <= steps  # the counter does see reads


def trajectory() -> list[dict[str, float]]:
    """Metrics of 50 updates of a pair in float32, and at the end the sums of all weights."""
    torch.manual_seed(0)
    models: list[nn.Module] = normalised(torch.float32)[:2]
    distiller = OnlineAdversarialDistiller(
        models, image_size=8, lr=0.05, adversarial_lr=1e-3, discriminator_lr=1e-3, feature_layers="features"
    )
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(50):
        images = torch.randn(12, 3, 8, 8, generator=generator)
        labels = torch.randint(10, (12,), generator=generator)
        found.append({key: float(value) for key, value in distiller.training_step(images, labels).items()})
    parts = [*distiller.models, *distiller.discriminators, *distiller.transfers]
    found.append(
        {
            f"weights/{k}": float(sum(p.detach().double().sum() for p in part.parameters()))
            for k, part in enumerate(parts)
        }
    )
    return found


def test_fifty_updates_are_what_they_were() -> None:
    """Written by the plain update, before any of the shortcuts; remade by `python -m tests.method.test_trajectory`."""
    expected = json.loads(Path(__file__).with_name("trajectory.json").read_text())
    found = trajectory()
    assert len(found) == len(expected) == 51
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert one[key] == pytest.approx(value, rel=2e-4, abs=2e-5), (number, key)


if __name__ == "__main__":
    Path(__file__).with_name("trajectory.json").write_text(json.dumps(trajectory(), indent=0))
