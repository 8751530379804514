"""What moves the weights: gradient and decay, and what an optimiser makes of them; measured in few updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from feature_gan_kd.optim.gradients import OptimizerGroup


class GradientStats:
    """Measures one update in so many; everything stays on the device.

    Per kind of update KIND (`logit`, `feature`, `discriminator`) and part P (a learner, or the edge of a
    discriminator), of the gradient g that the optimiser is given (of the whole batch, clipped), the weights w before
    the step and their change u:

    - `gradient_KIND/P`: the norm of g;
    - `decay_KIND/P`: the norm of c w with the weight decay c, which a coupled decay adds to g;
    - `update_KIND/P`: the norm of u;
    - `descent_KIND/P`: the cosine of u and -g: 1 where the step goes down the gradient of this batch;
    - `shrinkage_KIND/P`: the cosine of u and -w: 1 where the step only shrinks the weights.

    Args:
        parts: the part that a parameter belongs to; those of no part are left out.
        every: measure one update in so many; None measures none.
        interval: of the updates in which all kinds step, of which one is taken.
    """

    def __init__(
        self, parts: Mapping[nn.Parameter, str] | None = None, every: int | None = None, interval: int = 1
    ) -> None:
        self.parts = dict(parts or {})
        self.every = every
        self.interval = interval
        self._measured: dict[str, Tensor] = {}

    def due(self, number: int) -> bool:
        """Whether update `number` (from 0) is measured: in every so many the first in which all kinds step."""
        return self.every is not None and number % self.every < self.interval and number % self.interval == 0

    @contextlib.contextmanager
    def watching(self, number: int, group: OptimizerGroup) -> Iterator[None]:
        """Measures what the step of one optimiser does, if update `number` is measured.

        Args:
            number: of the update, from 0.
            group: that steps inside, with gradients of the whole batch.
        """
        if not self.due(number):
            yield
            return
        parameters = group.parameters
        before = [parameter.detach().clone() for parameter in parameters]
        yield
        decays = {p: own.get("weight_decay", 0.0) for own in group.optimizer.param_groups for p in own["params"]}
        places: dict[str, list[int]] = {}
        for i, parameter in enumerate(parameters):
            if parameter in self.parts:
                places.setdefault(self.parts[parameter], []).append(i)
        for part, own in places.items():
            gradient = [torch.zeros_like(before[i]) if (g := group.gradients[i]) is None else g for i in own]
            change = [parameters[i].detach() - before[i] for i in own]
            values = {
                "gradient": _norm(gradient),
                "decay": _norm([before[i] * decays[parameters[i]] for i in own]),
                "update": _norm(change),
                "descent": -_cosine(change, gradient),
                "shrinkage": -_cosine(change, [before[i] for i in own]),
            }
            self._measured |= {f"{name}_{group.kind}/{part}": value for name, value in values.items()}

    def pop(self) -> dict[str, Tensor]:
        """Returns what was measured since the last call, scalars on the device, and forgets it."""
        measured, self._measured = self._measured, {}
        return measured


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm


def _cosine(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Of the angle between two lists of tensors, each taken as one vector; 0 where one of them is zero."""
    product = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
    norms = _norm(first) * _norm(second)
    return torch.where(norms > 0, product / norms, 0.0)
