"""Finds where a model's feature maps are, from what its modules output in one forward pass.

No list of architectures is kept. A module is tapped by a forward hook if its output is the wanted map. Some maps are
no module's output, because the model computes them in its own `forward_features`; timm's methods then give them
(`TapKind.FEATURES`, `TapKind.STAGE`), after a check that this way through the model gives the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.models.dataflow import upstream_parameters
from feature_gan_kd.models.find_last_map import find_last_map, main_element
from feature_gan_kd.models.map_layout import (
    Grid,
    RecordedOutputs,
    convolution_grids,
    map_layout,
    recording,
    without_attention,
)
from feature_gan_kd.models.outputs import output_of, tensors_of
from feature_gan_kd.models.patch_grid import patch_grids
from feature_gan_kd.models.settle_layout import settle_layout
from feature_gan_kd.models.tapped_model import (
    Layer,
    Layout,
    MapShape,
    Tap,
    TapKind,
    TappedModel,
    evaluating,
    hook_count_error,
)
from feature_gan_kd.utils.errors import UserError, closest


def find_taps(
    model: nn.Module, images: Tensor, name: str, layers: Sequence[Layer] = (), *, vectors: bool = False
) -> list[Tap]:
    """Finds where a model's maps are, by forward passes in evaluation mode and without gradients (ours).

    The last map before pooling is the output of timm's `forward_features`; of several scales the last, the deepest.
    It is tapped at the outermost module that outputs this very tensor. If no module does, the forward pass goes
    through `forward_features` and `forward_head`. If the output of `forward_features` has no grid (class tokens
    only), the last module whose output has the shape of timm's last intermediate map is tapped. For models that are
    not timm's see `find_last_map`.

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
            returns no tensor, or another one when its map is taken, or whose last map cannot be found.
    """
    recorded = _record_forward(model, images, name)
    stages = _stage_shapes(model, images)
    grids = convolution_grids(model, recorded) + ([] if stages else patch_grids(model, images, recorded, name))
    if layers:
        return [
            _tap_stage(model, layer, images, recorded, stages, name)
            if isinstance(layer, int)
            else _tap_named(model, layer, images, recorded, stages, grids, name, vectors)
            for layer in layers
        ]
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        tap = _tap_last_of_timm(model, images, recorded, stages, grids)
    else:
        tap = find_last_map(model, images, recorded, grids, name)
    if tap is None:
        raise UserError(f"{name}: no module outputs a map: name a layer with feature_layers")
    tap = settle_layout(model, tap, images, stages, grids, name)
    return [_check_output(model, tap, images, name)]


def _record_forward(model: nn.Module, images: Tensor, name: str) -> RecordedOutputs:
    with evaluating(model), torch.no_grad(), recording(model) as recorded:
        output_of(model(images.clone()), name)  # a copy: the model may change its images in place
    return recorded


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
    model: nn.Module,
    images: Tensor,
    recorded: RecordedOutputs,
    stages: Sequence[MapShape],
    grids: Sequence[Grid],
) -> Tap | None:
    """Taps the output of `forward_features`; see `find_taps` for the order of the fallbacks."""
    with evaluating(model), torch.no_grad(), recording(model) as inside:
        forward_features: Any = model.forward_features
        features = forward_features(images)
    tensors = tensors_of(features)
    element = without_attention(tensors)[-1]
    layout = map_layout(model, tensors[element], stages[-1:], [] if stages else grids)
    if layout is None:
        return _tap_last_of_shape(model, recorded, stages[-1]) if stages else None
    # Compare tensors by identity: others may hold equal values, as the input and the output of dropout do in evaluation
    # mode. Last modules first: of all modules that output the tensor, the outermost finishes last.
    for layer, outputs in reversed(inside.items()):
        once = len(outputs) == len(recorded.get(layer, ())) == 1
        same = [k for k, one in enumerate(tensors_of(outputs[0])) if one is tensors[element]] if once else []
        if same:
            return Tap(layer, *layout, element=same[-1])
    return Tap("", *layout, element=element, kind=TapKind.FEATURES)


def _tap_last_of_shape(model: nn.Module, recorded: RecordedOutputs, shape: MapShape) -> Tap | None:
    """Taps the last module that outputs a map of exactly this shape."""
    for layer, outputs in reversed(recorded.items()):
        if len(outputs) == 1:
            for element, tensor in reversed(list(enumerate(tensors_of(outputs[0])))):
                layout = map_layout(model, tensor, [shape])
                if layout is not None and layout[2] == shape:
                    return Tap(layer, *layout, element=element)
    return None


def _tap_stage(
    model: nn.Module, stage: int, images: Tensor, recorded: RecordedOutputs, stages: Sequence[MapShape], name: str
) -> Tap:
    """Taps timm's stage of that index: at the module that outputs its map, else through `forward_intermediates`."""
    if not -len(stages) <= stage < len(stages):
        raise UserError(f"{name}: feature_layers names stage {stage}, it has {len(stages)} stages")
    index = stage % len(stages)
    # timm returns the module's own tensor only in the layout that the module uses, and a rearranged one in others.
    for output_format in ("NLC", "NHWC", "NCHW"):
        with recording(model) as inside:
            maps = _intermediates(model, images, output_format)
        if not maps:
            continue
        wanted = tensors_of(maps[index])[-1]
        for layer, outputs in reversed(inside.items()):
            once = len(outputs) == len(recorded.get(layer, ())) == 1
            for element, tensor in enumerate(tensors_of(outputs[0]) if once else ()):
                layout = map_layout(model, tensor, stages[index : index + 1])
                if tensor is wanted and layout is not None and layout[2] == stages[index]:
                    return Tap(layer, *layout, element=element)
    return _check_output(model, Tap(str(index), Layout.NCHW, 0, stages[index], kind=TapKind.STAGE), images, name)


def _tap_named(
    model: nn.Module,
    layer: str,
    images: Tensor,
    recorded: RecordedOutputs,
    stages: Sequence[MapShape],
    grids: Sequence[Grid],
    name: str,
    vectors: bool,
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
    layouts = {k: map_layout(model, tensors[k], stages, [] if stages else grids) for k in without_attention(tensors)}
    maps = {element: layout for element, layout in layouts.items() if layout is not None}
    if maps:
        element = next(iter(maps)) if len(maps) == 1 else main_element(model, layer, list(maps), images, name)
        return settle_layout(model, Tap(layer, *maps[element], element=element), images, stages, grids, name)
    if vectors and tensors and tensors[-1].ndim == 2:
        return Tap(layer, Layout.NC, 0, (tensors[-1].shape[1], 1, 1), element=len(tensors) - 1)
    given = " and ".join(str(tuple(tensor.shape)) for tensor in tensors) or type(outputs[0]).__name__
    raise UserError(
        f"{name}: layer {layer!r} outputs {given}, which has no grid: name a layer that outputs a map, or set "
        "vectors_as_maps to take a vector as a map of 1x1"
    )


def _check_output(model: nn.Module, tap: Tap, images: Tensor, name: str) -> Tap:
    """Returns the tap, if the model's logits or features are the same when the map is taken.

    With a hook they are. The other kinds call `forward_head` on the features, which need not be what `forward` does.
    """
    if tap.kind is TapKind.MODULE or images.is_meta:
        return tap
    with evaluating(model), torch.no_grad():
        expected = output_of(model(images.clone()), name)
        output = TappedModel(model, [tap], name, classifies=False).features(images.clone())
    if expected.ndim == 2 and not torch.equal(expected, output):
        raise UserError(f"{name}: taking the map of {tap.title} changes the logits: name a layer with feature_layers")
    return tap


@dataclass(frozen=True)
class DryRun:
    """What one forward pass showed.

    Attributes:
        classes: number of logits; 0 of a model that does not classify.
        extractor: the parameters that the maps are computed from.
        vector_sizes: sizes of the vectors that the model returns for an image; several where it returns more than the
            logits, such as an embedding.
    """

    classes: int
    extractor: set[nn.Parameter]
    vector_sizes: tuple[int, ...]

    def check_one_vector(self, name: str) -> None:
        """Raises UserError where it is not known which of several vectors are the logits of the model `name`."""
        if len(set(self.vector_sizes)) > 1:
            raise UserError(
                f"models: {name} returns vectors of {' and '.join(map(str, self.vector_sizes))} numbers, and it is not "
                "known which are the logits: give num_classes, or a model that returns the logits alone"
            )


def dry_run(model: TappedModel, images: Tensor) -> DryRun:
    """Runs images (batch, channels, height, width) through a model in evaluation mode, and reads the autograd graph.

    Raises:
        UserError: for probabilities in place of logits, and for a map that is not one map per image.
    """
    returned: list[Any] = []
    handle = model.module.register_forward_hook(lambda module, args, output: returned.append(output))
    try:
        with evaluating(model), torch.enable_grad():
            logits, maps = model(images)
    finally:
        handle.remove()
    vectors = [one for output in returned if isinstance(output, (tuple, list)) for one in tensors_of(output)]
    for tap, feature_map in zip(model.taps, maps, strict=True):
        if len(feature_map) != len(images):
            raise UserError(
                f"{model.name}: layer {tap.layer!r} outputs {len(feature_map)} maps for {len(images)} images: name a "
                "layer that outputs one for each, with feature_layers"
            )
    if logits is not None and not logits.is_meta and logits.shape[1] > 1:
        sums = logits.detach().float().sum(1)
        if bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all()):
            raise UserError(f"{model.name}: it outputs probabilities, expected logits: leave out its last softmax")
    sizes = tuple(one.shape[1] for one in vectors if one.ndim == 2)
    return DryRun(0 if logits is None else logits.shape[1], upstream_parameters(maps), sizes)


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
