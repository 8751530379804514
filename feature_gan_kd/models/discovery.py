"""Where a model's feature maps are: found by looking at what its modules give in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.models.taps import (
    Layer,
    Layout,
    MapShape,
    Origin,
    Tap,
    TappedModel,
    evaluating,
    hook_count_error,
    logits_of,
    tensors_of,
)
from feature_gan_kd.utils.errors import UserError, closest

# Models put at most so many class and register tokens in front of their grid.
_MOST_PREFIX_TOKENS = 16

Fired = dict[str, list[Any]]
"""The outputs of every named module, in the order in which they end."""


def find_taps(
    model: nn.Module, images: Tensor, name: str, layers: Sequence[Layer] = (), *, vectors: bool = False
) -> list[Tap]:
    """Finds where a model's maps are, by forward passes in evaluation mode and without gradient.

    The last map before pooling is what timm's `forward_features` gives; of several scales the last (the deepest).
    It is tapped at the outermost module that gives that very tensor. Where no module does, the forward pass goes
    through `forward_features` and `forward_head`; where what `forward_features` gives has no grid (class tokens
    alone), the last module that gives timm's own last map is tapped. Models that are not timm's are tapped at the
    last module that gives a map, or tokens that fill a square. (Ours.)

    Args:
        model: any module that maps images to logits.
        images: (batch, channels, height, width) to try it with; on the meta device nothing is computed.
        name: of the model, for error lines.
        layers: dotted names, or indices of timm's stages; none means the last map before pooling.
        vectors: take the (batch, channels) output of a named layer as a map of 1x1.

    Returns:
        One tap per layer.

    Raises:
        UserError: for a layer that does not exist, is not called exactly once, or gives no map; for a model that
            gives no logits, or other logits where its map is taken.
    """
    fired = _trace(model, images, name)
    stages = _stage_shapes(model, images)
    if layers:
        return [
            _stage(model, layer, images, fired, stages, name)
            if isinstance(layer, int)
            else _named(model, layer, fired, stages, name, vectors)
            for layer in layers
        ]
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        tap = _timm_last(model, images, fired, stages)
    else:
        tap = _last_spatial(model, fired)
    if tap is None:
        raise UserError(f"{name}: no module gives a map: name a layer with feature_layers")
    return [_checked(model, tap, images, name)]


def _trace(model: nn.Module, images: Tensor, name: str) -> Fired:
    with evaluating(model), torch.no_grad(), _recording(model) as fired:
        logits_of(model(images), name)
    return fired


@contextmanager
def _recording(model: nn.Module) -> Iterator[Fired]:
    fired: Fired = {}

    def keep(layer: str) -> Any:
        return lambda module, args, output: fired.setdefault(layer, []).append(output)

    handles = [module.register_forward_hook(keep(layer)) for layer, module in model.named_modules() if layer]
    try:
        yield fired
    finally:
        for handle in handles:
            handle.remove()


def _stage_shapes(model: nn.Module, images: Tensor) -> list[MapShape]:
    """The shapes of timm's own intermediate maps, by stage; empty where the model has none."""
    if not hasattr(model, "forward_intermediates"):
        return []
    for layout in ("NCHW", "NLC"):  # on the meta device some cannot tell their grid; it is that of square images
        shapes = [tensors_of(one)[-1].shape for one in _intermediates(model, images, layout)]
        if shapes and all(len(shape) == 4 for shape in shapes):
            return [(int(shape[1]), int(shape[2]), int(shape[3])) for shape in shapes]
        if shapes and all(len(shape) == 3 and math.isqrt(shape[1]) ** 2 == shape[1] for shape in shapes):
            return [(int(shape[2]), math.isqrt(shape[1]), math.isqrt(shape[1])) for shape in shapes]
    return []


def _intermediates(model: Any, images: Tensor, layout: str) -> list[Any]:
    """timm's own intermediate outputs, by stage; empty where it has none in this layout."""
    with evaluating(model), torch.no_grad():
        try:
            return list(model.forward_intermediates(images, output_fmt=layout, intermediates_only=True))
        except (AssertionError, NotImplementedError, TypeError, RuntimeError, UserError):
            return []


def _timm_last(model: nn.Module, images: Tensor, fired: Fired, stages: Sequence[MapShape]) -> Tap | None:
    with evaluating(model), torch.no_grad(), _recording(model) as inside:
        forward_features: Any = model.forward_features
        features = forward_features(images)
    tensors = tensors_of(features)
    form = _form(model, tensors[-1], stages[-1:])
    if form is None:
        return _last_like(model, fired, stages[-1]) if stages else None
    for layer, outputs in reversed(inside.items()):
        once = len(outputs) == len(fired.get(layer, ())) == 1
        same = [k for k, one in enumerate(tensors_of(outputs[0])) if one is tensors[-1]] if once else []
        if same:
            return Tap(layer, *form, element=same[-1])
    return Tap("", *form, element=len(tensors) - 1, origin=Origin.FEATURES)


def _last_like(model: nn.Module, fired: Fired, shape: MapShape) -> Tap | None:
    """The last module that gives a map of this very shape."""
    for layer, outputs in reversed(fired.items()):
        if len(outputs) == 1:
            for element, tensor in reversed(list(enumerate(tensors_of(outputs[0])))):
                form = _form(model, tensor, [shape])
                if form is not None and form[2] == shape:
                    return Tap(layer, *form, element=element)
    return None


def _last_spatial(model: nn.Module, fired: Fired) -> Tap | None:
    """The last map in a model that is not timm's; the outermost of the modules that give it."""
    found: Tap | None = None
    for layer, outputs in fired.items():
        pooling = isinstance(model.get_submodule(layer), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        for element, tensor in enumerate(tensors_of(outputs[0]) if len(outputs) == 1 and not pooling else ()):
            form = _form(model, tensor, [])
            if form is not None and form[2][1] * form[2][2] > 1:
                found = Tap(layer, *form, element=element)
    return found


def _stage(model: nn.Module, stage: int, images: Tensor, fired: Fired, stages: Sequence[MapShape], name: str) -> Tap:
    """A tap at timm's stage of that number: at the module that gives its map, or else through timm's own pass."""
    if not -len(stages) <= stage < len(stages):
        raise UserError(f"{name}: feature_layers names stage {stage}, it has {len(stages)} stages")
    index = stage % len(stages)
    for layout in ("NLC", "NHWC", "NCHW"):  # a map that timm brings into another order is not the module's own tensor
        with _recording(model) as inside:
            maps = _intermediates(model, images, layout)
        if not maps:
            continue
        wanted = tensors_of(maps[index])[-1]
        for layer, outputs in reversed(inside.items()):
            once = len(outputs) == len(fired.get(layer, ())) == 1
            for element, tensor in enumerate(tensors_of(outputs[0]) if once else ()):
                form = _form(model, tensor, stages[index : index + 1])
                if tensor is wanted and form is not None and form[2] == stages[index]:
                    return Tap(layer, *form, element=element)
    return _checked(model, Tap(str(index), Layout.NCHW, 0, stages[index], origin=Origin.STAGE), images, name)


def _named(model: nn.Module, layer: str, fired: Fired, stages: Sequence[MapShape], name: str, vectors: bool) -> Tap:
    """A tap where the user asked for one."""
    known = [path for path, _ in model.named_modules() if path]
    if layer not in known:
        near = closest(layer, known) or ", ".join(path for path in known if "." not in path)
        raise UserError(f"{name}: it has no layer {layer!r}, the nearest are {near}")
    outputs = fired.get(layer, [])
    if len(outputs) != 1:
        raise UserError(hook_count_error(name, layer, len(outputs)))
    tensors = tensors_of(outputs[0])
    forms = [(k, _form(model, tensor, stages)) for k, tensor in enumerate(tensors)]
    for element, form in reversed(forms):
        if form is not None:
            return Tap(layer, *form, element=element)
    if vectors and tensors and tensors[-1].ndim == 2:
        return Tap(layer, Layout.NC, 0, (tensors[-1].shape[1], 1, 1), element=len(tensors) - 1)
    given = " and ".join(str(tuple(tensor.shape)) for tensor in tensors) or type(outputs[0]).__name__
    raise UserError(
        f"{name}: layer {layer!r} gives {given}, which has no grid: name a layer that gives a map, or set "
        "vectors_as_maps to take a vector as a map of 1x1"
    )


def _form(model: nn.Module, tensor: Tensor, known: Sequence[MapShape]) -> tuple[Layout, int, MapShape] | None:
    """Layout, prefix tokens and shape of a tensor as a map; None where it is none.

    Args:
        model: whose tensor it is; timm's models say their layout.
        tensor: any output.
        known: shapes that timm's own maps of this model have.
    """
    if tensor.ndim == 4:
        _, a, b, c = tensor.shape
        if _is_channels_last(model, tensor, known):
            return Layout.NHWC, 0, (c, a, b)
        return Layout.NCHW, 0, (a, b, c)
    if tensor.ndim != 3:
        return None
    _, a, b = tensor.shape
    for channels, height, width in reversed(known):
        if 0 <= a - height * width <= _MOST_PREFIX_TOKENS and not (a == channels and b == height * width):
            return Layout.NLC, a - height * width, (b, height, width)
        if (a, b) == (channels, height * width):
            return Layout.NCL, 0, (a, height, width)
    if known:
        return None
    for prefix in (int(getattr(model, "num_prefix_tokens", 0)), 0, 1):
        side = math.isqrt(max(a - prefix, 0))
        if side > 0 and side * side == a - prefix:
            return Layout.NLC, prefix, (b, side, side)
    return None


def _is_channels_last(model: nn.Module, tensor: Tensor, known: Sequence[MapShape]) -> bool:
    _, a, b, c = tensor.shape
    if any((a, b, c) == shape for shape in known):
        return False
    if any((c, a, b) == shape for shape in known):
        return True
    stated = getattr(model, "output_fmt", None)
    if stated is not None:
        return str(getattr(stated, "value", stated)) == "NHWC"
    # Maps of square images are square: that tells the two apart, unless all three are equal.
    return a == b and b != c


def _checked(model: nn.Module, tap: Tap, images: Tensor, name: str) -> Tap:
    """The tap, if a forward pass that goes another way to deliver it gives the very same logits."""
    if tap.origin is Origin.MODULE or images.is_meta:
        return tap
    with evaluating(model), torch.no_grad():
        expected = logits_of(model(images), name)
        logits, _ = TappedModel(model, [tap], name)(images)
    if not torch.equal(expected, logits):
        raise UserError(
            f"{name}: the map of {tap.title} can only be had by changing its logits: name a layer with feature_layers"
        )
    return tap


@dataclass(frozen=True)
class DryRun:
    """What one forward pass showed: the number of classes, and the parameters that the maps come from."""

    classes: int
    extractor: set[nn.Parameter]


def dry_run(model: TappedModel, images: Tensor) -> DryRun:
    """One forward pass of images (batch, channels, height, width) in evaluation mode, for the graph of its gradient."""
    with evaluating(model), torch.enable_grad():
        logits, maps = model(images)
    return DryRun(logits.shape[1], upstream_parameters(maps))


def upstream_parameters(outputs: Sequence[Tensor]) -> set[nn.Parameter]:
    """The parameters from which `outputs` were computed: those of the feature extractor, for a map.

    Walks the autograd graph of the outputs, of any shape; nothing is computed.
    """
    found: set[nn.Parameter] = set()
    seen: set[Any] = set()
    pending = [output.grad_fn for output in outputs]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        pending.extend(parent for parent, _ in node.next_functions)
    return found


def layers_of(feature_layers: Any, index: int) -> list[Layer]:
    """The layers that model `index` is tapped at, in the user's notation; empty means: find it.

    Raises:
        UserError: for anything but names and whole numbers, lists of them, or a mapping to either.
    """
    if isinstance(feature_layers, Mapping):
        feature_layers = feature_layers.get(index)
    if feature_layers is None:
        return []
    layers = [feature_layers] if isinstance(feature_layers, (str, int)) else feature_layers
    if not isinstance(layers, Sequence) or not all(type(layer) in (str, int) for layer in layers):
        raise UserError(
            f"feature_layers: {feature_layers!r} is not allowed, expected a layer's name, a stage's number, or a list"
        )
    return list(layers)
