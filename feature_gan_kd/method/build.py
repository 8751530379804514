"""From networks and edges to a step: taps, links, and which parameters each optimiser has."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.method.connection import Link, build_links, check_taps
from feature_gan_kd.method.discriminator import Discriminator
from feature_gan_kd.method.step import AdversarialStep, Update
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.build import Network, memory_format_for
from feature_gan_kd.models.discovery import Trial, find_taps, layers_of, try_out
from feature_gan_kd.models.input_adapter import InputAdapter
from feature_gan_kd.models.taps import Layer, MapShape, TappedNetwork
from feature_gan_kd.optim.build import build_optimizer
from feature_gan_kd.optim.gradient_stats import Diagnosis
from feature_gan_kd.utils.errors import UserError, reason


@dataclass(frozen=True)
class Wiring:
    """The parts that a step needs.

    Attributes:
        edges: who teaches whom.
        frozen: networks that only teach.
        tapped: every network with its taps, in order.
        extractors: per network the parameters that its maps come from.
        links: transfers and discriminators, in the order of edges and taps; none where no maps are compared.
        num_classes: size of the logits of all networks.
    """

    edges: tuple[Edge, ...]
    frozen: tuple[int, ...]
    tapped: list[TappedNetwork]
    extractors: list[set[nn.Parameter]]
    links: list[Link]
    num_classes: int

    def trained_parts(self) -> dict[str, nn.Module]:
        """What training changes, by the name that an error gives it; parts without parameters are left out."""
        parts: dict[str, nn.Module] = {network.name: network.network for network in self.tapped}
        for link in self.links:
            where = f"{link.edge}" if len(self.links) == len(self.edges) else f"{link.edge} at layer {link.tap}"
            parts[f"transfer {where}"] = link.transfer
            if link.discriminator is not None:
                parts[f"discriminator {where}"] = link.discriminator
        return {name: module for name, module in parts.items() if next(module.parameters(), None) is not None}


def wire(
    networks: Sequence[Network],
    edges: tuple[Edge, ...],
    frozen: Collection[int],
    feature_layers: Any,
    config: DistillConfig,
    *,
    in_chans: int,
    discriminator: Callable[[MapShape], nn.Module] | None = None,
) -> Wiring:
    """Finds every network's maps by one real forward, and builds what stands between them.

    Args:
        networks: in order.
        edges: who teaches whom.
        frozen: networks that only teach.
        feature_layers: in the user's notation, see `OnlineAdversarialDistiller`.
        config: whose method decides what is built.
        in_chans: channels of the images.
        discriminator: makes a discriminator for maps of a shape; None makes the paper's.

    Raises:
        UserError: for a layer that cannot be tapped, layers of a network that is not there, networks without
            parameters, with different numbers of classes, or that fail on the images, peers with different numbers of
            taps, or a discriminator of one's own that does not fit.
    """
    objective = config.objective
    parameter = next((p for network in networks for p in network.module.parameters()), None)
    if parameter is None:
        raise UserError("models: the networks have no parameters")
    if isinstance(feature_layers, Mapping) and not set(feature_layers) <= set(range(len(networks))):
        raise UserError(f"feature_layers: names networks {sorted(feature_layers)}, there are 0 to {len(networks) - 1}")
    tapped, extractors, classes = [], [], []
    for k, network in enumerate(networks):
        one, trial = _tap(network, k, layers_of(feature_layers, k), config, in_chans, parameter)
        tapped.append(one)
        extractors.append(trial.extractor)
        classes.append(trial.classes)
    if len(set(classes)) > 1:
        raise UserError(f"models: the networks have {classes} classes: build all with one num_classes")
    links: list[Link] = []
    shapes = [[tap.shape for tap in network.taps] for network in tapped]
    if config.record_similarity:
        check_taps(edges, shapes)
    if objective.has_feature_loss:
        links = build_links(edges, shapes, config.seed, _maker(discriminator, config))
        for link in links:
            link.to(device=parameter.device, dtype=parameter.dtype)
    return Wiring(edges, tuple(frozen), tapped, extractors, links, classes[0])


def _tap(
    network: Network, k: int, layers: Sequence[Layer], config: DistillConfig, in_chans: int, like: Tensor
) -> tuple[TappedNetwork, Trial]:
    """Network k with its taps, and what one forward of it on images of the device and type of `like` gave."""
    name = f"network {k} ({network.name})"
    size = network.image_size
    images = torch.zeros((2, in_chans, size, size), device=like.device, dtype=like.dtype)
    adapter = InputAdapter(size, memory_format_for(network.module, like.device, config.channels_last))
    try:
        taps = (
            find_taps(network.module, images, name, layers, vectors=config.vectors_as_maps)
            if config.objective.updates_extractors or config.record_similarity
            else []
        )
        tapped = TappedNetwork(network.module, taps, name, adapter)
        return tapped, try_out(tapped, images)
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
    if config.objective.adversarial_weight == 0:
        return None
    return own or functools.partial(
        Discriminator,
        width=config.discriminator_width,
        norm=config.discriminator_norm,
        bounded=config.objective.adversarial_loss == "paper",
        patches=config.discriminator_patches,
        spectral_norm=config.discriminator_spectral_norm,
        noise=config.discriminator_noise,
    )


def build_step(
    wiring: Wiring, config: DistillConfig, autocast: Callable[[], contextlib.AbstractContextManager[None]]
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
    for k, network in enumerate(wiring.tapped):
        if k in wiring.frozen:
            continue
        own = [(parameter, network.name) for parameter in network.parameters() if parameter.requires_grad]
        if not own:
            raise UserError(f"{network.name}: it has no parameter to train: add {k} to frozen")
        learnt += own
        if not config.single_backward:
            extracting += [(parameter, name) for parameter, name in own if parameter in wiring.extractors[k]]
    judging: list[tuple[nn.Parameter, str]] = []
    for link in wiring.links:
        extracting += [(parameter, f"transfer layer {link.edge}") for parameter in link.transfer.parameters()]
        if link.discriminator is not None:
            judging += [(parameter, f"discriminator {link.edge}") for parameter in link.discriminator.parameters()]
    objective = config.objective
    if objective.updates_extractors and not extracting and not config.single_backward:
        raise UserError("models: nothing that a map comes from is trained: unfreeze it, or choose method logit")
    return AdversarialStep(
        wiring.tapped,
        wiring.edges,
        wiring.frozen,
        wiring.links,
        objective,
        logit_update=_update("logit", learnt, config),
        feature_update=_update("feature", extracting, config) if objective.updates_extractors and extracting else None,
        discriminator_update=_update("discriminator", judging, config) if judging else None,
        adversarial_interval=config.adversarial_interval,
        discriminator_interval=config.discriminator_interval,
        discriminator_unpaired=config.discriminator_unpaired,
        single_backward=config.single_backward,
        accumulation_steps=config.accumulation_steps,
        clip_grad=config.clip_grad,
        sync_batchnorm=config.sync_batchnorm,
        autocast=autocast,
        diagnosis=Diagnosis(
            _parts(wiring),
            config.log_every if config.record_gradients else None,
            config.adversarial_interval * config.discriminator_interval,
        ),
    )


def _parts(wiring: Wiring) -> dict[nn.Parameter, str]:
    """The part that each parameter of a network or a discriminator belongs to: a position, or an edge."""
    owned: list[tuple[nn.Module, str]] = [(network, str(k)) for k, network in enumerate(wiring.tapped)]
    owned += [(link.discriminator, str(link.edge)) for link in wiring.links if link.discriminator is not None]
    return {parameter: part for module, part in owned for parameter in module.parameters()}


def _update(kind: str, owned: Sequence[tuple[nn.Parameter, str]], config: DistillConfig) -> Update:
    parameters = [parameter for parameter, _ in owned]
    return Update(parameters, build_optimizer(kind, parameters, config), [owner for _, owner in owned])
