"""Tells how a module's output is laid out as a map, and records the outputs of modules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from feature_gan_kd.models.outputs import tensors_of
from feature_gan_kd.models.tapped_model import Layout, MapShape

# Models put at most this many class and register tokens in front of their grid.
MOST_PREFIX_TOKENS = 16

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
        grids: of the model's convolutions or patches; they count where `known` is empty.
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
        if 0 <= a - height * width <= MOST_PREFIX_TOKENS and not (a == channels and b == height * width):
            return Layout.NLC, a - height * width, (b, height, width)
        if (a, b) == (channels, height * width):
            return Layout.NCL, 0, (a, height, width)
    if known:
        return None
    stated = stated_prefix(model)
    few = _few_in_front(a, grids, stated)
    if few is None:
        # With many tokens in front, channels in front of tokens (batch, channels, tokens) would look like tokens.
        for height, width in grids:
            if b == height * width > 1:
                return Layout.NCL, 0, (a, height, width)
    found = few or token_grid(a, grids, token_counts, stated)
    return None if found is None else (Layout.NLC, found[0], (b, *found[1]))


def token_grid(
    count: int, grids: Sequence[Grid], token_counts: Sequence[int], stated: int | None
) -> tuple[int, Grid] | None:
    """Finds which of some tokens are a grid: the number of those in front of it, and the grid; None where none fits.

    Args:
        count: number of tokens.
        grids: see `map_layout`.
        token_counts: see `map_layout`.
        stated: number of tokens in front of the grid, where it is known.
    """
    few = _few_in_front(count, grids, stated)
    if few is not None:
        return few
    fitting = {count - h * w: (h, w) for h, w in grids if h * w > 1 and 0 <= count - h * w <= MOST_PREFIX_TOKENS}
    if fitting:
        prefix = min(fitting)
        return prefix, fitting[prefix]
    # The earlier square of tokens in front of which the fewest were put.
    earlier = [n for n in token_counts if 1 < n < count <= n + MOST_PREFIX_TOKENS]
    side = max((math.isqrt(n) for n in earlier if math.isqrt(n) ** 2 == n), default=0)
    if side:
        return count - side * side, (side, side)
    # Where convolutions have other grids, the tokens were merged since, and then there is one class token at most.
    for prefix in (*([] if stated is None else [stated]), *range(2 if grids else MOST_PREFIX_TOKENS + 1)):
        side = math.isqrt(max(count - prefix, 0))
        if side > 0 and side * side == count - prefix:
            return prefix, (side, side)
    return None


def _few_in_front(count: int, grids: Sequence[Grid], stated: int | None) -> tuple[int, Grid] | None:
    """Finds the grid of a convolution that leaves the stated number of tokens in front, or none, one or two."""
    prefixes = {count - height * width: (height, width) for height, width in grids if height * width > 1}
    for prefix in ([] if stated is None else [stated]) + [0, 1, 2]:
        if prefix in prefixes:
            return prefix, prefixes[prefix]
    return None


def stated_prefix(model: Any) -> int | None:
    """Returns the number of class and register tokens that timm's and transformers' models state; None for others."""
    if isinstance(getattr(model, "num_prefix_tokens", None), int):
        return int(model.num_prefix_tokens)
    registers = getattr(getattr(model, "config", None), "num_register_tokens", None)
    return 1 + registers if isinstance(registers, int) else None


def stated_layout(model: Any) -> str | None:
    """Returns the layout that a model states as timm's do (`output_fmt`: NCHW, NHWC, NLC or NCL); None for others."""
    stated = getattr(model, "output_fmt", None)
    return None if stated is None else str(getattr(stated, "value", stated))


def without_attention(tensors: Sequence[Tensor]) -> list[int]:
    """Returns the places of the tensors that are no attention matrices (..., tokens, tokens) of tokens beside them."""

    def weighs_another(k: int) -> bool:
        one = tensors[k]
        square = one.ndim >= 3 and one.shape[-1] == one.shape[-2]
        return square and any(
            other.ndim == 3 and one.shape[-1] in other.shape[1:] for j, other in enumerate(tensors) if j != k
        )

    places = list(range(len(tensors)))
    return [k for k in places if not weighs_another(k)] or places


def _is_channels_last(model: nn.Module, tensor: Tensor, known: Sequence[MapShape], grids: Sequence[Grid]) -> bool:
    """Whether a tensor of four dimensions is (batch, height, width, channels)."""
    _, a, b, c = tensor.shape
    if any((a, b, c) == shape for shape in known):
        return False
    if any((c, a, b) == shape for shape in known):
        return True
    stated = stated_layout(model)
    if stated is not None:
        return stated == "NHWC"
    if (b, c) in grids and (a, b) not in grids:
        return False  # as many channels as rows, on the oblong grid of a convolution
    # Maps of square images are square: the two equal dimensions are height and width, unless all three are equal.
    return a == b and b != c
