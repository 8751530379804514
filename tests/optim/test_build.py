from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from feature_gan_kd import DistillConfig, UserError
from feature_gan_kd.optim.build import build_adversarial_optimizer, build_logit_optimizer, build_schedules

KINDS = ("logit", "feature", "discriminator")


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]


def optimizers(config: DistillConfig) -> dict[str, Optimizer]:
    adversarial = {kind: build_adversarial_optimizer(kind, parameters(), config) for kind in KINDS[1:]}
    return {"logit": logit_optimizer(parameters(), config), **adversarial}


def logit_optimizer(own: list[nn.Parameter], config: DistillConfig) -> Optimizer:
    return build_logit_optimizer([(nn.ParameterList(own), config, ())])


def rates(config: DistillConfig, steps: int) -> dict[str, list[float]]:
    """The rate of every update of a run, as the optimisers have it."""
    made = optimizers(config)
    schedules = build_schedules(made, config, steps)
    seen: dict[str, list[float]] = {kind: [] for kind in made}
    for step in range(steps):
        for kind, schedule in schedules.items():
            schedule.step_update(step)
            (group,) = made[kind].param_groups
            seen[kind].append(group["lr"])
    return seen


def stepped(base: float, steps: int, milestones: tuple[float, ...]) -> list[float]:
    """The paper's schedule: a tenth from the update on that stands at a fraction of the run."""
    return [base * 0.1 ** sum(step >= fraction * steps for fraction in milestones) for step in range(steps)]


def test_the_papers_optimisers() -> None:
    made = optimizers(DistillConfig())
    (logit,), (feature,), (judge,) = (made[kind].param_groups for kind in KINDS)
    assert isinstance(made["logit"], torch.optim.SGD)
    assert (logit["lr"], logit["momentum"], logit["nesterov"], logit["weight_decay"]) == (0.1, 0.9, False, 1e-4)
    for name, group in (("feature", feature), ("discriminator", judge)):
        assert type(made[name]) is torch.optim.Adam
        assert (group["lr"], group["weight_decay"], group["betas"]) == (2e-5, 0.1, (0.9, 0.999))
        assert not group.get("decoupled_weight_decay")


def test_every_parameter_decays_biases_too() -> None:
    for kind, optimizer in optimizers(DistillConfig()).items():
        (group,) = optimizer.param_groups
        assert len(group["params"]) == 2, kind
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter in group["params"]:
            assert bool((parameter < 1).all()), kind


def test_own_settings_reach_the_optimisers() -> None:
    settings: dict[str, Any] = {
        "optimizer": "nesterov",
        "lr": 0.3,
        "momentum": 0.7,
        "weight_decay": 0.01,
        "adversarial_optimizer": "adamw",
        "adversarial_lr": 3e-4,
        "adversarial_weight_decay": 0.02,
        "discriminator_lr": 5e-4,
        "discriminator_weight_decay": 0.03,
    }
    made = optimizers(DistillConfig(**settings))
    (logit,), (feature,), (judge,) = (made[kind].param_groups for kind in KINDS)
    assert (logit["lr"], logit["momentum"], logit["nesterov"], logit["weight_decay"]) == (0.3, 0.7, True, 0.01)
    assert isinstance(made["feature"], torch.optim.AdamW)
    assert isinstance(made["discriminator"], torch.optim.AdamW)
    assert (feature["lr"], feature["weight_decay"]) == (3e-4, 0.02)
    assert (judge["lr"], judge["weight_decay"]) == (5e-4, 0.03)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "rmsprop", "adafactor", "muon"])
def test_timms_optimisers_step(name: str) -> None:
    mine = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    optimizer = logit_optimizer(mine, DistillConfig(optimizer=name, lr=0.01))
    for parameter in mine:
        parameter.grad = torch.linspace(0.1, 1, parameter.numel()).view_as(parameter)
    optimizer.step()
    assert all(bool((parameter != 1).all()) for parameter in mine)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamww", r"timm has no optimiser 'adamww', the closest are adamw"),
        ("zzzzzz", r"timm has no optimiser 'zzzzzz', the closest are momentum, adamw"),
        ("adahessian", r"'adahessian' needs second derivatives"),
        ("fusedsgd", r"'fusedsgd' cannot be used here \(.+\)"),
    ],
)
def test_names_that_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^optimizer: {message}") as error:
        logit_optimizer(parameters(), DistillConfig(optimizer=name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [8, 20, 64])
def test_multistep_decays_at_fractions_of_the_run(steps: int) -> None:
    seen = rates(DistillConfig(), steps)
    assert seen["logit"] == pytest.approx(stepped(0.1, steps, (0.5, 0.75)))
    assert seen["feature"] == seen["discriminator"] == pytest.approx(stepped(2e-5, steps, (0.25, 0.5)))


def test_own_milestones() -> None:
    config = DistillConfig(milestones=(0.1, 0.2, 0.9), adversarial_milestones=(0.6,), discriminator_lr=1e-3)
    seen = rates(config, 20)
    assert seen["logit"] == pytest.approx(stepped(0.1, 20, (0.1, 0.2, 0.9)))
    assert seen["feature"] == pytest.approx(stepped(2e-5, 20, (0.6,)))
    assert seen["discriminator"] == pytest.approx(stepped(1e-3, 20, (0.6,)))


def test_cosine_with_warmup() -> None:
    steps, warmup_fraction = 40, 4
    seen = rates(DistillConfig(scheduler="cosine", warmup_fraction=0.1, lr=0.2), steps)
    rising = [0.2 * step / warmup_fraction for step in range(warmup_fraction)]
    falling = [0.1 * (1 + math.cos(math.pi * step / steps)) for step in range(warmup_fraction, steps)]
    assert seen["logit"] == pytest.approx(rising + falling)
    # The adversarial rates follow the paper's steps whatever the logit loss's schedule.
    assert seen["feature"] == pytest.approx(stepped(2e-5, steps, (0.25, 0.5)))


def test_multistep_with_warmup() -> None:
    seen = rates(DistillConfig(warmup_fraction=0.2), 20)
    assert seen["logit"] == pytest.approx([0.025 * k for k in range(4)] + stepped(0.1, 20, (0.5, 0.75))[4:])


def test_adversarial_rates_scaled_to_a_short_run() -> None:
    """300 epochs of 391 steps are 117,300: the steps for which the paper's rates are given."""
    steps = 1173
    plain, scaled = (rates(DistillConfig(scale_adversarial_lr=scale), steps) for scale in (False, True))
    assert scaled["logit"] == plain["logit"]
    for kind in ("feature", "discriminator"):
        assert scaled[kind] == pytest.approx([100 * rate for rate in plain[kind]])


def test_the_rate_is_a_function_of_the_update_alone() -> None:
    """However often, and in whatever order, a schedule is asked: a resumed run, or one of more processes."""
    config = DistillConfig(scheduler="cosine", warmup_fraction=0.1)
    expected = rates(config, 30)
    made = optimizers(config)
    schedules = build_schedules(made, config, 30)
    for step in (29, 3, 3, 3, 17, 0, 12):
        for kind, schedule in schedules.items():
            schedule.step_update(step)
            assert made[kind].param_groups[0]["lr"] == expected[kind][step]


def test_schedules_of_a_second_fit_start_anew() -> None:
    config = DistillConfig(scale_adversarial_lr=True)
    made = optimizers(config)
    first = _rates_at(made, config, 100, step=0)
    assert _rates_at(made, config, 100, step=99) != first
    assert _rates_at(made, config, 100, step=0) == first
    halved = _rates_at(made, config, 200, step=0)
    assert halved["feature"] == pytest.approx(first["feature"] / 2)


def _rates_at(made: Mapping[str, Optimizer], config: DistillConfig, steps: int, step: int) -> dict[str, float]:
    for schedule in build_schedules(made, config, steps).values():
        schedule.step_update(step)
    return {kind: optimizer.param_groups[0]["lr"] for kind, optimizer in made.items()}
