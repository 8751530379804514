"""The memory of a distiller is freed with its last reference, and models may be of another floating-point type."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from feature_gan_kd import OnlineAdversarialDistiller
from tests.helpers.runs import AtStep, assert_same_run, build


class PowerCutError(Exception):
    """Stands for the power going off."""


def cut() -> None:
    raise PowerCutError


def update(distiller: OnlineAdversarialDistiller) -> None:
    distiller.training_step(torch.randn(6, 3, 8, 8), torch.arange(6))


def fit_and_evaluate(distiller: OnlineAdversarialDistiller) -> None:
    distiller.fit(epochs=1, progress=False)
    distiller.evaluate()


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("settings", [{}, {"log_gradients": True, "similarity_images": 20, "grad_accum_steps": 2}])
@pytest.mark.parametrize("act", [lambda distiller: None, update, fit_and_evaluate])
def test_a_dropped_distiller_is_freed_at_once(
    act: Callable[[OnlineAdversarialDistiller], None], settings: dict[str, Any]
) -> None:
    distiller = build(**settings)
    act(distiller)
    parts = [distiller, distiller.group, distiller.step, *distiller.models, *distiller.discriminators]
    parts += [group.optimizer for group in distiller.step.optimizer_groups.values()]
    parts += [parameter for module in distiller.models for parameter in module.parameters()]
    alive = [weakref.ref(part) for part in parts]
    assert len(alive) > 20
    del distiller, parts
    assert [one() for one in alive if one() is not None] == []


@pytest.mark.usefixtures("without_collector")
def test_compiled_models_are_freed_at_once_too() -> None:
    """Without what compiling leaves to the collector: that happens once, not in every update."""
    distiller = build(compile=True)
    update(distiller)
    gc.collect()
    update(distiller)
    alive = [weakref.ref(parameter) for module in distiller.models for parameter in module.parameters()]
    del distiller
    assert [one() for one in alive if one() is not None] == []


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"similarity_images": 20, "log_gradients": True},
        {"grad_accum_steps": 2, "clip_grad": 0.5},
        {"method": "l1", "l2_weight": 0.5},
        {"joint_backward": True},
        {"adversarial_loss": "hinge", "optimizer": "lamb"},
    ],
    ids=str,
)
def test_float64_as_default(settings: dict[str, Any], tmp_path: Path) -> None:
    """An update on images of that type, and whole runs, whose images are float32, with a resume."""
    distiller = build(**settings)
    metrics = distiller.training_step(torch.randn(6, 3, 8, 8), torch.arange(6))
    assert all(value.isfinite() for value in metrics.values())
    assert {parameter.dtype for module in distiller.models for parameter in module.parameters()} == {torch.float64}
    settings = {**settings, "epochs": 2, "checkpoint_every_steps": None, "max_train_samples": 64}
    build(**settings).fit(output_dir=tmp_path / "whole", progress=False)
    with pytest.raises(PowerCutError):
        build(**settings).fit(output_dir=tmp_path / "run", progress=False, callbacks=[AtStep(3, cut)])
    history = build(**settings).fit(output_dir=tmp_path / "run", progress=False, resume=True)
    assert history.last["step"] == 4
    assert_same_run(tmp_path / "run", tmp_path / "whole")
