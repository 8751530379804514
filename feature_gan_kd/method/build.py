"""Builds what an update works on: models with their taps, and the connections between them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.method.connection import Connection, build_connections, check_taps
from feature_gan_kd.method.discriminator import ClassDiscriminator, Discriminator
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.build import safe_memory_format
from feature_gan_kd.models.find_taps import DryRun, dry_run, find_taps, layers_of
from feature_gan_kd.models.in_place import check_in_place
from feature_gan_kd.models.input_adapter import InputAdapter
from feature_gan_kd.models.outputs import has_logits
from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.models.prepare import modules_in_evaluation
from feature_gan_kd.models.tapped_model import Layer, MapShape, TappedModel, check_one_head, evaluating
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
        in_chans: channels of the images.
    """

    edges: tuple[Edge, ...]
    frozen: tuple[int, ...]
    tapped: list[TappedModel]
    extractors: list[set[nn.Parameter]]
    connections: list[Connection]
    classes: list[int]
    in_chans: int

    @property
    def num_classes(self) -> int:
        """The size of the learners' logits; 0 where none classifies."""
        return max(own for k, own in enumerate(self.classes) if k not in self.frozen)

    @property
    def logit_edges(self) -> tuple[Edge, ...]:
        """The edges whose ends know as many classes."""
        return tuple(edge for edge in self.edges if 0 < self.classes[edge.source] == self.classes[edge.learner])

    def terms(self, edge: Edge, weights: LossSettings) -> list[str]:
        """The loss terms that act over an edge; that of the logits needs two models that know the same classes.

        Args:
            edge: one of the edges.
            weights: of the terms.
        """
        return ["logits"] * (weights.kl_weight > 0 and edge in self.logit_edges) + list(weights.feature_terms)

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
    modules = MethodModules(edges, tuple(frozen), tapped, extractors, [], classes, in_chans)
    _check_terms(modules, config)
    if config.loss_weights.has_feature_loss:
        modules = replace(modules, connections=_connect(modules, shapes, config, discriminator))
    for connection in modules.connections:
        connection.to(device=first.device, dtype=first.dtype)
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
            raise UserError(
                f"method: {config.method} compares logits alone, and {_describe_classes(modules, edge)}: choose a "
                "method that compares feature maps"
            )
    taught = {edge.learner for edge in modules.logit_edges} if weights.kl_weight > 0 else set()
    for k, classes in enumerate(modules.classes):
        if not weights.labels and classes and k not in modules.frozen and k not in taught:
            raise UserError(
                f"num_classes: without labels nothing teaches the classifier of {modules.tapped[k].name}, since no "
                "source of its logits knows the same classes: leave num_classes out, or give it such a source"
            )
    if not weights.labels and not modules.logit_edges and config.adversarial_interval > 1:
        raise UserError(
            "adversarial_interval: without labels the updates between would learn nothing: leave it at 1, and train "
            "for fewer epochs"
        )


def _describe_classes(modules: MethodModules, edge: Edge) -> str:
    source, learner = (modules.tapped[k].name for k in (edge.source, edge.learner))
    counts = " and ".join(f"{modules.classes[k] or 'no'} classes" for k in (edge.source, edge.learner))
    return f"{source} and {learner} have {counts}"


def _connect(
    modules: MethodModules,
    shapes: Sequence[Sequence[MapShape]],
    config: DistillConfig,
    discriminator: Callable[[MapShape], nn.Module] | None,
) -> list[Connection]:
    """Builds a connection for each edge and tap, with discriminators of the user's own or the paper's."""
    bounded = config.loss_weights.adversarial_loss == "paper"
    factory = _discriminator_factory(discriminator, modules, config)
    projects = config.loss_weights.compares_in_one_space
    max_grid = config.loss_weights.max_grid
    return build_connections(
        modules.edges, shapes, config.seed, factory, bounded=bounded, projects=projects, max_grid=max_grid
    )


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
    images = torch.zeros((2, model.channels or in_chans, size, size), device=like.device, dtype=like.dtype)
    order = safe_memory_format(model.module, like.device, config.channels_last)
    adapter = InputAdapter(size, model.channels, order, config.interpolation)
    needs_maps = config.loss_weights.updates_extractors or config.similarity_images
    try:
        taps = find_taps(model.module, images, name, layers, vectors=config.vectors_as_maps) if needs_maps else []
        always_evaluated = modules_in_evaluation(model.module, model.own_config(config))
        classifies = may_classify and _classifies(model.module, images, learns=learns and config.labels)
        tapped = TappedModel(
            model.module, taps, name, adapter, always_evaluated, classifies=classifies, input_note=model.input_note
        )
        named = [layer for layer in layers if isinstance(layer, str)] if taps else []
        check_in_place(tapped, images, named, learns=learns)
        if not learns:
            _check_repeats(tapped, images)
        return tapped, dry_run(tapped, images)
    except UserError:
        raise
    except Exception as error:  # the user's module can raise anything
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"{name}: it fails on images of {shape} ({reason(error)}): check image_size and in_chans"
        ) from error


def _check_repeats(model: TappedModel, images: Tensor) -> None:
    """Checks that a model that only teaches gives the same for the same image (batch, channels, height, width).

    Raises:
        UserError: for one that draws random numbers, as a masked autoencoder does, whose maps have no places; and for
            one whose answers for an image depend on the others of its batch.
    """
    if images.is_meta:
        return
    images = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)  # no two patches alike
    others = torch.cat([images[:1], 1 - images[1:]])
    with evaluating(model), torch.no_grad():
        first, again, beside = (_outputs(model, one) for one in (images, images, others))
    if not _alike(first, again):
        raise UserError(
            f"{model.name}: gives other features for the same images at every call, so nothing can be learned from it: "
            "turn off its random masking"
        )
    if not _alike([one[:1] for one in first], [one[:1] for one in beside]):
        raise UserError(
            f"{model.name}: what it gives for an image depends on the other images of the batch: let it normalise each "
            "image by itself, as batch normalisation does in evaluation mode"
        )


def _outputs(model: TappedModel, images: Tensor) -> list[Tensor]:
    """What a model returns, and its maps."""
    output, maps = model.run(images)
    return [output, *maps]


def _alike(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs)


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
    own: Callable[[MapShape], nn.Module] | None, modules: MethodModules, config: DistillConfig
) -> Callable[[MapShape], nn.Module] | None:
    """What makes a discriminator for maps of a shape; None where the method has none.

    Raises:
        UserError: for discriminators that see classes, where source and learner do not know the same, or beside the
            user's own.
    """
    if config.loss_weights.adversarial_weight == 0:
        return None
    width, bounded = config.discriminator_width, config.loss_weights.adversarial_loss == "paper"
    if not config.discriminator_classes:
        return own or functools.partial(Discriminator, width=width, norm=config.discriminator_norm, bounded=bounded)
    if own is not None:
        raise UserError("discriminator_classes: a discriminator of your own sees maps alone: leave one of them out")
    for edge in modules.edges:
        if edge not in modules.logit_edges:
            raise UserError(
                f"discriminator_classes: {_describe_classes(modules, edge)}, expected the same: leave it out, or leave "
                "that edge out of the topology"
            )
    return functools.partial(ClassDiscriminator, classes=modules.num_classes, width=width, bounded=bounded)
