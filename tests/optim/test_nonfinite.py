"""Values that are not finite change nothing, are counted, and end a run that cannot go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as DatasetImage
from PIL import Image
from torch import Tensor, nn

from feature_gan_kd import Callback, DivergedError, OnlineAdversarialDistiller
from feature_gan_kd.optim.gradients import OptimizerGroup
from feature_gan_kd.optim.nonfinite import BufferSnapshot, NonFiniteGuard


class Poisoned(nn.Module):
    """A small model with batch normalisation whose forward or backward pass gives infinities when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 5)
        self.poison: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 5)."""
        logits: Tensor = self.head(self.poison(self.features(x)).mean((2, 3)))
        return logits


class InfiniteGradient(torch.autograd.Function):
    """Changes nothing forward; backward every gradient is infinite."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """The same."""
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        """Infinite."""
        return torch.full_like(gradients[0], torch.inf)


def build(**settings: object) -> OnlineAdversarialDistiller:
    torch.manual_seed(0)
    return OnlineAdversarialDistiller([Poisoned(), Poisoned()], image_size=8, lr=0.1, **settings)  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 5


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a loss": lambda x: x * torch.nan,
    "a gradient alone": InfiniteGradient.apply,
}


def everything(distiller: OnlineAdversarialDistiller) -> dict[str, Tensor]:
    """Weights, buffers and optimisers."""
    state = distiller.group.state()
    return {f"{part}.{key}": value.clone() for part, tensors in state.tensors.items() for key, value in tensors.items()}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("optimizer", ["momentum", "lion"])
@pytest.mark.parametrize("first", [False, True])
def test_an_update_with_a_fault_changes_nothing(fault: str, optimizer: str, first: bool) -> None:
    distiller = build(optimizer=optimizer)
    if not first:
        distiller.training_step(*batch())
    before = everything(distiller)
    assert isinstance(distiller.models[1], Poisoned)
    distiller.models[1].poison = FAULTS[fault]
    metrics = distiller.training_step(*batch())
    assert float(metrics["skipped"]) == 1
    after = everything(distiller)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    distiller.models[1].poison = lambda x: x
    assert float(distiller.training_step(*batch())["skipped"]) == 0
    changed = everything(distiller)
    assert not all(torch.equal(value, changed[key]) for key, value in before.items())


def test_a_skipped_update_leaves_no_trace() -> None:
    disturbed, plain = build(), build()
    for number, distiller in enumerate((disturbed, plain)):
        distiller.training_step(*batch())
        if number == 0:
            assert isinstance(distiller.models[0], Poisoned)
            distiller.models[0].poison = FAULTS["a loss"]
            distiller.training_step(*batch())
            distiller.models[0].poison = lambda x: x
        distiller.training_step(*batch())
    expected = everything(plain)
    assert all(torch.equal(value, expected[key]) for key, value in everything(disturbed).items())


def test_counts_and_culprits() -> None:
    distiller = build()
    assert isinstance(distiller.models[1], Poisoned)
    for poisoned in (True, False, True, True, False):
        distiller.models[1].poison = FAULTS["a loss"] if poisoned else (lambda x: x)
        distiller.training_step(*batch())
    report = distiller.step.guard.report()
    assert (report.skipped, report.longest) == (3, 2)
    assert "cross_entropy/1" in report.where
    assert "gradient of the logit loss in model 1 (Poisoned)" in report.where
    assert "cross_entropy/0" not in report.where


def test_a_discriminator_is_a_culprit_like_any_other() -> None:
    distiller = build()
    with torch.no_grad():
        next(distiller.discriminators[0].parameters()).fill_(torch.nan)
    before = everything(distiller)
    distiller.training_step(*batch())
    where = distiller.step.guard.report().where
    assert "gradient of the discriminator loss in discriminator 0->1" in where
    assert "gradient of the feature loss in model 1 (Poisoned)" in where
    assert {"adversarial/1", "discriminator/1"} <= set(where)
    assert not any(name.endswith(("1->0", "/0", "model 0 (Poisoned)")) for name in where)
    after = everything(distiller)
    assert all(torch.equal(value, after[key]) for key, value in before.items() if not value.isnan().any())


def test_no_fault_no_report() -> None:
    distiller = build()
    distiller.training_step(*batch())
    report = distiller.step.guard.report()
    assert (report.skipped, report.longest, report.where) == (0, 0, [])


def group(gradients: list[Tensor | None], owners: list[str]) -> OptimizerGroup:
    parameters = [nn.Parameter(torch.zeros(1))]
    return OptimizerGroup("logit", parameters, torch.optim.SGD(parameters), owners, gradients=gradients)


def test_gradients_that_are_not_there_count_nothing() -> None:
    guard, losses, owners = NonFiniteGuard(), {"loss": torch.tensor(1.0)}, ["a", "a", "b"]
    gradients = [None, torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    assert float(guard.check(losses, [group(gradients, owners)])) == 0
    gradients[2] = torch.tensor([torch.nan])
    assert float(guard.check(losses, [group(gradients, owners)])) == 1
    assert guard.report().where == ["gradient of the logit loss in b"]


def test_large_gradients_are_no_fault() -> None:
    large = group([torch.full((1000,), 3e38)], ["a"])
    assert float(NonFiniteGuard().check({"loss": torch.tensor(1.0)}, [large])) == 0


@pytest.mark.parametrize(
    "values", [[torch.inf, -torch.inf], [torch.nan, 1.0], [-torch.inf, 3.0]], ids=["cancel", "nan", "negative"]
)
def test_one_element_that_is_not_finite_is_a_fault(values: list[float]) -> None:
    gradient = torch.zeros(4, 8, 3, 3).to(memory_format=torch.channels_last)
    gradient[1, 2, 0, :2] = torch.tensor(values)
    guard = NonFiniteGuard()
    assert guard.check({"loss": torch.zeros(())}, [group([torch.ones(3), gradient], ["a", "b"])]) == 1
    assert guard.report().where == ["gradient of the logit loss in b"]


def test_buffers_of_every_type() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(2).double())
    before = BufferSnapshot([model])
    for buffer in model.buffers():
        buffer.add_(1)
    changed = [buffer.clone() for buffer in model.buffers()]
    before.restore(torch.tensor(0.0))
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), changed, strict=True))
    before.restore(torch.tensor(1.0))
    assert all(torch.equal(one, other - 1) for one, other in zip(model.buffers(), changed, strict=True))


def fit(distiller: OnlineAdversarialDistiller, folder: Path, **more: Any) -> Any:
    images = [{"image": Image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)), "label": k % 5} for k in range(10)]
    data = Dataset.from_list(images, Features({"image": DatasetImage(), "label": ClassLabel(5)}))
    return distiller.fit(data, data, output_dir=folder, **more)


class PoisonFrom(Callback):
    """Poisons a model from one update on, and heals it after `count` of them."""

    def __init__(self, model: nn.Module, step: int, count: int) -> None:
        assert isinstance(model, Poisoned)
        self.model, self.first, self.last = model, step, step + count

    def on_step(self, step: int) -> None:
        """Update number `step` is done: the next is meant."""
        inside = self.first <= step < self.last
        self.model.poison = FAULTS["a loss"] if inside else (lambda x: x)


SMALL = {"batch_size": 5, "epochs": 4, "augmentation": "none", "log_every_steps": 1}


def test_a_run_goes_on_after_a_few_skipped_updates(tmp_path: Path) -> None:
    distiller = build(**SMALL, max_nonfinite_steps=3)
    fit(distiller, tmp_path, callbacks=[PoisonFrom(distiller.models[0], 2, 2)])
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    assert [record["metrics"]["train/skipped"] for record in steps] == [0, 0, 1, 1, 0, 0, 0, 0]
    assert [math.isfinite(record["metrics"]["train/cross_entropy/0"]) for record in steps] == [
        record["metrics"]["train/skipped"] == 0 for record in steps
    ]
    assert all(value.isfinite().all() for value in distiller.models[0].state_dict().values())


def test_a_run_that_stays_broken_ends_and_names_its_checkpoint(tmp_path: Path) -> None:
    distiller = build(**SMALL, max_nonfinite_steps=2)
    with pytest.raises(DivergedError) as end:
        fit(distiller, tmp_path, callbacks=[PoisonFrom(distiller.models[1], 4, 99)])
    message = str(end.value)
    assert "2 updates in a row up to step 6" in message
    assert "cross_entropy/1" in message
    assert str(tmp_path / "checkpoints" / "step-4") in message
    again = build(**SMALL, max_nonfinite_steps=2)
    assert fit(again, tmp_path, resume=True).last["step"] == 8  # what was wrong is gone
    plain = build(**SMALL)
    fit(plain, tmp_path / "plain")
    expected = everything(plain)
    assert all(torch.equal(value, expected[key]) for key, value in everything(again).items())
