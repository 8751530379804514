"""Builds the update from models and edges: taps, connections, and which parameters each optimiser steps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method.connection import Connection, build_connections, check_taps
from feature_gan_kd.method.discriminator import Discriminator
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.build import safe_memory_format
from feature_gan_kd.models.cached_outputs import CachedOutputs
from feature_gan_kd.models.find_taps import DryRun, dry_run, find_taps, layers_of
from feature_gan_kd.models.in_place import check_in_place
from feature_gan_kd.models.input_adapter import InputAdapter
from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.models.prepare import classifier_parameters, modules_in_evaluation
from feature_gan_kd.models.tapped_model import (
    Layer,
    MapShape,
    TappedModel,
    check_one_head,
    evaluating,
    has_logits,
)
from feature_gan_kd.optim.build import build_adversarial_optimizer, build_logit_optimizer
from feature_gan_kd.optim.gradient_stats import GradientStats
from feature_gan_kd.optim.gradients import OptimizerGroup
from feature_gan_kd.utils.errors import UserError, reason


@dataclass(frozen=True)
class MethodModules:
    """The modules that an update works on.

    Attributes:
        edges: who teaches whom.
        frozen: models that only teach.
        tapped: every model with its taps, in order.
        extractors: for each model the parameters that its maps depend on.
        connections: in the order of edges and taps; empty where the method compares no maps.
        classes: for each model the size of its logits; 0 where it does not classify.
    """

    edges: tuple[Edge, ...]
    frozen: tuple[int, ...]
    tapped: list[TappedModel]
    extractors: list[set[nn.Parameter]]
    connections: list[Connection]
    classes: list[int]

    @property
    def num_classes(self) -> int:
        """The size of the learners' logits; 0 where none classifies."""
        return max(own for k, own in enumerate(self.classes) if k not in self.frozen)

    @property
    def logit_edges(self) -> tuple[Edge, ...]:
        """The edges whose ends know as many classes."""
        return tuple(edge for edge in self.edges if 0 < self.classes[edge.source] == self.classes[edge.learner])

    def trained_modules(self) -> dict[str, nn.Module]:
        """The modules with parameters that training changes, by the name that an error gives them."""
        modules: dict[str, nn.Module] = {model.name: model.module for model in self.tapped}
        one_tap = len(self.connections) == len(self.edges)
        for connection in self.connections:
            where = f"{connection.edge}" if one_tap else f"{connection.edge} at layer {connection.tap}"
            modules[f"transfer {where}"] = connection.transfer
            if connection.discriminator is not None:
                modules[f"discriminator {where}"] = connection.discriminator
        return {name: module for name, module in modules.items() if next(module.parameters(), None) is not None}


def build_modules(
    models: Sequence[PeerModel],
    edges: tuple[Edge, ...],
    frozen: Collection[int],
    feature_layers: Any,
    config: DistillConfig,
    *,
    in_chans: int,
    discriminator: Callable[[MapShape], nn.Module] | None = None,
    knows_classes: bool = True,
) -> MethodModules:
    """Finds every model's maps by one forward pass, and builds the connections between them.

    Args:
        models: in order.
        edges: who teaches whom.
        frozen: models that only teach.
        feature_layers: in the user's notation, see `OnlineAdversarialDistiller`.
        config: its method decides what is built.
        in_chans: channels of the images.
        discriminator: makes a discriminator for maps of a shape; None makes the paper's.
        knows_classes: whether the user stated the number of classes, which the logits are compared with elsewhere.
            Without that and without labels, no model's output counts as logits.

    Raises:
        UserError: for a model that returns several vectors where it is not known which are the logits; for a layer that
            cannot be tapped or belongs to a model that is not there; for models without parameters, with different
            numbers of classes, or that fail on the images; for peers with different numbers of taps; for a
            discriminator of your own that does not fit.
    """
    first = next((p for model in models for p in model.module.parameters()), None)
    if first is None:
        raise UserError("models: the models have no parameters: give models that can be trained")
    if isinstance(feature_layers, Mapping) and not set(feature_layers) <= set(range(len(models))):
        raise UserError(f"feature_layers: names models {sorted(feature_layers)}, there are 0 to {len(models) - 1}")
    tapped, extractors, classes = [], [], []
    for k, model in enumerate(models):
        if k not in frozen:
            check_one_head(model.module, f"model {k} ({model.name})")
        may_classify = model.classes != 0 and (config.labels or knows_classes)
        one, found = _tap(
            model,
            k,
            layers_of(feature_layers, k),
            config,
            in_chans,
            first,
            learns=k not in frozen,
            may_classify=may_classify,
        )
        if not knows_classes and one.classifies:
            found.check_one_vector(one.name)
        tapped.append(one)
        extractors.append(found.extractor)
        classes.append(found.classes)
    _tell_features(tapped, classes, frozen)
    learned = {own for k, own in enumerate(classes) if k not in frozen and (own or config.labels)}
    if len(learned) > 1:
        raise UserError(f"models: the models have {classes} classes: build all that learn with one num_classes")
    shapes = [[tap.shape for tap in model.taps] for model in tapped]
    if config.similarity_images:
        check_taps(edges, shapes)
    connections = _connect(edges, shapes, config, discriminator) if config.loss_weights.has_feature_loss else []
    for connection in connections:
        connection.to(device=first.device, dtype=first.dtype)
    modules = MethodModules(edges, tuple(frozen), tapped, extractors, connections, classes)
    _check_terms(modules, config)
    return modules


def _tell_features(tapped: Sequence[TappedModel], classes: list[int], frozen: Collection[int]) -> None:
    """Takes the vector of a frozen module that does not say how many classes it has for features.

    Unless it has as many numbers as the learners have logits.
    """
    learned = {own for k, own in enumerate(classes) if k not in frozen}
    for k in frozen:
        if classes[k] not in learned and not hasattr(tapped[k].module, "num_classes"):
            tapped[k].tell_features()
            classes[k] = 0


def _check_terms(modules: MethodModules, config: DistillConfig) -> None:
    """Checks that something is learned over every edge, and without labels in every update.

    Raises:
        UserError: for an edge on which no term acts, and for updates without a loss.
    """
    weights = config.loss_weights
    teaches = weights.has_feature_loss or weights.kl_weight > 0
    if not weights.labels and not teaches:
        raise UserError(f"labels: method {config.method} learns from labels alone: choose another method")
    for edge in modules.edges if teaches and not weights.has_feature_loss else ():
        if edge not in modules.logit_edges:
            source, learner = (modules.tapped[k].name for k in (edge.source, edge.learner))
            counts = " and ".join(f"{modules.classes[k] or 'no'} classes" for k in (edge.source, edge.learner))
            raise UserError(
                f"method: {config.method} compares logits alone, and {source} and {learner} have {counts}: choose a "
                "method that compares feature maps"
            )
    if not weights.labels and not modules.logit_edges and config.adversarial_interval > 1:
        raise UserError(
            "adversarial_interval: without labels the updates between would learn nothing: leave it at 1, and train "
            "for fewer epochs"
        )


def _connect(
    edges: tuple[Edge, ...],
    shapes: Sequence[Sequence[MapShape]],
    config: DistillConfig,
    discriminator: Callable[[MapShape], nn.Module] | None,
) -> list[Connection]:
    """Builds a connection for each edge and tap, with discriminators of the user's own or the paper's."""
    bounded = config.loss_weights.adversarial_loss == "paper"
    factory = _discriminator_factory(discriminator, config)
    projects = config.loss_weights.compares_in_one_space
    return build_connections(edges, shapes, config.seed, factory, bounded=bounded, projects=projects)


def _tap(
    model: PeerModel,
    k: int,
    layers: Sequence[Layer],
    config: DistillConfig,
    in_chans: int,
    like: Tensor,
    *,
    learns: bool,
    may_classify: bool,
) -> tuple[TappedModel, DryRun]:
    """Taps model k, and runs it once on images of the device and type of `like`."""
    name = f"model {k} ({model.name})"
    size = model.image_size
    images = torch.zeros((2, in_chans, size, size), device=like.device, dtype=like.dtype)
    adapter = InputAdapter(size, safe_memory_format(model.module, like.device, config.channels_last))
    needs_maps = config.loss_weights.updates_extractors or config.similarity_images
    try:
        taps = find_taps(model.module, images, name, layers, vectors=config.vectors_as_maps) if needs_maps else []
        always_evaluated = modules_in_evaluation(model.module, model.own_config(config))
        classifies = may_classify and _classifies(model.module, images, learns=learns and config.labels)
        tapped = TappedModel(model.module, taps, name, adapter, always_evaluated, classifies=classifies)
        named = [layer for layer in layers if isinstance(layer, str)] if taps else []
        check_in_place(tapped, images, named, learns=learns)
        return tapped, dry_run(tapped, images)
    except UserError:
        raise
    except Exception as error:  # the user's module can raise anything
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"{name}: it fails on images of {shape} ({reason(error)}): check image_size and in_chans"
        ) from error


def _classifies(module: nn.Module, images: Tensor, *, learns: bool) -> bool:
    """Whether what a module returns for images (batch, channels, height, width) are logits.

    Those of a model that learns from labels must be, which its dry run checks.
    """
    if getattr(module, "num_classes", None) == 0:
        return False
    if learns:
        return True
    with evaluating(module), torch.no_grad():
        return has_logits(module(images.clone()))


def _discriminator_factory(
    own: Callable[[MapShape], nn.Module] | None, config: DistillConfig
) -> Callable[[MapShape], nn.Module] | None:
    """What makes a discriminator for maps of a shape; None where the method has none."""
    if config.loss_weights.adversarial_weight == 0:
        return None
    return own or functools.partial(
        Discriminator,
        width=config.discriminator_width,
        norm=config.discriminator_norm,
        bounded=config.loss_weights.adversarial_loss == "paper",
    )


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
        UserError: for a learner without a trainable parameter, or a method that compares maps of frozen layers only.
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
