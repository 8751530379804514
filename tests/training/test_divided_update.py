"""Where memory runs out, the batch is divided, and the update is what it is with as many parts from the start."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from tests.helpers.runs import SETTINGS, AtStep, RandomModel, assert_same_run
from tests.helpers.small_models import Convolutional, GroupNormModel, assert_same_state


class Hungry(Convolutional):
    """Fits up to a number of images; draws from every generator before and after memory has run out."""

    fits = 3

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 5)."""
        logits = super().forward(images)
        if self.training and len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return logits * (1 + random.random() + np.random.rand())


def batch(number: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(5, (size,), generator=generator)


def build(models: Any = None, **settings: Any) -> OnlineAdversarialDistiller:
    torch.manual_seed(0)
    models = models or [Convolutional(4, 0.5), Hungry(6, 0.5)]
    return OnlineAdversarialDistiller(models, image_size=8, lr=0.05, adversarial_lr=1e-3, **settings)


def update(distiller: OnlineAdversarialDistiller, number: int, size: int = 12) -> dict[str, Tensor]:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
    return distiller.training_step(*batch(number, size))


@pytest.mark.parametrize("settings", [{}, {"joint_backward": True}, {"model_ema": 0.9, "targets": "ema"}])
def test_the_update_is_what_it_is_with_as_many_parts_from_the_start(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found, expected = build(**settings), build(**settings, grad_accum_steps=4)
    for number in range(3):
        ours, theirs = update(found, number), update(expected, number)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_same_state(found, expected)
    assert found.step.grad_accum_steps == 4
    assert found.config.grad_accum_steps == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"memory: a batch of 12 images of 3x8x8 in {parts} does not fit on cpu: from now on a batch is divided into "
        f"{then} parts, as by grad_accum_steps; an update keeps its images"
        for parts, then in (("1 part", 2), ("2 parts", 4))
    ]


def test_a_backward_pass_may_run_out_of_memory() -> None:
    def models() -> list[nn.Module]:
        torch.manual_seed(0)
        return [Convolutional(4, 0.5), Convolutional(6)]

    found, expected = build(models()), build(models(), grad_accum_steps=2)

    def fail(gradient: Tensor) -> None:
        if found.step.grad_accum_steps == 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you")

    next(found.models[0].parameters()).register_hook(fail)
    for number in range(2):
        update(found, number)
        update(expected, number)
    assert_same_state(found, expected)


def weights(distiller: OnlineAdversarialDistiller) -> list[Tensor]:
    modules = [*distiller.models, *distiller.discriminators]
    return [tensor.detach().clone() for module in modules for tensor in (*module.parameters(), *module.buffers())]


class Starving(GroupNormModel):
    """Does not fit at all."""

    def forward(self, x: Tensor) -> Tensor:
        """Fails in training."""
        if self.training and torch.is_grad_enabled() and len(x) != 2:  # two: the look at a model that is being built
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def test_one_image_that_does_not_fit_is_one_line() -> None:
    distiller = build([GroupNormModel(4), Starving(6)])
    before = weights(distiller)
    with pytest.raises(UserError) as error:
        update(distiller, 0, size=3)
    assert str(error.value) == (
        "memory: a batch of 3 images of 3x8x8 in 3 parts does not fit on cpu (CUDA out of memory. Tried to allocate "
        "2.00 GiB): try a smaller image_size, mixed_precision=auto or grad_checkpointing"
    )
    assert all(torch.equal(one, other) for one, other in zip(before, weights(distiller), strict=True))


def test_batch_normalisation_keeps_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hungry, "fits", 1)
    distiller = build()
    with pytest.raises(UserError, match=r"^memory: a batch of 12 images of 3x8x8 in 6 parts does not fit on cpu"):
        update(distiller, 0)


def test_optimisers_that_do_not_fit_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = build([Convolutional(4), Convolutional(6)])

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(distiller.step.logit_groups[0].optimizer, "step", fail)
    with pytest.raises(UserError, match=r"^memory: a batch of 12 images of 3x8x8 in 1 part .* try grad_accum_steps=2,"):
        update(distiller, 0)
    assert distiller.step.grad_accum_steps == 1


def test_a_checkpoint_goes_on_in_as_many_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distiller = build()
    update(distiller, 0)
    distiller.save_checkpoint(tmp_path / "saved")
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved", [Convolutional(4, 0.5), Hungry(6, 0.5)])
    assert again.step.grad_accum_steps == 4
    capsys.readouterr()
    for number in (1, 2):
        update(distiller, number)
        update(again, number)
    assert_same_state(again, distiller)
    assert not capsys.readouterr().err


class HungryRun(RandomModel):
    """Fits up to a number of images, which a test changes."""

    fits = 100

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        if self.training and len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def build_run(models: list[nn.Module]) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller(models, **SETTINGS)


def hungry_models() -> list[nn.Module]:
    torch.manual_seed(3)
    return [HungryRun(4), RandomModel(6)]


class PowerCutError(Exception):
    """Stands for the power going off."""


def test_a_resumed_run_goes_on_in_as_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def less_memory() -> None:
        monkeypatch.setattr(HungryRun, "fits", 16)

    def more_memory() -> None:
        monkeypatch.setattr(HungryRun, "fits", 100)

    def cut() -> None:
        raise PowerCutError

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    distiller = build_run(hungry_models())
    distiller.fit(output_dir=whole, progress=False, callbacks=[AtStep(6, less_memory)])
    assert distiller.step.grad_accum_steps == 2
    more_memory()
    with pytest.raises(PowerCutError):
        build_run(hungry_models()).fit(
            output_dir=stopped, progress=False, callbacks=[AtStep(6, less_memory), AtStep(9, cut)]
        )
    more_memory()
    again = build_run(hungry_models())
    assert again.step.grad_accum_steps == 1
    again.fit(output_dir=stopped, progress=False, resume=True)
    assert again.step.grad_accum_steps == 2
    assert_same_run(stopped, whole)


class SingleValues(nn.Module):
    """Batch normalisation of one value per image: it cannot train on one image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 8)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        if self.training and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        logits: Tensor = self.head(self.norm(self.features(x)).flatten(1))
        return logits


def test_a_last_batch_that_the_parts_are_too_many_for_is_said_at_once() -> None:
    settings = {"max_train_samples": 27, "max_eval_samples": 10, "batch_size": 8, "epochs": 1, "method": "logit"}
    steps: list[int] = []
    distiller = OnlineAdversarialDistiller([SingleValues(), SingleValues()], image_size=8, **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^batch_size: a batch of an epoch has 3 images, which leaves one at a time"):
        distiller.fit(progress=False, callbacks=[AtStep(1, lambda: steps.append(1))])
    assert not steps
