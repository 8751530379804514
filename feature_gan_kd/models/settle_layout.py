"""Settles by experiment what the shape of a layer's output leaves open about its map (ours)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from feature_gan_kd.models.map_layout import (
    MOST_PREFIX_TOKENS,
    Grid,
    recording,
    stated_layout,
    stated_prefix,
    token_grid,
)
from feature_gan_kd.models.outputs import tensors_of
from feature_gan_kd.models.tapped_model import Layout, MapShape, Tap, TapKind, evaluating
from feature_gan_kd.models.token_origin import tokens_from_images
from feature_gan_kd.utils.errors import UserError

# The layout whose positions are the dimensions that grow with the images.
_LAYOUTS = {(2, 3): Layout.NCHW, (1, 2): Layout.NHWC, (1,): Layout.NLC, (2,): Layout.NCL}


def settle_layout(
    model: nn.Module, tap: Tap, images: Tensor, known: Sequence[MapShape], grids: Sequence[Grid], name: str
) -> Tap:
    """Checks the layout of a tap, and returns it corrected.

    Two things are tried where the shape leaves them open. Images of twice the side show which dimensions are positions:
    these grow, channels do not. And derivatives by the pixels show which tokens are made of the images.

    Args:
        model: whose map it is.
        tap: as its shape suggests it.
        images: (batch, channels, height, width); on the meta device no tokens are checked.
        known: shapes of the model's maps, as timm gives them; empty where they are not known.
        grids: of the model's convolutions or patches.
        name: of the model, for error lines.

    Returns:
        The tap; a guess, where the model takes one size of images alone and does not state its layout.

    Raises:
        UserError: where the grid holds tokens that are not made of the images.
    """
    tensor = _output_of(model, tap, images)
    if tensor is None or tap.kind is TapKind.STAGE or tap.shape in known or (known and tensor.ndim == 3):
        return tap
    tap = _settle_axes(model, tap, tensor, images, grids, name)
    return _settle_tokens(model, tap, tensor, images, grids, name) if tensor.ndim == 3 else tap


def _output_of(model: nn.Module, tap: Tap, images: Tensor) -> Tensor | None:
    """The tensor that a tap takes its map from; None where the model fails before it."""
    with evaluating(model), torch.no_grad(), recording(model) as recorded, contextlib.suppress(Exception):
        if tap.kind is TapKind.FEATURES:
            return tensors_of(model.forward_features(images.clone()))[tap.element]  # type: ignore[operator]
        # Layers behind the tap may take one size of images alone.
        model(images.clone())
    outputs = tensors_of(recorded.get(tap.layer, [])[:1])
    return outputs[tap.element] if tap.element < len(outputs) else None


def _settle_axes(model: nn.Module, tap: Tap, tensor: Tensor, images: Tensor, grids: Sequence[Grid], name: str) -> Tap:
    """Finds which dimensions are positions, where several may be."""
    sizes, stated = tensor.shape[1:], stated_layout(model)
    if tensor.ndim == 3:
        is_open = _may_be_reversed(sizes[0], sizes[1], grids, stated_prefix(model))
    else:
        # Two equal dimensions beside another one are height and width, since the images are squares.
        is_open = len(set(sizes)) != 2 or sizes[0] == sizes[2]
    if not is_open and (tap.layout is not Layout.NHWC or stated == "NHWC"):
        return tap
    large = images[:1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    grown = _output_of(model, tap, large)
    changed = () if grown is None else tuple(k for k in range(1, grown.ndim) if grown.shape[k] != tensor.shape[k])
    possible = {dims: layout for dims, layout in _LAYOUTS.items() if len(layout.name) == tensor.ndim}
    layout = possible.get(changed) or next((one for one in possible.values() if is_open and one.name == stated), None)
    if layout is None and is_open and tensor.ndim == 3:
        layout = _where_others_are(model, tensor, images, name)
    if layout is None:
        return dataclasses.replace(tap, is_guess=is_open)
    return _with_layout(tap, layout, tensor, grids, stated_prefix(model)) or tap


def _where_others_are(model: nn.Module, tensor: Tensor, images: Tensor, name: str) -> Layout | None:
    """The layout in which some tokens are not made of the images, as all channels are; None where there is none."""
    _, a, b = tensor.shape
    for layout, count, width in ((Layout.NLC, a, b), (Layout.NCL, b, a)):
        made = None if a == b else tokens_from_images(model, images, count, width, name)
        if made is not None and not made.all():
            return layout
    return None


def _may_be_reversed(tokens: int, channels: int, grids: Sequence[Grid], stated: int | None) -> bool:
    """Whether either of two dimensions can count tokens: the second one without any in front."""
    counts = [height * width for height, width in grids if height * width > 1]
    prefixes = {*range(MOST_PREFIX_TOKENS + 1)} | ({stated} if stated is not None else set())
    if any(tokens - count in prefixes for count in counts):
        return channels in counts
    return channels > 1 and math.isqrt(channels) ** 2 == channels


def _with_layout(tap: Tap, layout: Layout, tensor: Tensor, grids: Sequence[Grid], prefix: int | None) -> Tap | None:
    """The tap with another layout; None where its tokens have no grid."""
    if layout is tap.layout:
        return tap
    a, b, *rest = tensor.shape[1:]
    if layout is Layout.NCHW:
        return dataclasses.replace(tap, layout=layout, shape=(a, b, rest[0]))
    if layout is Layout.NHWC:
        return dataclasses.replace(tap, layout=layout, shape=(rest[0], a, b))
    count, channels = (a, b) if layout is Layout.NLC else (b, a)
    found = token_grid(count, grids, [], prefix)
    if found is None:
        return None
    return dataclasses.replace(tap, layout=layout, prefix_tokens=found[0], shape=(channels, *found[1]))


def _settle_tokens(model: nn.Module, tap: Tap, tensor: Tensor, images: Tensor, grids: Sequence[Grid], name: str) -> Tap:
    """Finds where the tokens of the images begin."""
    count, width = (tensor.shape[k] for k in ((1, 2) if tap.layout is Layout.NLC else (2, 1)))
    made = tokens_from_images(model, images, count, width, name)
    if made is None or not made.any():
        return tap
    first = int(made.nonzero()[0])
    if made[first:].all():
        found = token_grid(count, grids, [], first)
        if found is not None and found[0] == first:
            return dataclasses.replace(tap, prefix_tokens=first, shape=(width, *found[1]))
        # As a class token that is the mean of all patches. Several are none, unless the grid behind them is known.
        if first <= tap.prefix_tokens and (tap.prefix_tokens - first <= 1 or tap.shape[1:] in grids):
            return tap
    where = "behind" if made[: int(made.sum())].all() else "among"
    others = f"tokens {where} those of the image, not in front"
    if made[first:].all():
        others = f"{count - first} tokens of the image, which are no square, behind {first} others"
    raise UserError(f"{name}: {tap.title!r} has {others}: name a layer with feature_layers")
