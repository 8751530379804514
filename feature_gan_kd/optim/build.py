"""Builds the optimisers and their schedules with timm."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.recipes import PAPER_STEPS
from feature_gan_kd.utils.errors import UserError, closest


def build_optimizer(kind: str, parameters: Iterable[nn.Parameter], config: DistillConfig) -> Optimizer:
    """Builds the optimiser of one kind of gradient.

    It updates the parameters of all models together, in a single multi-tensor update.

    Args:
        kind: `logit`, `feature` or `discriminator`.
        parameters: what it updates.
        config: whose recipe it follows.

    Raises:
        UserError: for a name that timm does not know, for an optimiser that needs second derivatives, or for one whose
            library is not installed.
    """
    name = {"logit": config.optimizer}.get(kind, config.adversarial_optimizer)
    lr = {"logit": config.lr, "feature": config.adversarial_lr, "discriminator": config.discriminator_lr}[kind]
    decay = {
        "logit": config.weight_decay,
        "feature": config.adversarial_weight_decay,
        "discriminator": config.discriminator_weight_decay,
    }[kind]
    known = list_optimizers()
    if name not in known:
        near = closest(name, known)
        raise UserError(f"optimizer: timm has no optimiser {name!r}, the closest are {near or 'momentum, adamw'}")
    if get_optimizer_info(name).second_order:
        raise UserError(f"optimizer: {name!r} needs second derivatives, which are not computed: choose another")
    extra: dict[str, Any] = {"momentum": config.momentum} if kind == "logit" else {}
    try:
        if "fused" in inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters:
            extra["fused"] = True
        # The paper decays every parameter; timm leaves out biases and norms unless it is told not to.
        optimizer: Optimizer = create_optimizer_v2(
            list(parameters), opt=name, lr=lr, weight_decay=decay, filter_bias_and_bn=False, **extra
        )
    except (AssertionError, ImportError) as error:  # a library is not installed
        raise UserError(f"optimizer: {name!r} cannot be used here ({error}): choose another") from None
    return optimizer


def build_schedules(optimizers: Mapping[str, Optimizer], config: DistillConfig, steps: int) -> dict[str, Scheduler]:
    """Builds a schedule for each optimiser; the learning rate is a function of the update's number alone.

    Args:
        optimizers: by kind.
        config: whose recipe they follow; milestones are fractions of the run.
        steps: updates of the whole run.
    """
    adversarial_steps = -(-steps // config.adversarial_interval)
    factor = PAPER_STEPS / adversarial_steps if config.scale_adversarial_lr else 1.0
    warmups = {"logit": config.warmup_fraction, "feature": config.adversarial_warmup_fraction, "discriminator": 0.0}
    schedules = {}
    for kind, optimizer in optimizers.items():
        if kind != "logit":
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"] = _base_rate(kind, config) * factor
        schedules[kind], _ = create_scheduler_v2(
            optimizer,
            sched=config.scheduler if kind == "logit" else "multistep",
            num_epochs=steps,
            updates_per_epoch=1,
            step_on_epochs=False,
            decay_milestones=[
                round(fraction * steps) + 1  # timm decays one update before its milestone
                for fraction in (config.milestones if kind == "logit" else config.adversarial_milestones)
            ],
            decay_rate=0.1,
            warmup_epochs=round(warmups[kind] * steps),
            warmup_lr=0.0,
        )
    return schedules


def _base_rate(kind: str, config: DistillConfig) -> float:
    return config.adversarial_lr if kind == "feature" else config.discriminator_lr
