"""Finds the last map before pooling of a model that is not timm's, by how the images flow through it (ours)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.models.dataflow import ImageFlow, Node, upstream_nodes
from feature_gan_kd.models.map_layout import Grid, MapLayout, RecordedOutputs, map_layout, recording
from feature_gan_kd.models.outputs import output_of, tensors_of
from feature_gan_kd.models.tapped_model import Layout, Tap, evaluating
from feature_gan_kd.utils.errors import UserError

_REMEDY = "name a layer with feature_layers"


@dataclass(frozen=True, eq=False)
class OutputTensor:
    """A tensor that a module gave, before any later module changed it in place.

    Attributes:
        layer: dotted name of the module.
        element: which of the output's tensors it is, see `tensors_of`.
        tensor: itself.
        node: the operation that computed it.
        is_pooled: whether an adaptive pooling, or an average of all positions, gave it: these belong to the head.
    """

    layer: str
    element: int
    tensor: Tensor
    node: Node | None
    is_pooled: bool


def find_last_map(model: nn.Module, images: Tensor, recorded: RecordedOutputs, grids: Sequence[Grid], name: str) -> Tap:
    """Finds the last map through which everything passes that the logits get from the images.

    It is tapped at the outermost module that outputs it. A map of one position counts if it grows with the images, as
    pooled ones do not. Maps of one channel, which weigh others, do not count.

    Args:
        model: any module that maps images to logits.
        images: (batch, channels, height, width); on the meta device nothing is computed.
        recorded: the outputs of its modules in a forward pass without gradients.
        grids: of its convolutions or patches, see `map_layout`.
        name: of the model, for error lines.

    Raises:
        UserError: where there is no such map, or half of the layers that keep positions come after it, so that it
            cannot be the last.
    """
    logits, outputs, leaf = _record_flow(model, images, name)
    flow = ImageFlow(leaf, logits)
    if not flow.nodes:
        raise UserError(f"{name}: its logits do not follow from the images by gradients: {_REMEDY}")
    layouts = _main_maps(model, outputs, recorded, flow, grids)
    last = _last(layouts, flow)
    found = _last_of_one_position(model, images, layouts, flow, last, name) or last
    if found is None:
        raise UserError(f"{name}: no module outputs a map through which all of the images pass: {_REMEDY}")
    if found is last:
        before_pooling = _last(_outside_pooling(layouts, outputs), flow)
        missed = None if before_pooling is None else _what_follows(model, outputs, before_pooling, flow)
        found = last if before_pooling is None or missed else before_pooling
        missed = _what_follows(model, outputs, found, flow)
        if missed:
            raise UserError(f"{name}: {missed}: {_REMEDY}")
    return Tap(found.layer, *layouts[found], element=found.element)


def main_element(model: nn.Module, layer: str, elements: Sequence[int], images: Tensor, name: str) -> int:
    """Chooses among several maps that a layer outputs: the one that carries the images on to the logits.

    Args:
        model: any module that maps images to logits.
        layer: dotted name of the layer.
        elements: places of the maps in its output, see `tensors_of`.
        images: (batch, channels, height, width).
        name: of the model, for error lines.

    Returns:
        The place of the map that all of the images pass through, nearest to the logits; else the last of those that
        lead to the logits, as of several scales.

    Raises:
        UserError: where none of them leads to the logits.
    """
    logits, outputs, leaf = _record_flow(model, images, name)
    flow = ImageFlow(leaf, logits)
    own = {one.element: one.node for one in outputs if one.layer == layer and one.element in elements}
    main = {element: flow.passed_by_all[node] for element, node in own.items() if node in flow.passed_by_all}
    if main:
        return min(main, key=main.__getitem__)
    used = [element for element, node in own.items() if node in flow.nodes]
    if not used:
        raise UserError(f"{name}: {layer!r} outputs {len(elements)} maps, of which none leads to the logits: {_REMEDY}")
    return max(used)


def _record_flow(model: nn.Module, images: Tensor, name: str) -> tuple[Tensor, list[OutputTensor], Tensor]:
    """Runs the model with gradients; returns its logits, the outputs of its modules, and the leaf of the images."""
    outputs: list[OutputTensor] = []
    pooled: set[Node] = set()

    def hook(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            adaptive = isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
            for element, tensor in enumerate(tensors_of(output)):
                if adaptive or (isinstance(module, nn.AvgPool2d) and _is_one_position(tensor)):
                    pooled.add(tensor.grad_fn)
                outputs.append(OutputTensor(layer, element, tensor, tensor.grad_fn, tensor.grad_fn in pooled))

        return keep

    handles = [module.register_forward_hook(hook(layer)) for layer, module in model.named_modules() if layer]
    leaf = images.detach().clone().requires_grad_()
    try:
        with evaluating(model), torch.enable_grad():
            logits = output_of(model(leaf.clone()), name)  # a copy: the model may change its images in place
    finally:
        for handle in handles:
            handle.remove()
    return logits, outputs, leaf


def _main_maps(
    model: nn.Module, outputs: list[OutputTensor], recorded: RecordedOutputs, flow: ImageFlow, grids: Sequence[Grid]
) -> dict[OutputTensor, MapLayout]:
    """Returns the outputs that are maps and that everything passes through, of modules that are called once."""
    calls: dict[tuple[str, int], int] = {}
    for one in outputs:
        calls[one.layer, one.element] = calls.get((one.layer, one.element), 0) + 1
    found = {}
    for one in outputs:
        once = calls[one.layer, one.element] == len(recorded.get(one.layer, ())) == 1
        if once and one.node in flow.passed_by_all and not one.is_pooled and not _follows_pooling(outputs, one, flow):
            layout = map_layout(model, one.tensor, [], grids, _earlier_token_counts(outputs, one, flow))
            if layout is not None and layout[2][0] > 1:
                found[one] = layout
    return found


def _place(flow: ImageFlow, one: OutputTensor) -> int:
    return flow.passed_by_all[one.node]


def _follows_pooling(outputs: list[OutputTensor], one: OutputTensor, flow: ImageFlow) -> bool:
    """Whether a map of one position was pooled, and then changed by layers of the head."""
    if not _is_one_position(one.tensor):
        return False
    pooled = [other for other in outputs if other.is_pooled and other.node in flow.passed_by_all]
    return any(_is_one_position(other.tensor) and _place(flow, other) >= _place(flow, one) for other in pooled)


def _earlier_token_counts(outputs: list[OutputTensor], one: OutputTensor, flow: ImageFlow) -> list[int]:
    """Returns the numbers of tokens of earlier outputs, further from the logits."""
    main = (other for other in outputs if other.node in flow.passed_by_all and other.tensor.ndim == 3)
    return [other.tensor.shape[1] for other in main if _place(flow, other) > _place(flow, one)]


def _outside_pooling(
    layouts: Mapping[OutputTensor, MapLayout], outputs: list[OutputTensor]
) -> dict[OutputTensor, MapLayout]:
    """Leaves out tokens inside a module that outputs no map: it pools them, as class attention does."""
    shaped = {one.layer for one in outputs if one.tensor.ndim in (3, 4) and not _is_one_position(one.tensor)}
    pooling = {one.layer for one in outputs} - shaped
    kept = {}
    for one, layout in layouts.items():
        names = one.layer.split(".")
        parents = {".".join(names[:k]) for k in range(1, len(names))}
        if layout[0] not in (Layout.NLC, Layout.NCL) or not parents & pooling:
            kept[one] = layout
    return kept


def _last(layouts: Mapping[OutputTensor, MapLayout], flow: ImageFlow) -> OutputTensor | None:
    """Returns the output with several positions that is closest to the logits, and of the outermost module."""
    last: OutputTensor | None = None
    for one, (_, _, (_, height, width)) in layouts.items():
        if height * width > 1 and (last is None or _place(flow, one) <= _place(flow, last)):
            last = one
    return last


def _last_of_one_position(
    model: nn.Module,
    images: Tensor,
    layouts: Mapping[OutputTensor, MapLayout],
    flow: ImageFlow,
    found: OutputTensor | None,
    name: str,
) -> OutputTensor | None:
    """Returns the last map of one position, behind the map that was found, if it is not a pooled one.

    Many small images end in such a map. To tell it from a pooled one, the model looks at images of twice the side.

    Raises:
        UserError: where the model takes no such images.
    """
    alone = [
        one
        for one, (layout, _, _) in layouts.items()
        if layout in (Layout.NCHW, Layout.NHWC) and (found is None or _place(flow, one) < _place(flow, found))
    ]
    if not alone:
        return None
    large = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    # Where the layers behind the maps take one size alone, the maps are recorded before these fail.
    with evaluating(model), torch.no_grad(), recording(model) as recorded, contextlib.suppress(Exception):
        model(large)
    last: OutputTensor | None = None
    for one in alone:
        tensors = tensors_of(recorded.get(one.layer, [])[:1])
        if not tensors and next(model.get_submodule(one.layer).parameters(), None) is not None:
            raise UserError(f"{name}: the output of {one.layer!r} is 1x1, a map or pooled: {_REMEDY}")
        grown = bool(tensors) and map_layout(model, tensors[one.element], [])
        if grown and grown[2][1:] != (1, 1) and (last is None or _place(flow, one) <= _place(flow, last)):
            last = one
    return last


def _what_follows(model: nn.Module, outputs: list[OutputTensor], found: OutputTensor, flow: ImageFlow) -> str | None:
    """Says what follows a map that cannot be the last; None where nothing does.

    That is half of the parameters that work on several positions, or one token that no learned query has made.
    """
    before = upstream_nodes([found.node])
    counted: dict[str, bool] = {}
    for one in outputs:
        if one.node in flow.nodes and one.tensor.ndim in (3, 4) and not _is_one_position(one.tensor):
            counted[one.layer] = counted.get(one.layer, True) and one.node in before
    weights = {layer: len(list(model.get_submodule(layer).parameters(recurse=False))) for layer in counted}
    if 2 * sum(weights[layer] for layer, is_before in counted.items() if is_before) <= sum(weights.values()):
        return f"the last map that can be found is that of {found.layer!r}, but most layers follow it"
    ends = [one for one in outputs if one.node in flow.passed_by_all and _place(flow, one) < _place(flow, found)]
    widths = {one.tensor.shape[2] for one in ends if one.tensor.ndim == 3 and _is_one_position(one.tensor)}
    queries = {
        parameter.shape[2] for parameter in model.parameters() if parameter.ndim == 3 and parameter.shape[1] == 1
    }
    if widths - queries:
        return f"one token is left behind {found.layer!r}, which may be the last map or a pooled one"
    return None


def _is_one_position(tensor: Tensor) -> bool:
    """Whether tokens (batch, 1, channels), or a map of 1x1 in any layout."""
    sizes = list(tensor.shape[1:])
    return sizes[0] == 1 if len(sizes) == 2 else sorted(sizes)[:2] == [1, 1]
