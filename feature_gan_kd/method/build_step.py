"""Builds the update of the modules: which parameters each optimiser steps, and by which loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from torch import nn
from torch.amp.grad_scaler import GradScaler

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method.build import MethodModules
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.models.cached_outputs import CachedOutputs
from feature_gan_kd.models.prepare import classifier_parameters
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.optim.build import build_adversarial_optimizer, build_logit_optimizer
from feature_gan_kd.optim.gradient_stats import GradientStats
from feature_gan_kd.optim.gradients import OptimizerGroup
from feature_gan_kd.utils.errors import UserError


def build_step(
    modules: MethodModules,
    config: DistillConfig,
    autocast: Callable[[], contextlib.AbstractContextManager[None]],
    own: Sequence[DistillConfig] = (),
    averaged_sources: Mapping[int, TappedModel] | None = None,
    cached_sources: Mapping[int, CachedOutputs] | None = None,
) -> AdversarialStep:
    """Builds the update of all modules, with an optimiser for each kind of gradient.

    Args:
        modules: what it updates.
        config: of losses and optimisers.
        autocast: makes the context in which forward passes run.
        own: for each model the settings in force for it; empty: `config` for all.
        averaged_sources: what teaches in place of a model, by its position.
        cached_sources: what is asked in place of a frozen model, by its position.

    Raises:
        UserError: for a learner without a trainable parameter, a method that compares maps of frozen layers only, or a
            view of the sources where none has its own.
    """
    logit, feature, discriminator = _parameters_by_loss(modules, config)
    weights = config.loss_weights
    scalers = _scalers(modules, config)
    has_extractor = any(modules.extractors[k] for k in range(len(modules.tapped)) if k not in modules.frozen)
    if weights.updates_extractors and not has_extractor:
        learners = [k for k in range(len(modules.tapped)) if k not in modules.frozen]
        if any((own[k] if own else config).freeze_backbone for k in learners):
            raise UserError(
                "freeze_backbone: it freezes every layer before the maps of all models that learn, which method "
                f"{config.method} trains: leave one of them out of it, or choose method logit"
            )
        raise UserError("models: every layer before the tapped maps is frozen: unfreeze one, or choose method logit")
    if config.source_view == "plain" and not (averaged_sources or modules.frozen):
        raise UserError(
            "source_view: plain is for sources that are frozen or teach with averaged weights: set targets to ema"
        )
    return AdversarialStep(
        modules.tapped,
        modules.logit_edges,
        modules.frozen,
        modules.connections,
        weights,
        logit_groups=_logit_groups(modules, logit, own or [config] * len(modules.tapped), scalers["logit"]),
        feature_group=_group("feature", feature, config, scalers) if weights.updates_extractors and feature else None,
        discriminator_group=_group("discriminator", discriminator, config, scalers) if discriminator else None,
        adversarial_interval=config.adversarial_interval,
        discriminator_interval=config.discriminator_interval,
        joint_backward=config.joint_backward,
        grad_accum_steps=config.grad_accum_steps,
        sync_batchnorm=config.sync_batchnorm,
        autocast=autocast,
        gradient_stats=GradientStats(
            _gradient_stats_parts(modules),
            config.log_every_steps if config.log_gradients else None,
            config.adversarial_interval * config.discriminator_interval,
        ),
        averaged_sources=averaged_sources,
        cached_sources=cached_sources,
        channels=modules.in_chans if config.source_view == "plain" else None,
    )


Owned = list[tuple[nn.Parameter, str]]
"""Parameters, each with the part that owns it, in words."""


def _parameters_by_loss(modules: MethodModules, config: DistillConfig) -> tuple[Owned, Owned, Owned]:
    """The parameters that the logit, the feature and the discriminator loss train (paper, section 3).

    Under `joint_backward` the models' feature loss joins their logit loss, and `feature` holds transfer layers alone.
    """
    logit: Owned = []
    feature: Owned = []
    discriminator: Owned = []
    for k, model in enumerate(modules.tapped):
        if k in modules.frozen:
            continue
        own = [(parameter, model.name) for parameter in model.parameters() if parameter.requires_grad]
        if not own:
            raise UserError(f"{model.name}: it has no parameter to train: add {k} to frozen")
        logit += own
        if not config.joint_backward:
            feature += [(parameter, name) for parameter, name in own if parameter in modules.extractors[k]]
    for connection in modules.connections:
        edge = connection.edge
        feature += [(parameter, f"transfer layer {edge}") for parameter in connection.transfer.parameters()]
        if connection.discriminator is not None:
            own = [(parameter, f"discriminator {edge}") for parameter in connection.discriminator.parameters()]
            discriminator += own
    return logit, feature, discriminator


def _gradient_stats_parts(modules: MethodModules) -> dict[nn.Parameter, str]:
    """For each parameter of a model or a discriminator the name of its statistics: a position, or an edge."""
    parts: list[tuple[nn.Module, str]] = [(model, str(k)) for k, model in enumerate(modules.tapped)]
    parts += [(one.discriminator, str(one.edge)) for one in modules.connections if one.discriminator is not None]
    return {parameter: part for module, part in parts for parameter in module.parameters()}


def _scalers(modules: MethodModules, config: DistillConfig) -> dict[str, GradScaler]:
    """The scaler of the loss of each kind of gradient, on under fp16 alone; one backward pass has one scale."""
    device = next(modules.tapped[0].parameters()).device.type
    scalers = {
        kind: GradScaler(device, enabled=config.mixed_precision == "fp16")
        for kind in ("logit", "feature", "discriminator")
    }
    return scalers | {"feature": scalers["logit"]} if config.joint_backward else scalers


def _logit_groups(
    modules: MethodModules, owned: Owned, settings: Sequence[DistillConfig], scaler: GradScaler
) -> list[OptimizerGroup]:
    """One group for each kind of optimiser that the learners have, in the order of the learners."""
    learners: dict[str, list[int]] = {}
    for k in range(len(modules.tapped)):
        if k not in modules.frozen:
            learners.setdefault(settings[k].optimizer, []).append(k)
    groups = []
    for name, members in learners.items():
        models = {k: modules.tapped[k] for k in members}
        names = {model.name for model in models.values()}
        own = [(parameter, owner) for parameter, owner in owned if owner in names]
        optimizer = build_logit_optimizer(
            [(model.module, settings[k], _classifier(model, settings[k])) for k, model in models.items()]
        )
        groups.append(
            OptimizerGroup(
                "logit",
                [parameter for parameter, _ in own],
                optimizer,
                [owner for _, owner in own],
                {models[k].name: largest for k in members if (largest := settings[k].clip_grad) is not None},
                "logit" if len(learners) == 1 else f"logit-{name}",
                scaler,
            )
        )
    return groups


def _classifier(model: TappedModel, settings: DistillConfig) -> list[nn.Parameter]:
    if settings.head_lr_scale == 1:
        return []
    return classifier_parameters(model.module, model.name, "head_lr_scale")


def _group(kind: str, owned: Owned, config: DistillConfig, scalers: Mapping[str, GradScaler]) -> OptimizerGroup:
    parameters = [parameter for parameter, _ in owned]
    optimizer = build_adversarial_optimizer(kind, parameters, config)
    return OptimizerGroup(kind, parameters, optimizer, [owner for _, owner in owned], scaler=scalers[kind])
