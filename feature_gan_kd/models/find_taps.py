"""Finds where a model's feature maps are, from what its modules output in one forward pass.

No list of architectures is kept. A module is tapped by a forward hook if its output is the wanted map. Some maps are
no module's output, because the model computes them in its own `forward_features`; timm's methods then give them
(`TapKind.FEATURES`, `TapKind.STAGE`), after a check that this way through the model gives the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.models.tapped_model import (
    Layer,
    Layout,
    MapShape,
    Tap,
    TapKind,
    TappedModel,
    evaluating,
    hook_count_error,
    logits_of,
    tensors_of,
)
from feature_gan_kd.utils.errors import UserError, closest

# Models put at most this many class and register tokens in front of their grid.
_MOST_PREFIX_TOKENS = 16

RecordedOutputs = dict[str, list[Any]]
"""The outputs of each named module, in the order in which the modules finish."""

MapLayout = tuple[Layout, int, MapShape]
"""Layout, number of prefix tokens and shape of a map."""


def find_taps(
    model: nn.Module, images: Tensor, name: str, layers: Sequence[Layer] = (), *, vectors: bool = False
) -> list[Tap]:
    """Finds where a model's maps are, by forward passes in evaluation mode and without gradients (ours).

    The last map before pooling is the output of timm's `forward_features`; of several scales the last, the deepest.
    It is tapped at the outermost module that outputs this very tensor. If no module does, the forward pass goes
    through `forward_features` and `forward_head`. If the output of `forward_features` has no grid (class tokens
    only), the last module whose output has the shape of timm's last intermediate map is tapped. Models that are not
    timm's are tapped at the last module that outputs a map, or tokens that fill a square.

    Args:
        model: any module that maps images to logits.
        images: (batch, channels, height, width) for the forward passes; on the meta device nothing is computed.
        name: of the model, for error lines.
        layers: dotted names, or indices of timm's stages; empty means the last map before pooling.
        vectors: take the output (batch, channels) of a named layer as a map of 1x1.

    Returns:
        One tap per layer.

    Raises:
        UserError: for a layer that does not exist, is not called exactly once, or outputs no map; for a model that
            returns no logits, or other logits when its map is taken.
    """
    recorded = _record_forward(model, images, name)
    stages = _stage_shapes(model, images)
    if layers:
        return [
            _tap_stage(model, layer, images, recorded, stages, name)
            if isinstance(layer, int)
            else _tap_named(model, layer, recorded, stages, name, vectors)
            for layer in layers
        ]
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        tap = _tap_last_of_timm(model, images, recorded, stages)
    else:
        tap = _tap_last_of_other(model, recorded)
    if tap is None:
        raise UserError(f"{name}: no module outputs a map: name a layer with feature_layers")
    return [_check_logits(model, tap, images, name)]


def _record_forward(model: nn.Module, images: Tensor, name: str) -> RecordedOutputs:
    with evaluating(model), torch.no_grad(), _recording(model) as recorded:
        logits_of(model(images), name)
    return recorded


@contextmanager
def _recording(model: nn.Module) -> Iterator[RecordedOutputs]:
    """Records the output of every module inside the block."""
    recorded: RecordedOutputs = {}

    def hook(layer: str) -> Any:
        return lambda module, args, output: recorded.setdefault(layer, []).append(output)

    handles = [module.register_forward_hook(hook(layer)) for layer, module in model.named_modules() if layer]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _stage_shapes(model: nn.Module, images: Tensor) -> list[MapShape]:
    """Returns the shapes of timm's own intermediate maps, by stage; empty where the model has none."""
    if not hasattr(model, "forward_intermediates"):
        return []
    # On the meta device some models cannot bring tokens into a grid: take the tokens, and a square grid.
    for layout in ("NCHW", "NLC"):
        shapes = [tensors_of(one)[-1].shape for one in _intermediates(model, images, layout)]
        if shapes and all(len(shape) == 4 for shape in shapes):
            return [(int(shape[1]), int(shape[2]), int(shape[3])) for shape in shapes]
        if shapes and all(len(shape) == 3 and math.isqrt(shape[1]) ** 2 == shape[1] for shape in shapes):
            return [(int(shape[2]), math.isqrt(shape[1]), math.isqrt(shape[1])) for shape in shapes]
    return []


def _intermediates(model: Any, images: Tensor, layout: str) -> list[Any]:
    """Returns timm's own intermediate outputs, by stage; empty where it has none in this layout."""
    with evaluating(model), torch.no_grad():
        try:
            return list(model.forward_intermediates(images, output_fmt=layout, intermediates_only=True))
        except (AssertionError, NotImplementedError, TypeError, RuntimeError, UserError):
            return []


def _tap_last_of_timm(
    model: nn.Module, images: Tensor, recorded: RecordedOutputs, stages: Sequence[MapShape]
) -> Tap | None:
    """Taps the output of `forward_features`; see `find_taps` for the order of the fallbacks."""
    with evaluating(model), torch.no_grad(), _recording(model) as inside:
        forward_features: Any = model.forward_features
        features = forward_features(images)
    tensors = tensors_of(features)
    layout = _map_layout(model, tensors[-1], stages[-1:])
    if layout is None:
        return _tap_last_of_shape(model, recorded, stages[-1]) if stages else None
    # Compare tensors by identity: others may hold equal values, as the input and the output of dropout do in evaluation
    # mode. Last modules first: of all modules that output the tensor, the outermost finishes last.
    for layer, outputs in reversed(inside.items()):
        once = len(outputs) == len(recorded.get(layer, ())) == 1
        same = [k for k, one in enumerate(tensors_of(outputs[0])) if one is tensors[-1]] if once else []
        if same:
            return Tap(layer, *layout, element=same[-1])
    return Tap("", *layout, element=len(tensors) - 1, kind=TapKind.FEATURES)


def _tap_last_of_shape(model: nn.Module, recorded: RecordedOutputs, shape: MapShape) -> Tap | None:
    """Taps the last module that outputs a map of exactly this shape."""
    for layer, outputs in reversed(recorded.items()):
        if len(outputs) == 1:
            for element, tensor in reversed(list(enumerate(tensors_of(outputs[0])))):
                layout = _map_layout(model, tensor, [shape])
                if layout is not None and layout[2] == shape:
                    return Tap(layer, *layout, element=element)
    return None


def _tap_last_of_other(model: nn.Module, recorded: RecordedOutputs) -> Tap | None:
    """Taps the last map of a model that is not timm's, at the outermost module that outputs it."""
    last: Tap | None = None
    for layer, outputs in recorded.items():
        # Adaptive pooling belongs to the head, even where it leaves a grid larger than 1x1, as VGG's 7x7 is.
        is_pooling = isinstance(model.get_submodule(layer), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        for element, tensor in enumerate(tensors_of(outputs[0]) if len(outputs) == 1 and not is_pooling else ()):
            layout = _map_layout(model, tensor, [])
            if layout is not None and layout[2][1] * layout[2][2] > 1:
                last = Tap(layer, *layout, element=element)
    return last


def _tap_stage(
    model: nn.Module, stage: int, images: Tensor, recorded: RecordedOutputs, stages: Sequence[MapShape], name: str
) -> Tap:
    """Taps timm's stage of that index: at the module that outputs its map, else through `forward_intermediates`."""
    if not -len(stages) <= stage < len(stages):
        raise UserError(f"{name}: feature_layers names stage {stage}, it has {len(stages)} stages")
    index = stage % len(stages)
    # timm returns the module's own tensor only in the layout that the module uses, and a rearranged one in others.
    for output_format in ("NLC", "NHWC", "NCHW"):
        with _recording(model) as inside:
            maps = _intermediates(model, images, output_format)
        if not maps:
            continue
        wanted = tensors_of(maps[index])[-1]
        for layer, outputs in reversed(inside.items()):
            once = len(outputs) == len(recorded.get(layer, ())) == 1
            for element, tensor in enumerate(tensors_of(outputs[0]) if once else ()):
                layout = _map_layout(model, tensor, stages[index : index + 1])
                if tensor is wanted and layout is not None and layout[2] == stages[index]:
                    return Tap(layer, *layout, element=element)
    return _check_logits(model, Tap(str(index), Layout.NCHW, 0, stages[index], kind=TapKind.STAGE), images, name)


def _tap_named(
    model: nn.Module, layer: str, recorded: RecordedOutputs, stages: Sequence[MapShape], name: str, vectors: bool
) -> Tap:
    """Taps the layer that the user named."""
    known = [path for path, _ in model.named_modules() if path]
    if layer not in known:
        near = closest(layer, known) or ", ".join(path for path in known if "." not in path)
        raise UserError(f"{name}: it has no layer {layer!r}, the nearest are {near}")
    outputs = recorded.get(layer, [])
    if len(outputs) != 1:
        raise UserError(hook_count_error(name, layer, len(outputs)))
    tensors = tensors_of(outputs[0])
    for element, tensor in reversed(list(enumerate(tensors))):
        layout = _map_layout(model, tensor, stages)
        if layout is not None:
            return Tap(layer, *layout, element=element)
    if vectors and tensors and tensors[-1].ndim == 2:
        return Tap(layer, Layout.NC, 0, (tensors[-1].shape[1], 1, 1), element=len(tensors) - 1)
    given = " and ".join(str(tuple(tensor.shape)) for tensor in tensors) or type(outputs[0]).__name__
    raise UserError(
        f"{name}: layer {layer!r} outputs {given}, which has no grid: name a layer that outputs a map, or set "
        "vectors_as_maps to take a vector as a map of 1x1"
    )


def _map_layout(model: nn.Module, tensor: Tensor, known: Sequence[MapShape]) -> MapLayout | None:
    """Tells how a tensor is laid out as a map; None where it is not a map.

    Args:
        model: whose output it is; timm's models state their layout.
        tensor: any output.
        known: shapes of the model's maps, as timm gives them; empty where they are not known.
    """
    if tensor.ndim == 4:
        _, a, b, c = tensor.shape
        if _is_channels_last(model, tensor, known):
            return Layout.NHWC, 0, (c, a, b)
        return Layout.NCHW, 0, (a, b, c)
    if tensor.ndim != 3:
        return None
    _, a, b = tensor.shape
    # Tokens show their channels and their number, but not their grid: it is known from timm, or assumed to be square.
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
    """Whether a tensor of four dimensions is (batch, height, width, channels)."""
    _, a, b, c = tensor.shape
    if any((a, b, c) == shape for shape in known):
        return False
    if any((c, a, b) == shape for shape in known):
        return True
    stated = getattr(model, "output_fmt", None)
    if stated is not None:
        return str(getattr(stated, "value", stated)) == "NHWC"
    # Maps of square images are square: the two equal dimensions are height and width, unless all three are equal.
    return a == b and b != c


def _check_logits(model: nn.Module, tap: Tap, images: Tensor, name: str) -> Tap:
    """Returns the tap, if the model's logits are the same when the map is taken.

    With a hook they are. The other kinds call `forward_head` on the features, which need not be what `forward` does.
    """
    if tap.kind is TapKind.MODULE or images.is_meta:
        return tap
    with evaluating(model), torch.no_grad():
        expected = logits_of(model(images), name)
        logits, _ = TappedModel(model, [tap], name)(images)
    if not torch.equal(expected, logits):
        raise UserError(f"{name}: taking the map of {tap.title} changes the logits: name a layer with feature_layers")
    return tap


@dataclass(frozen=True)
class DryRun:
    """What one forward pass showed.

    Attributes:
        classes: number of logits.
        extractor: the parameters that the maps are computed from.
    """

    classes: int
    extractor: set[nn.Parameter]


def dry_run(model: TappedModel, images: Tensor) -> DryRun:
    """Runs images (batch, channels, height, width) through a model in evaluation mode, and reads the autograd graph."""
    with evaluating(model), torch.enable_grad():
        logits, maps = model(images)
    return DryRun(logits.shape[1], upstream_parameters(maps))


def upstream_parameters(outputs: Sequence[Tensor]) -> set[nn.Parameter]:
    """Returns the parameters that `outputs` were computed from; for a map, those of the feature extractor.

    Walks the autograd graph of the outputs, of any shape, and computes nothing.
    """
    found: set[nn.Parameter] = set()
    seen: set[Any] = set()
    pending = [output.grad_fn for output in outputs]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the leaf node of a parameter
            found.add(node.variable)
        pending.extend(parent for parent, _ in node.next_functions)
    return found


def layers_of(feature_layers: Any, index: int) -> list[Layer]:
    """Reads the layers of model `index` from the setting; empty means that `find_taps` chooses.

    Raises:
        UserError: for anything but names and whole numbers, lists of them, or a mapping from models to either.
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
