"""Taps: a model's logits, if it has any, and feature maps from one forward pass, by forward hooks."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from feature_gan_kd.models.compile import Compiler
from feature_gan_kd.models.input_adapter import InputAdapter
from feature_gan_kd.models.outputs import logits_of, output_of, tensors_of
from feature_gan_kd.utils.errors import UserError

Layer = str | int
"""A module's dotted name, or the index of a timm stage."""

MapShape = tuple[int, int, int]
"""Channels, height, width of a feature map."""


class Layout(enum.Enum):
    """Order of the dimensions of a module's output."""

    NCHW = "batch, channels, height, width"
    NHWC = "batch, height, width, channels"
    NLC = "batch, tokens, channels"
    NCL = "batch, channels, tokens"
    NC = "batch, channels"


class TapKind(enum.Enum):
    """How a map is obtained."""

    MODULE = "the output of a module, by a forward hook"
    FEATURES = "timm's forward_features, followed by forward_head"
    STAGE = "timm's forward_intermediates, followed by forward_head"


@dataclass(frozen=True)
class Tap:
    """Where a feature map is taken, and how it is brought into the shape (batch, channels, height, width).

    Attributes:
        layer: dotted name of the module whose output it is; the index of a stage; empty for `forward_features`.
        layout: of that output.
        prefix_tokens: number of class and register tokens in front of the grid, which are dropped.
        shape: (channels, height, width) of the map.
        element: which of the output's tensors is the map, see `tensors_of`.
        kind: how the output is obtained.
        is_guess: whether its shape allows another layout, which no experiment could rule out.
    """

    layer: str
    layout: Layout
    prefix_tokens: int
    shape: MapShape
    element: int = 0
    kind: TapKind = TapKind.MODULE
    is_guess: bool = False

    @property
    def title(self) -> str:
        """The tap in words, for summaries and messages."""
        if self.kind is TapKind.MODULE:
            return self.layer
        return "forward_features" if self.kind is TapKind.FEATURES else f"stage {self.layer}"

    def to_map(self, output: Any) -> Tensor:
        """Turns a module's output into a map (batch, channels, height, width).

        Raises:
            UserError: where the number of tokens is not that of the grid that was found.
        """
        tensor = tensors_of(output)[self.element]
        if self.layout is Layout.NHWC:
            return tensor.permute(0, 3, 1, 2)
        if self.layout is Layout.NCHW:
            return tensor
        if self.layout is Layout.NC:
            return tensor[:, :, None, None]
        tokens = (tensor.transpose(1, 2) if self.layout is Layout.NLC else tensor)[..., self.prefix_tokens :]
        if tokens.shape[2] != self.shape[1] * self.shape[2]:
            raise UserError(
                f"layer {self.layer!r}: gave {tokens.shape[2]} tokens, the distiller was built for images that give "
                f"{self.shape[1]}x{self.shape[2]}: give the size of the images as image_size"
            )
        return tokens.reshape(len(tokens), *self.shape)


class TappedModel(nn.Module):
    """A model with its taps: `forward` returns the logits and the maps of one pass.

    The user's module is not changed. It holds hooks only while `forward` runs, so that it can be copied, pickled and
    exported at any time. The hooks are the same functions in every forward, because a compiled forward keeps those that
    it found when it was compiled.

    Args:
        module: the user's module.
        taps: where to take the maps.
        name: of the model, for error lines.
        adapter: brings the images that all models share to the size and normalisation of this one.
        always_evaluated: modules that stay in evaluation mode while the model is trained.
        classifies: whether what it returns are logits.
        input_note: on its first layer, for the user.
    """

    def __init__(
        self,
        module: nn.Module,
        taps: Sequence[Tap],
        name: str,
        adapter: InputAdapter | None = None,
        always_evaluated: Sequence[nn.Module] = (),
        *,
        classifies: bool = True,
        input_note: str | None = None,
    ) -> None:
        super().__init__()
        self._input_note = input_note
        self._always_evaluated = tuple(always_evaluated)  # a tuple, since a list of modules would be registered
        self.module = module
        self.adapter = adapter or InputAdapter(0)
        self.taps = tuple(taps)
        self.name = name
        self.classifies = classifies
        self._pass = _ForwardPass(module, self.taps, name, classifies)
        self._hooks = {layer: self._pass.hook(layer) for layer in self._pass.layers}
        # A method of another object: one of this module would make it refer to itself, and its memory would be freed
        # only when Python's garbage collector runs.
        self._call: Callable[[Tensor], tuple[Tensor, dict[str, list[Any]]]] = self._pass.run

    def forward(self, images: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """One forward pass.

        Args:
            images: (batch, channels, height, width), in the size and normalisation that all models share.

        Returns:
            Logits (batch, classes), None of a model that does not classify, and one map (batch, channels, height,
            width) per tap.

        Raises:
            UserError: where a tapped module was not called exactly once, its number of tokens is not that of the
                grid that was found, the model returns no logits, or it changes images in place that it did not change
                when the distiller was built.
        """
        output, maps = self.run(images)
        return output if self.classifies else None, maps

    def tell_features(self) -> None:
        """From now on, what the model returns counts as features, not as logits."""
        self.classifies = self._pass.classifies = False

    def features(self, images: Tensor) -> Tensor:
        """One vector for each image: what a model without a classifier returns, else its last map, else its logits.

        A map is averaged over its positions.

        Args:
            images: as for `forward`.

        Returns:
            (batch, features).

        Raises:
            UserError: as `forward`, and for a model that returns no vector and has no tapped map.
        """
        output, maps = self.run(images)
        if output.ndim == 2 and not (self.classifies and maps):
            return output
        if not maps:
            raise UserError(f"{self.name}: returns no vector for an image, and no map of it is taken")
        return maps[-1].mean((2, 3))

    def run(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What images (batch, channels, height, width) give, logits or not, and the maps. Raises as `forward`."""
        given = self.adapter(images)
        version = version_of(given)
        with self._hooked():
            output, outputs = self._call(given)
        if given is images and version_of(given) != version:
            raise UserError(f"{self.name}: it changes its images in place, which other models share: let it copy them")
        maps = []
        for tap in self.taps:
            recorded = outputs[tap.title]
            if len(recorded) != 1:
                raise UserError(hook_count_error(self.name, tap.layer, len(recorded)))
            maps.append(tap.to_map(recorded[0]))
        return output, tuple(maps)

    def notes(self) -> list[str]:
        """Lines on a first layer that differs from the trained one, and on taps whose layout is a guess."""
        first = [] if self._input_note is None else [f"{self.name}: {self._input_note}"]
        return first + [
            f"{self.name}: the output of {tap.title!r} is taken as ({tap.layout.value}), but its shape allows "
            f"another layout: set the model's attribute output_fmt to {tap.layout.name}, or to what is right"
            for tap in self.taps
            if tap.is_guess
        ]

    def is_in_mode(self, mode: bool) -> bool:
        """Whether the model is in training or in evaluation mode, as it should be."""
        return self.module.training == mode and not any(module.training for module in self._always_evaluated)

    def train(self, mode: bool = True) -> TappedModel:
        """Switches to training or evaluation mode, except what stays in evaluation mode."""
        super().train(mode)
        for module in self._always_evaluated:
            module.eval()
        return self

    def compile_forward(self, compiler: Compiler) -> None:
        """Compiles the forward pass.

        Args:
            compiler: shared by all models of a run.
        """
        self._call = compiler(self._pass.run)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = [self.module.get_submodule(layer).register_forward_hook(hook) for layer, hook in self._hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _ForwardPass:
    """A model's forward pass that keeps the outputs of tapped modules.

    Args:
        module: the user's module.
        taps: where to take maps.
        name: of the model, for error lines.
        classifies: whether what it returns are logits.
    """

    def __init__(self, module: nn.Module, taps: Sequence[Tap], name: str, classifies: bool) -> None:
        self.module: Any = module
        self.name = name
        self.classifies = classifies
        self.layers = tuple(dict.fromkeys(tap.layer for tap in taps if tap.kind is TapKind.MODULE))
        self.stages = tuple(dict.fromkeys(int(tap.layer) for tap in taps if tap.kind is TapKind.STAGE))
        self.takes_features = any(tap.kind is TapKind.FEATURES for tap in taps)
        self.outputs: dict[str, list[Any]] = {}

    def run(self, images: Tensor) -> tuple[Tensor, dict[str, list[Any]]]:
        """What images (batch, channels, height, width) give, and outputs by the titles of the taps.

        The first is the logits (batch, classes) of a model that classifies, else the first tensor that it returns.
        """
        self.outputs = {layer: [] for layer in self.layers}
        others: dict[str, list[Any]] = {}
        if self.stages:
            # Ask for all stages: if asked for early ones only, some models (Hiera) stop there and return no features.
            features, maps = self.module.forward_intermediates(images, output_fmt="NCHW")
            others = {f"stage {index}": [maps[index]] for index in self.stages}
            output = self.module.forward_head(features)
        elif self.takes_features:
            features = self.module.forward_features(images)
            others = {"forward_features": [features]}
            output = self.module.forward_head(features)
        else:
            output = self.module(images)
        outputs, self.outputs = self.outputs, {}
        if not self.classifies:
            return output_of(output, self.name), {**outputs, **others}
        if isinstance(output, (tuple, list)):
            check_one_head(self.module, self.name)
        return logits_of(output, self.name), {**outputs, **others}

    def hook(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook that keeps the output of one module."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # `outputs` is empty outside `run`: what gradient checkpointing repeats in the backward pass is ignored.
            if layer in self.outputs:
                self.outputs[layer].append(output)

        return keep


def version_of(tensor: Tensor) -> int:
    """How often a tensor of any shape was changed in place; 0 for one of inference mode, which does not count that."""
    return 0 if tensor.is_inference() else tensor._version


def check_one_head(module: nn.Module, name: str) -> None:
    """Checks that a model that learns gives the logits that it is evaluated by.

    With `distilled_training`, timm's models with a distillation token return the logits of two heads in training and
    their mean in evaluation: the second would be evaluated, but not trained.

    Raises:
        UserError: for such a model.
    """
    if any(getattr(one, "distilled_training", False) is True for one in module.modules()):
        raise UserError(
            f"{name}: distilled_training is on, so its two heads give two answers in training, of which one would be "
            "trained: call set_distilled_training(False), and their mean is trained"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode inside the block, and each of its modules back into its own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        if modes[0][1]:
            model.train()  # some drop there what they keep for evaluation, as LeViT its biases, which training changes
        for module, mode in modes:
            module.training = mode


def hook_count_error(name: str, layer: str, count: int) -> str:
    """Returns the error line for a module that was not called exactly once."""
    cause = (
        "the forward does not use it, or gradient checkpointing bypasses its hooks"
        if count == 0
        else "the model uses it in several places, or gradient checkpointing repeats it"
    )
    return f"{name}: layer {layer!r} was called {count} times in one forward, expected once ({cause}): name another"
