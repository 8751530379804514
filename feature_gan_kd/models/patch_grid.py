"""Finds the grid of patches that no convolution made, by which pixels each of the first tokens is made of (ours)."""

from __future__ import annotations

import functools
import itertools
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from feature_gan_kd.models.map_layout import Grid, RecordedOutputs
from feature_gan_kd.models.outputs import output_of, tensors_of
from feature_gan_kd.models.tapped_model import evaluating

Spans: TypeAlias = "tuple[tuple[int, int], tuple[int, int]]"
"""The first and last row, and the first and last column, of the pixels that a token is made of."""


def patch_grids(model: nn.Module, images: Tensor, recorded: RecordedOutputs, name: str) -> list[Grid]:
    """Returns the grid (height, width) of the first tokens that a layer with weights makes of the images.

    The tokens of a grid go from left to right, then on to the next row, and so do the pixels that they are made of.
    Tokens of another order, or that attention has mixed already, show no grid.

    Args:
        model: any module that takes images.
        images: (batch, channels, height, width), for their shape, type and device.
        recorded: the outputs of its modules in a forward pass.
        name: of the model, for errors.

    Returns:
        One grid; empty where there are no such tokens, where they show no grid, and on the meta device.

    Raises:
        UserError: for a model that returns no tensor.
    """
    layers = [layer for layer, outputs in recorded.items() if _may_hold_tokens(model.get_submodule(layer), outputs)]
    if images.is_meta or not layers:
        return []
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        # Copies: a later layer may change them in place.
        found.extend(one.clone().flatten(1, -2) for one in tensors_of(output) if _has_channels_last(module, one))

    # Of any values: from zeros alone, rectified features could all be zero.
    values = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    leaf = values.to(images.device, images.dtype).requires_grad_()
    handles = [model.get_submodule(layer).register_forward_hook(keep) for layer in layers]
    try:
        with evaluating(model), torch.enable_grad():
            output_of(model(leaf.clone()), name)
    finally:
        for handle in handles:
            handle.remove()
    for tensor in found:
        if tensor.requires_grad and _pixels_of(tensor, leaf) is not None:
            grids = (_grid_of(tokens, leaf) for tokens in (tensor, tensor.transpose(1, 2)))
            return [grid for grid in grids if grid is not None][:1]
    return []


def _may_hold_tokens(module: nn.Module, outputs: list[Any]) -> bool:
    """Whether a layer has weights of its own, which mix the pixels of a patch, and outputs tokens or a grid of them."""
    has_weights = next(module.parameters(recurse=False), None) is not None
    return has_weights and any(_has_channels_last(module, one) for one in tensors_of(outputs))


def _has_channels_last(module: nn.Module, output: Tensor) -> bool:
    return output.ndim == 3 or (output.ndim == 4 and isinstance(module, nn.Linear))


def _grid_of(tokens: Tensor, leaf: Tensor) -> Grid | None:
    """Returns the grid of tokens (batch, tokens, channels) behind any that are not made of the images, or None."""
    span = [functools.partial(_pixels_of, token, leaf) for token in tokens.unbind(1)]
    first = next((k for k in range(len(span)) if span[k]() is not None), len(span))
    count, width = len(span) - first, 1
    while width < count and _follows(span[first + width - 1](), span[first + width](), across=True):
        width += 1
    column = [one() for one in span[first::width]]
    is_grid = count > 0 and count % width == 0 and all(_follows(a, b) for a, b in itertools.pairwise(column))
    return (count // width, width) if is_grid else None


def _follows(one: Spans | None, other: Spans | None, *, across: bool = False) -> bool:
    """Whether a token is made of pixels below those of another, or beside them where `across`."""
    if one is None or other is None:
        return False
    moved, same = (1, 0) if across else (0, 1)
    return other[moved] > one[moved] and other[same] == one[same]


def _pixels_of(output: Tensor, leaf: Tensor) -> Spans | None:
    """Returns which pixels an output of any shape is made of; None where it is made of none."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    (gradient,) = torch.autograd.grad(output, leaf, weights, retain_graph=True, allow_unused=True)
    if gradient is None:
        return None
    used = (gradient != 0).any(0).any(0).cpu()
    rows, columns = (used.any(dim).nonzero()[:, 0].tolist() for dim in (1, 0))
    return ((rows[0], rows[-1]), (columns[0], columns[-1])) if rows else None
