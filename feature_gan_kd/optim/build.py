"""Builds the optimisers and their schedules with timm."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.recipes import PAPER_STEPS
from feature_gan_kd.config.validation import show
from feature_gan_kd.optim.parameter_groups import rates_of_parameters
from feature_gan_kd.utils.errors import UserError, closest


def build_logit_optimizer(
    models: Sequence[tuple[nn.Module, DistillConfig, Collection[nn.Parameter]]],
) -> Optimizer:
    """Builds one optimiser of the logit loss for models that have the same kind of it.

    It updates the parameters of all of them together: those with the same rates in a single multi-tensor update.

    Args:
        models: each with its settings and the parameters of its classifier; all name the same optimiser.

    Raises:
        UserError: see `_create`; for `betas` or `eps` of an optimiser that has none.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    name = models[0][1].optimizer
    for module, settings, classifier in models:
        own = _own_options(name, settings)
        for parameter, (lr, decay) in rates_of_parameters(module, settings, classifier).items():
            options = {"lr": lr, "weight_decay": decay, **own}
            groups.setdefault(tuple(options.values()), {"params": [], **options})["params"].append(parameter)
    return _create(name, list(groups.values()))


def build_adversarial_optimizer(kind: str, parameters: Iterable[nn.Parameter], config: DistillConfig) -> Optimizer:
    """Builds the optimiser of the feature loss or of the discriminators.

    Args:
        kind: `feature` or `discriminator`.
        parameters: what it updates.
        config: whose recipe it follows.
    """
    decays = {"feature": config.adversarial_weight_decay, "discriminator": config.discriminator_weight_decay}
    options = {"lr": _base_rate(kind, config), "weight_decay": decays[kind]}
    return _create(config.adversarial_optimizer, [{"params": list(parameters), **options}])


def check_optimizer_name(name: str) -> None:
    """Raises UserError for a name that timm does not know, or an optimiser that needs second derivatives."""
    known = list_optimizers()
    if name not in known:
        # timm's names are in lower case: AdamW is adamw.
        near = name.lower() if name.lower() in known else closest(name, known)
        raise UserError(f"optimizer: timm has no optimiser {name!r}, the closest are {near or 'momentum, adamw'}")
    if get_optimizer_info(name).second_order:
        raise UserError(f"optimizer: {name!r} needs second derivatives, which are not computed: choose another")


def _own_options(name: str, settings: DistillConfig) -> dict[str, Any]:
    """Momentum, betas and eps of a parameter group, as far as the optimiser has them.

    Raises:
        UserError: as `check_optimizer_name`, and for betas or eps of an optimiser that has none.
    """
    check_optimizer_name(name)
    info = get_optimizer_info(name)
    options: dict[str, Any] = {"momentum": settings.momentum} if info.has_momentum else {}
    if settings.betas is not None:
        if not info.has_betas:
            raise UserError(f"betas: {show(settings.betas)} is not allowed, {name} has none: leave them out")
        if len(settings.betas) != 2:
            raise UserError(
                f"betas: {show(settings.betas)} is not allowed, expected 2 numbers: 0.9 0.999, or of model 1 alone "
                "1:0.9 1:0.999"
            )
        options["betas"] = settings.betas
    if settings.eps is not None:
        if not info.has_eps:
            raise UserError(f"eps: {show(settings.eps)} is not allowed, {name} has none: leave it out")
        options["eps"] = settings.eps
    return options


def _create(name: str, groups: list[dict[str, Any]]) -> Optimizer:
    """Builds timm's optimiser of that name over parameter groups with options of their own.

    Raises:
        UserError: as `check_optimizer_name`, and where its library is not installed.
    """
    check_optimizer_name(name)
    extra: dict[str, Any] = {key: groups[0][key] for key in ("momentum",) if key in groups[0]}
    try:
        if "fused" in inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters:
            extra["fused"] = True
        # The groups say what decays: timm's filter would act on modules alone.
        optimizer: Optimizer = create_optimizer_v2(
            groups, opt=name, lr=groups[0]["lr"], weight_decay=0.0, filter_bias_and_bn=False, **extra
        )
    except (AssertionError, ImportError) as error:  # a library is not installed
        raise UserError(f"optimizer: {name!r} cannot be used here ({error}): choose another") from None
    return optimizer


def build_schedules(optimizers: Mapping[str, Optimizer], config: DistillConfig, steps: int) -> dict[str, Scheduler]:
    """Builds a schedule for each optimiser; the learning rate is a function of the update's number alone.

    Args:
        optimizers: by the name of the optimiser group; those of the logit loss start with `logit`.
        config: whose recipe they follow; milestones are fractions of the run.
        steps: updates of the whole run.

    Raises:
        UserError: for a `min_lr` above a learning rate.
    """
    adversarial_steps = -(-steps // config.adversarial_interval)
    factor = PAPER_STEPS / adversarial_steps if config.scale_adversarial_lr else 1.0
    warmups = {"logit": config.warmup_fraction, "feature": config.adversarial_warmup_fraction, "discriminator": 0.0}
    schedules = {}
    for name, optimizer in optimizers.items():
        kind = name.partition("-")[0]
        smallest = min(group["lr"] for group in optimizer.param_groups)
        if kind == "logit" and config.min_lr > smallest:
            raise UserError(f"min_lr: {config.min_lr:g} is above a learning rate of {smallest:g}: give a smaller one")
        if kind != "logit":
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"] = _base_rate(kind, config) * factor
        schedules[name], _ = create_scheduler_v2(
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
            min_lr=config.min_lr if kind == "logit" else 0.0,
            warmup_epochs=round(warmups[kind] * steps),
            warmup_lr=0.0,
        )
    return schedules


def _base_rate(kind: str, config: DistillConfig) -> float:
    return config.adversarial_lr if kind == "feature" else config.discriminator_lr
