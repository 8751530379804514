"""Finds what a model changes in place: its images, which other models share, and the maps that are tapped (ours)."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.models.outputs import tensors_of
from feature_gan_kd.models.tapped_model import TappedModel, evaluating
from feature_gan_kd.utils.errors import UserError


def check_in_place(model: TappedModel, images: Tensor, named: Collection[str], *, learns: bool) -> None:
    """Refuses named layers whose output a later one changes, and copies the images of a model that changes them.

    A layer such as an in-place dropout acts in training alone, so that a model that learns runs in both modes.

    Args:
        model: the model, with its taps.
        images: (batch, channels, height, width), for forward passes without gradients.
        named: layers that the user named. Where none is named, the map is what goes on to the logits, changes included.
        learns: whether the model is ever in training mode.

    Raises:
        UserError: for a layer whose output changes.
    """
    for context in (evaluating, _training) if learns else (evaluating,):
        kept: dict[str, list[tuple[Tensor, int]]] = {layer: [] for layer in named}
        given = images.clone()
        version = given._version
        with context(model), torch.no_grad(), _keeping(model.module, kept):
            model.module(given)
        if given._version != version:
            model.adapter.copies = True
        for layer, tensors in kept.items():
            if any(tensor._version != before for tensor, before in tensors):
                raise UserError(
                    f"{model.name}: a later layer changes the output of {layer!r} in place: name that later layer"
                )


@contextlib.contextmanager
def _keeping(module: nn.Module, kept: dict[str, list[tuple[Tensor, int]]]) -> Iterator[None]:
    """Keeps the outputs of layers inside the block, with the number of their changes until then."""

    def hook(layer: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept[layer].extend((tensor, tensor._version) for tensor in tensors_of(output))

        return keep

    handles = [module.get_submodule(layer).register_forward_hook(hook(layer)) for layer in kept]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _training(model: TappedModel) -> Iterator[None]:
    """Puts a model into the mode in which it learns; all that its modules hold is as before after it.

    Errors inside the block end it: what fails in training has its own line there.
    """
    states = [_ModuleState(module) for module in model.modules()]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    model.train()
    try:
        with torch.random.fork_rng(devices=list(devices)), contextlib.suppress(Exception):
            yield
    finally:
        for state in states:
            state.restore()


class _ModuleState:
    """What a module holds besides parameters: modes, buffers, and attributes of its own, such as counters.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.tensors = [
            (tensor, tensor.clone())
            for tensor in (*module._buffers.values(), *self.attributes.values())
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
        ]
        self.containers = [(one, one.copy()) for one in self.attributes.values() if isinstance(one, (dict, list, set))]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the module its earlier state; tensors and containers stay the same objects."""
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for container, earlier in self.containers:
            container.clear()
            if isinstance(container, list):
                container.extend(earlier)
            else:
                container.update(earlier)
        for tensor, values in self.tensors:
            tensor.copy_(values)
