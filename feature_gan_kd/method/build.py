"""From models and edges to a step: taps, links, and which parameters each optimiser has."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.method.connection import Connection, build_connections, check_taps
from feature_gan_kd.method.discriminator import Discriminator
from feature_gan_kd.method.step import AdversarialStep, OptimizerGroup
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.build import PeerModel, safe_memory_format
from feature_gan_kd.models.discovery import DryRun, dry_run, find_taps, layers_of
from feature_gan_kd.models.input_adapter import InputAdapter
from feature_gan_kd.models.taps import Layer, MapShape, TappedModel
from feature_gan_kd.optim.build import build_optimizer
from feature_gan_kd.optim.gradient_stats import GradientStats
from feature_gan_kd.utils.errors import UserError, reason


@dataclass(frozen=True)
class MethodModules:
    """The parts that a step needs.

    Attributes:
        edges: who teaches whom.
        frozen: models that only teach.
        tapped: every model with its taps, in order.
        extractors: per model the parameters that its maps come from.
        links: transfers and discriminators, in the order of edges and taps; none where no maps are compared.
        num_classes: size of the logits of all models.
    """

    edges: tuple[Edge, ...]
    frozen: tuple[int, ...]
    tapped: list[TappedModel]
    extractors: list[set[nn.Parameter]]
    connections: list[Connection]
    num_classes: int

    def trained_parts(self) -> dict[str, nn.Module]:
        """What training changes, by the name that an error gives it; parts without parameters are left out."""
        parts: dict[str, nn.Module] = {model.name: model.module for model in self.tapped}
        for connection in self.connections:
            where = (
                f"{connection.edge}"
                if len(self.connections) == len(self.edges)
                else f"{connection.edge} at layer {connection.tap}"
            )
            parts[f"transfer {where}"] = connection.transfer
            if connection.discriminator is not None:
                parts[f"discriminator {where}"] = connection.discriminator
        return {name: module for name, module in parts.items() if next(module.parameters(), None) is not None}


def build_modules(
    models: Sequence[PeerModel],
    edges: tuple[Edge, ...],
    frozen: Collection[int],
    feature_layers: Any,
    config: DistillConfig,
    *,
    in_chans: int,
    discriminator: Callable[[MapShape], nn.Module] | None = None,
) -> MethodModules:
    """Finds every model's maps by one real forward, and builds what stands between them.

    Args:
        models: in order.
        edges: who teaches whom.
        frozen: models that only teach.
        feature_layers: in the user's notation, see `OnlineAdversarialDistiller`.
        config: whose method decides what is built.
        in_chans: channels of the images.
        discriminator: makes a discriminator for maps of a shape; None makes the paper's.

    Raises:
        UserError: for a layer that cannot be tapped, layers of a model that is not there, models without
            parameters, with different numbers of classes, or that fail on the images, peers with different numbers of
            taps, or a discriminator of one's own that does not fit.
    """
    loss_weights = config.loss_weights
    parameter = next((p for model in models for p in model.module.parameters()), None)
    if parameter is None:
        raise UserError("models: the models have no parameters")
    if isinstance(feature_layers, Mapping) and not set(feature_layers) <= set(range(len(models))):
        raise UserError(f"feature_layers: names models {sorted(feature_layers)}, there are 0 to {len(models) - 1}")
    tapped, extractors, classes = [], [], []
    for k, model in enumerate(models):
        one, trial = _tap(model, k, layers_of(feature_layers, k), config, in_chans, parameter)
        tapped.append(one)
        extractors.append(trial.extractor)
        classes.append(trial.classes)
    if len(set(classes)) > 1:
        raise UserError(f"models: the models have {classes} classes: build all with one num_classes")
    connections: list[Connection] = []
    shapes = [[tap.shape for tap in model.taps] for model in tapped]
    if config.similarity_images:
        check_taps(edges, shapes)
    if loss_weights.has_feature_loss:
        connections = build_connections(edges, shapes, config.seed, _maker(discriminator, config))
        for connection in connections:
            connection.to(device=parameter.device, dtype=parameter.dtype)
    return MethodModules(edges, tuple(frozen), tapped, extractors, connections, classes[0])


def _tap(
    model: PeerModel, k: int, layers: Sequence[Layer], config: DistillConfig, in_chans: int, like: Tensor
) -> tuple[TappedModel, DryRun]:
    """Model k with its taps, and what one forward of it on images of the device and type of `like` gave."""
    name = f"model {k} ({model.name})"
    size = model.image_size
    images = torch.zeros((2, in_chans, size, size), device=like.device, dtype=like.dtype)
    adapter = InputAdapter(size, safe_memory_format(model.module, like.device, config.channels_last))
    try:
        taps = (
            find_taps(model.module, images, name, layers, vectors=config.vectors_as_maps)
            if config.loss_weights.updates_extractors or config.similarity_images
            else []
        )
        tapped = TappedModel(model.module, taps, name, adapter)
        return tapped, dry_run(tapped, images)
    except UserError:
        raise
    except Exception as error:  # from inside the user's module, of any kind
        shape = "x".join(map(str, images.shape[1:]))
        said = reason(error)
        raise UserError(f"{name}: it fails on images of {shape} ({said}): see to image_size and in_chans") from error


def _maker(
    own: Callable[[MapShape], nn.Module] | None, config: DistillConfig
) -> Callable[[MapShape], nn.Module] | None:
    """What makes a discriminator for maps of a shape; None where the method asks none."""
    if config.loss_weights.adversarial_weight == 0:
        return None
    return own or functools.partial(
        Discriminator,
        width=config.discriminator_width,
        norm=config.discriminator_norm,
        bounded=config.loss_weights.adversarial_loss == "paper",
        patches=config.discriminator_patches,
        spectral_norm=config.discriminator_spectral_norm,
        noise=config.discriminator_noise,
    )


def build_step(
    modules: MethodModules, config: DistillConfig, autocast: Callable[[], contextlib.AbstractContextManager[None]]
) -> AdversarialStep:
    """The update of all parts, with an optimiser per kind of gradient.

    Args:
        wiring: the parts.
        config: of losses and optimisers.
        autocast: makes the context in which forward passes run.

    Raises:
        UserError: for a learner without a trainable parameter.
    """
    learnt: list[tuple[nn.Parameter, str]] = []
    extracting: list[tuple[nn.Parameter, str]] = []
    for k, model in enumerate(modules.tapped):
        if k in modules.frozen:
            continue
        own = [(parameter, model.name) for parameter in model.parameters() if parameter.requires_grad]
        if not own:
            raise UserError(f"{model.name}: it has no parameter to train: add {k} to frozen")
        learnt += own
        if not config.joint_backward:
            extracting += [(parameter, name) for parameter, name in own if parameter in modules.extractors[k]]
    judging: list[tuple[nn.Parameter, str]] = []
    for connection in modules.connections:
        extracting += [
            (parameter, f"transfer layer {connection.edge}") for parameter in connection.transfer.parameters()
        ]
        if connection.discriminator is not None:
            judging += [
                (parameter, f"discriminator {connection.edge}") for parameter in connection.discriminator.parameters()
            ]
    loss_weights = config.loss_weights
    if loss_weights.updates_extractors and not extracting and not config.joint_backward:
        raise UserError("models: nothing that a map comes from is trained: unfreeze it, or choose method logit")
    return AdversarialStep(
        modules.tapped,
        modules.edges,
        modules.frozen,
        modules.connections,
        loss_weights,
        logit_group=_update("logit", learnt, config),
        feature_group=_update("feature", extracting, config)
        if loss_weights.updates_extractors and extracting
        else None,
        discriminator_group=_update("discriminator", judging, config) if judging else None,
        adversarial_interval=config.adversarial_interval,
        discriminator_interval=config.discriminator_interval,
        discriminator_unpaired=config.discriminator_unpaired,
        joint_backward=config.joint_backward,
        grad_accum_steps=config.grad_accum_steps,
        clip_grad=config.clip_grad,
        sync_batchnorm=config.sync_batchnorm,
        autocast=autocast,
        gradient_stats=GradientStats(
            _parts(modules),
            config.log_every_steps if config.log_gradients else None,
            config.adversarial_interval * config.discriminator_interval,
        ),
    )


def _parts(modules: MethodModules) -> dict[nn.Parameter, str]:
    """The part that each parameter of a model or a discriminator belongs to: a position, or an edge."""
    owned: list[tuple[nn.Module, str]] = [(model, str(k)) for k, model in enumerate(modules.tapped)]
    owned += [
        (connection.discriminator, str(connection.edge))
        for connection in modules.connections
        if connection.discriminator is not None
    ]
    return {parameter: part for module, part in owned for parameter in module.parameters()}


def _update(kind: str, owned: Sequence[tuple[nn.Parameter, str]], config: DistillConfig) -> OptimizerGroup:
    parameters = [parameter for parameter, _ in owned]
    return OptimizerGroup(parameters, build_optimizer(kind, parameters, config), [owner for _, owner in owned])
