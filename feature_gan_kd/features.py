"""The tap: a network's logits and feature maps out of one forward pass, by forward hooks."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from feature_gan_kd.errors import UserError, closest

Layer = str | int
"""A module's dotted name, or the index of a timm stage."""


class Layout(enum.Enum):
    """How a module lays out its map."""

    NCHW = "batch, channels, height, width"
    NHWC = "batch, height, width, channels"
    NLC = "batch, tokens, channels"
    NC = "batch, channels"


@dataclass(frozen=True)
class Tap:
    """Where a feature map is taken, and how it becomes (batch, channels, height, width).

    Attributes:
        layer: dotted name of the module whose output it is.
        layout: of that output.
        prefix_tokens: class and register tokens in front, dropped (NLC alone).
        shape: (channels, height, width) of the map.
    """

    layer: str
    layout: Layout
    prefix_tokens: int
    shape: tuple[int, int, int]

    def to_map(self, output: Tensor) -> Tensor:
        """The module's output as a map (batch, channels, height, width)."""
        if self.layout is Layout.NHWC:
            return output.permute(0, 3, 1, 2)
        if self.layout is Layout.NLC:
            tokens = output[:, self.prefix_tokens :]
            if tokens.shape[1] != self.shape[1] * self.shape[2]:
                raise UserError(
                    f"layer {self.layer!r}: gave {tokens.shape[1]} tokens, the wiring was built for "
                    f"{self.shape[1]}x{self.shape[2]}: give the size of the images as image_size"
                )
            return tokens.transpose(1, 2).reshape(len(tokens), *self.shape)
        if self.layout is Layout.NC:
            return output[:, :, None, None]
        return output


class TappedNetwork(nn.Module):
    """One network and its taps: `forward` gives logits and maps of the same pass.

    The user's module is not edited. Hooks stand in it only while a forward runs, so that it can be copied,
    pickled and exported at any time; `compile` leaves them there until `release`, since a compiled forward keeps
    only the hooks that it found.

    Args:
        network: the user's module.
        taps: where to take maps.
        name: of the network, for error lines.
    """

    def __init__(self, network: nn.Module, taps: Sequence[Tap], name: str) -> None:
        super().__init__()
        self.network = network
        self.taps = tuple(taps)
        self.name = name
        self._outputs: dict[str, list[Any]] = {}
        self._handles: list[RemovableHandle] = []
        self._call = self._run

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One forward pass.

        Args:
            images: (batch, channels, height, width), normalised.

        Returns:
            Logits (batch, classes) and one map (batch, channels, height, width) per tap.

        Raises:
            UserError: where a tapped module was not called exactly once.
        """
        with self._hooked():
            logits, outputs = self._call(images)
        maps = []
        for tap, fired in zip(self.taps, outputs, strict=True):
            if len(fired) != 1:
                raise UserError(_miscount(self.name, tap.layer, len(fired)))
            maps.append(tap.to_map(first_tensor(fired[0])))
        return logits, tuple(maps)

    def compile_forward(self) -> None:
        """Compiles the forward pass; the hooks stay in the network until `release`."""
        self._handles = self._register()
        self._call = torch.compile(self._run)

    def release(self) -> None:
        """Takes every hook out of the network."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._call = self._run

    def _run(self, images: Tensor) -> tuple[Tensor, list[list[Any]]]:
        self._outputs = {tap.layer: [] for tap in self.taps}
        logits = logits_of(self.network(images), self.name)
        outputs = [self._outputs[tap.layer] for tap in self.taps]
        self._outputs = {}
        return logits, outputs

    def _register(self) -> list[RemovableHandle]:
        def keep(layer: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if layer in self._outputs:  # a recomputation in the backward pass is not recorded
                    self._outputs[layer].append(output)

            return hook

        layers = {tap.layer for tap in self.taps}
        return [self.network.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = [] if self._handles else self._register()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def logits_of(output: Any, name: str) -> Tensor:
    """The logits in a network's output: the tensor itself, `output.logits` or `["logits"]`, or the first of a
    tuple.

    Raises:
        UserError: where none of these is a (batch, classes) tensor.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{name}: its output is {shape}, expected logits (batch, classes): it cannot classify")
    return output


def first_tensor(output: Any) -> Tensor:
    """The map in a module's output: the tensor itself, or the last tensor of a tuple, list or mapping."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        output = next((item for item in reversed(output) if isinstance(item, Tensor)), output)
    tensor: Tensor = output
    return tensor


def find_taps(network: nn.Module, images: Tensor, name: str, layers: Sequence[Layer] = ()) -> list[Tap]:
    """Finds where a network's maps are, by one real forward pass in evaluation mode.

    Args:
        network: any module that maps images to logits.
        images: (batch, channels, height, width) to try it with.
        name: of the network, for error lines.
        layers: modules to tap; none means the last map before pooling.

    Returns:
        One tap per layer.

    Raises:
        UserError: for a layer that does not exist, is never called or called twice, or gives no map.
    """
    fired = trace(network, images, name)
    if not layers:
        return [_find_last(network, images, fired, name)]
    return [_tap(network, images, _resolve(network, layer, name), fired, name) for layer in layers]


def trace(network: nn.Module, images: Tensor, name: str) -> dict[str, list[Any]]:
    """The outputs of every named module, in the order in which they end, in one forward pass."""
    with evaluating(network), torch.no_grad(), _recording(network) as fired:
        logits_of(network(images), name)
    return fired


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode again afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _recording(network: nn.Module) -> Iterator[dict[str, list[Any]]]:
    fired: dict[str, list[Any]] = {}

    def keep(layer: str) -> Any:
        return lambda module, args, output: fired.setdefault(layer, []).append(output)

    handles = [module.register_forward_hook(keep(layer)) for layer, module in network.named_modules() if layer]
    try:
        yield fired
    finally:
        for handle in handles:
            handle.remove()


def _find_last(network: nn.Module, images: Tensor, fired: dict[str, list[Any]], name: str) -> Tap:
    """The last map before pooling: what timm's `forward_features` returns, else the last spatial output."""
    if hasattr(network, "forward_features"):
        with evaluating(network), torch.no_grad(), _recording(network) as inside:
            forward_features: Any = network.forward_features
            features = forward_features(images)
        same = [layer for layer, outputs in inside.items() if outputs[-1] is features]
        candidates = [layer for layer in same if len(fired.get(layer, [])) == 1]
    else:
        spatial = [
            layer
            for layer, outputs in fired.items()
            if len(outputs) == 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim == 4
        ]
        grids = [layer for layer in spatial if max(fired[layer][0].shape[2:]) > 1] or spatial
        candidates = [layer for layer in grids if fired[layer][0] is fired[grids[-1]][0]]
    if not candidates:
        raise UserError(f"{name}: no module's output is its last feature map: name a layer with feature_layers")
    return _tap(network, images, candidates[-1], fired, name)


def _resolve(network: nn.Module, layer: Layer, name: str) -> str:
    """A layer's dotted name; a whole number counts timm's stages."""
    if isinstance(layer, int):
        stages = [str(stage["module"]) for stage in getattr(network, "feature_info", [])]
        if not -len(stages) <= layer < len(stages):
            raise UserError(f"{name}: feature_layers names stage {layer}, it has {len(stages)}: {', '.join(stages)}")
        layer = stages[layer]
    known = [path for path, _ in network.named_modules() if path]
    if layer not in known:
        near = closest(layer, known) or ", ".join(path for path in known if "." not in path)
        raise UserError(f"{name}: it has no layer {layer!r}, the nearest are {near}")
    return layer


def _tap(network: nn.Module, images: Tensor, layer: str, fired: dict[str, list[Any]], name: str) -> Tap:
    outputs = fired.get(layer, [])
    if len(outputs) != 1:
        raise UserError(_miscount(name, layer, len(outputs)))
    output = first_tensor(outputs[0])
    if not isinstance(output, Tensor) or not 2 <= output.ndim <= 4:
        kind = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{name}: the output of layer {layer!r} is {kind}, expected a map or tokens: name another")
    if output.ndim == 2:
        return Tap(layer, Layout.NC, 0, (output.shape[1], 1, 1))
    if output.ndim == 3:
        prefix = int(getattr(network, "num_prefix_tokens", 0))
        return Tap(layer, Layout.NLC, prefix, (output.shape[2], *_grid(network, output.shape[1] - prefix, name)))
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return Tap(layer, Layout.NHWC, 0, (output.shape[3], output.shape[1], output.shape[2]))
    return Tap(layer, Layout.NCHW, 0, (output.shape[1], output.shape[2], output.shape[3]))


def _grid(network: nn.Module, tokens: int, name: str) -> tuple[int, int]:
    """Height and width of a token network's grid: the patch embedding's, else a square."""
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is not None and grid[0] * grid[1] == tokens:
        return int(grid[0]), int(grid[1])
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"{name}: {tokens} tokens make no square grid: name a layer with feature_layers")
    return side, side


def _miscount(name: str, layer: str, count: int) -> str:
    reason = (
        "a part of the network that this forward does not use, or gradient checkpointing goes round it"
        if count == 0
        else "it is shared by several places, or gradient checkpointing repeats it"
    )
    return f"{name}: layer {layer!r} was called {count} times in one forward, expected once ({reason}): name another"


@dataclass(frozen=True)
class Trial:
    """What one forward pass showed: the number of classes, and the parameters that the maps come from."""

    classes: int
    extractor: set[nn.Parameter]


def try_out(network: TappedNetwork, images: Tensor) -> Trial:
    """One forward pass in evaluation mode, with gradient, of which only the graph is looked at."""
    with evaluating(network), torch.enable_grad():
        logits, maps = network(images)
    return Trial(logits.shape[1], upstream_parameters(maps))


def layers_of(feature_layers: Any, index: int) -> list[Layer]:
    """The layers that network `index` is tapped at, in the user's notation; empty means: find it."""
    if isinstance(feature_layers, Mapping):
        feature_layers = feature_layers.get(index)
    if feature_layers is None:
        return []
    return [feature_layers] if isinstance(feature_layers, (str, int)) else list(feature_layers)


def upstream_parameters(outputs: Sequence[Tensor]) -> set[nn.Parameter]:
    """The parameters from which `outputs` were computed: those of the feature extractor, for a map.

    Walks the autograd graph of the outputs; nothing is computed.
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
