"""Gradients by optimiser: each group of parameters has its own gradient of the same forward pass (ours).

A learner's extractor has two gradients, that of the logit loss and that of the feature loss, and an optimiser for each.
`parameter.grad` can hold one of them at a time, so every group keeps its own and attaches it when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from feature_gan_kd.distributed.collectives import all_reduce_async, any_rank_async, world_size

Gradients = list[Tensor | None]


@dataclass
class OptimizerGroup:
    """Parameters that one optimiser steps by one kind of gradient.

    Attributes:
        kind: of the gradient: `logit`, `feature` or `discriminator`.
        parameters: those that the optimiser steps.
        optimizer: the optimiser.
        owners: for each parameter the part that it belongs to, in words: a model, a transfer layer, a discriminator.
        clip_grad: largest norm of the gradients of an owner, by its name; those of others are not clipped.
        name: the kind; where models have different optimisers, with that of the optimiser, as `logit-adamw`.
        scaler: of the loss that the gradient is taken of; groups with a common backward pass share it. Only fp16 turns
            it on.
        gradients: one per parameter, of the batch so far; None where the loss does not depend on it. The list is empty
            in an update in which this group does not step.
    """

    kind: str
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    owners: list[str]
    clip_grad: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    gradients: Gradients = field(default_factory=list)
    _finish_reduction: Callable[[], None] | None = field(default=None, repr=False)
    _finish_presence: Callable[[], list[bool]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.name = self.name or self.kind

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, `parameter.grad` is this group's gradient, for autograd to add to or for the optimiser to read."""
        for parameter, gradient in zip(self.parameters, self.gradients or [None] * len(self.parameters), strict=True):
            parameter.grad = gradient
        try:
            yield
        finally:
            self.gradients = [parameter.grad for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None

    def fill_zeros(self) -> None:
        """Takes a zero gradient, so that the optimiser's step is its weight decay alone (the control)."""
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.scaler.scale(self.parameters[0].new_zeros(()))  # it makes its scale with a loss, and here there is none

    def start_reduction(self) -> None:
        """Starts to sum the gradients over all processes; the exchange runs beside the next backward pass.

        A model may skip a block on one process and not on another. There the gradient counts as zero, since all
        processes must add the same tensors in the same order.

        Raises:
            UserError: where another process is gone.
        """
        if world_size() == 1:
            return
        own = self.gradients or [None] * len(self.parameters)
        self._finish_presence = any_rank_async([gradient is not None for gradient in own])
        pairs = zip(self.parameters, own, strict=True)
        self.gradients = [torch.zeros_like(p) if gradient is None else gradient for p, gradient in pairs]
        self._finish_reduction = all_reduce_async(self.gradients)

    def finish_reduction(self) -> None:
        """Waits until the gradients are those of the whole batch; one that no process has is None on all of them.

        Raises:
            UserError: where another process is gone.
        """
        if self._finish_reduction is None or self._finish_presence is None:
            return
        self._finish_reduction()
        pairs = zip(self._finish_presence(), self.gradients, strict=True)
        self.gradients = [gradient if present else None for present, gradient in pairs]
        self._finish_reduction = self._finish_presence = None

    def unscale(self) -> None:
        """Divides the gradients, of the whole batch, by the scale of their loss; one that overflowed is not finite."""
        if self.scaler.is_enabled():
            with self.attached():
                self.scaler.unscale_(self.optimizer)

    def step(self, *, unless: Tensor) -> None:
        """Clips the gradients, and steps the optimiser unless `unless`, a scalar 0 or 1 on the device, is 1."""
        with self.attached():
            _start_momentum(self.optimizer)
            for owner, largest in self.clip_grad.items():
                own = [p for p, name in zip(self.parameters, self.owners, strict=True) if name == owner]
                nn.utils.clip_grad_norm_(own, largest)
            step_if_finite(unless, self.optimizer)

    def rates(self, key: str = "lr") -> dict[str, float]:
        """The largest learning rate of each owner's parameters, by the owner; that at the start with `initial_lr`."""
        owners = dict(zip(self.parameters, self.owners, strict=True))
        found: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                owner = owners[parameter]
                found[owner] = max(found.get(owner, 0.0), group.get(key, group["lr"]))
        return found

    def clear(self) -> None:
        """Frees the gradients."""
        self.gradients = []
        self._finish_reduction = self._finish_presence = None


def backward(
    loss: Tensor,
    groups: Sequence[OptimizerGroup],
    *,
    retain_graph: bool = False,
    reduce: bool,
    is_dummy: bool = False,
) -> None:
    """Adds the gradient of a loss to groups of parameters, and to nothing else.

    `inputs` keeps everything outside the groups fixed: a discriminator while its learner is taught, and the reverse.

    Args:
        loss: scalar.
        groups: whose parameters the gradient is taken of, in one pass, scaled by their common scaler; no parameter is
            in two of them.
        retain_graph: another loss of the same forward pass follows.
        reduce: this is the last microbatch: start to sum the gradients over all processes.
        is_dummy: the loss is that of a dummy batch. Its gradients are zero, and dropped: a parameter that the dummy
            images alone reach has no gradient. The pass runs for what it exchanges with other processes.

    Raises:
        UserError: where another process is gone.
    """
    before = [group.gradients for group in groups]
    with ExitStack() as stack:
        for group in groups:
            stack.enter_context(group.attached())
        inputs = [parameter for group in groups for parameter in group.parameters]
        torch.autograd.backward(groups[0].scaler.scale(loss), inputs=inputs, retain_graph=retain_graph)
    for group, gradients in zip(groups, before, strict=True) if is_dummy else ():
        group.gradients = gradients
    for group in groups if reduce else ():
        group.start_reduction()


def step_if_finite(nonfinite: Tensor, optimizer: Optimizer) -> None:
    """Steps an optimiser unless `nonfinite`, a scalar 0 or 1, is 1.

    Fused optimisers read the flag on the device, as they do for a gradient scaler. For others, and for the first step
    of any, the host reads it: a skipped first step of fused SGD would leave its momentum buffer unwritten.
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if fused and has_state(optimizer):
        reader: Any = optimizer
        reader.grad_scale, reader.found_inf = None, nonfinite
        try:
            optimizer.step()
        finally:
            del reader.grad_scale, reader.found_inf
    elif not nonfinite:
        optimizer.step()


def _start_momentum(optimizer: Optimizer) -> None:
    """Gives a parameter that joins after the first step its momentum, zero: fused SGD takes all buffers or none."""
    if not (isinstance(optimizer, torch.optim.SGD) and optimizer.state):
        return
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"] and len(optimizer.state) < len(group["params"]):
            for parameter in group["params"]:
                if parameter.grad is not None and parameter not in optimizer.state:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def has_state(optimizer: Optimizer) -> bool:
    """Whether an optimiser has made all the state that it keeps; SGD without momentum keeps none."""
    return bool(optimizer.state) or all(group.get("momentum") == 0 for group in optimizer.param_groups)
