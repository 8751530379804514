"""Tells how a module's output is laid out as a map, and records the outputs of modules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from feature_gan_kd.models.tapped_model import Layout, MapShape, tensors_of

# Models put at most this many class and register tokens in front of their grid.
_MOST_PREFIX_TOKENS = 16

RecordedOutputs = dict[str, list[Any]]
"""The outputs of each named module, in the order in which the modules finish."""

MapLayout = tuple[Layout, int, MapShape]
"""Layout, number of prefix tokens and shape of a map."""

Grid = tuple[int, int]
"""Height and width."""


@contextmanager
def recording(model: nn.Module) -> Iterator[RecordedOutputs]:
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


def convolution_grids(model: nn.Module, recorded: RecordedOutputs) -> list[Grid]:
    """Returns the grids (height, width) of the outputs of all convolutions, as of a patch embedding."""
    tensors = [
        tensor
        for layer, outputs in recorded.items()
        if isinstance(model.get_submodule(layer), nn.Conv2d)
        for tensor in tensors_of(outputs)
    ]
    return list(dict.fromkeys((one.shape[2], one.shape[3]) for one in tensors if one.ndim == 4))


def map_layout(
    model: nn.Module,
    tensor: Tensor,
    known: Sequence[MapShape],
    grids: Sequence[Grid] = (),
    token_counts: Sequence[int] = (),
) -> MapLayout | None:
    """Tells how a tensor is laid out as a map; None where it is not a map.

    Args:
        model: whose output it is; models may state their layout and their number of prefix tokens.
        tensor: any output.
        known: shapes of the model's maps, as timm gives them; empty where they are not known.
        grids: of the model's convolutions; they count where `known` is empty.
        token_counts: numbers of tokens before this tensor; tokens are added in front of a grid, a grid never grows.
    """
    if tensor.ndim == 4:
        _, a, b, c = tensor.shape
        if _is_channels_last(model, tensor, known, grids):
            return Layout.NHWC, 0, (c, a, b)
        return Layout.NCHW, 0, (a, b, c)
    if tensor.ndim != 3:
        return None
    _, a, b = tensor.shape
    # Tokens show their channels and their number, but not their grid: it is known from timm, from the convolution that
    # made the tokens, or assumed to be square.
    for channels, height, width in reversed(known):
        if 0 <= a - height * width <= _MOST_PREFIX_TOKENS and not (a == channels and b == height * width):
            return Layout.NLC, a - height * width, (b, height, width)
        if (a, b) == (channels, height * width):
            return Layout.NCL, 0, (a, height, width)
    if known:
        return None
    return (
        _tokens_of_grid(model, tensor, grids)
        or _tokens_after_fewer(tensor, token_counts)
        or _tokens_of_square(model, tensor, bool(grids))
    )


def _tokens_after_fewer(tensor: Tensor, token_counts: Sequence[int]) -> MapLayout | None:
    """Finds the earlier square of tokens in front of which the fewest were put."""
    _, a, b = tensor.shape
    fitting = [count for count in token_counts if 1 < count < a <= count + _MOST_PREFIX_TOKENS]
    side = max((math.isqrt(count) for count in fitting if math.isqrt(count) ** 2 == count), default=0)
    return (Layout.NLC, a - side * side, (b, side, side)) if side else None


def _tokens_of_grid(model: nn.Module, tensor: Tensor, grids: Sequence[Grid]) -> MapLayout | None:
    """Finds the grid that leaves the fewest prefix tokens, or the stated number of them."""
    _, a, b = tensor.shape
    stated = _stated_prefix(model)
    usable = [(height, width) for height, width in grids if height * width > 1]
    prefixes = {a - height * width: (height, width) for height, width in usable}
    # Few prefix tokens first: with many, channels in front of tokens (batch, channels, tokens) would look like tokens.
    for prefix in ([] if stated is None else [stated]) + [0, 1, 2]:
        if prefix in prefixes:
            return Layout.NLC, prefix, (b, *prefixes[prefix])
    for height, width in usable:
        if b == height * width:
            return Layout.NCL, 0, (a, height, width)
    many = [prefix for prefix in sorted(prefixes) if 0 <= prefix <= _MOST_PREFIX_TOKENS]
    return (Layout.NLC, many[0], (b, *prefixes[many[0]])) if many else None


def _tokens_of_square(model: nn.Module, tensor: Tensor, has_grids: bool) -> MapLayout | None:
    """Finds the number of prefix tokens that makes the grid square.

    Where convolutions have other grids, the tokens were merged since, and then there is one class token at most.
    """
    _, a, b = tensor.shape
    stated = _stated_prefix(model)
    for prefix in (*([] if stated is None else [stated]), *range(2 if has_grids else _MOST_PREFIX_TOKENS + 1)):
        side = math.isqrt(max(a - prefix, 0))
        if side > 0 and side * side == a - prefix:
            return Layout.NLC, prefix, (b, side, side)
    return None


def _stated_prefix(model: Any) -> int | None:
    """Returns the number of class and register tokens that timm's and transformers' models state; None for others."""
    if isinstance(getattr(model, "num_prefix_tokens", None), int):
        return int(model.num_prefix_tokens)
    registers = getattr(getattr(model, "config", None), "num_register_tokens", None)
    return 1 + registers if isinstance(registers, int) else None


def _is_channels_last(model: nn.Module, tensor: Tensor, known: Sequence[MapShape], grids: Sequence[Grid]) -> bool:
    """Whether a tensor of four dimensions is (batch, height, width, channels)."""
    _, a, b, c = tensor.shape
    if any((a, b, c) == shape for shape in known):
        return False
    if any((c, a, b) == shape for shape in known):
        return True
    stated = getattr(model, "output_fmt", None)
    if stated is not None:
        return str(getattr(stated, "value", stated)) == "NHWC"
    if (b, c) in grids and (a, b) not in grids:
        return False  # as many channels as rows, on the oblong grid of a convolution
    # Maps of square images are square: the two equal dimensions are height and width, unless all three are equal.
    return a == b and b != c
