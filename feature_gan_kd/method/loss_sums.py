"""The sums of loss terms that one microbatch is optimised by."""

from __future__ import annotations

from torch import Tensor

Metrics = dict[str, Tensor]


class Losses:
    """The sums that one microbatch is optimised by, and the terms that they are made of.

    Attributes:
        logit: L_logit of all learners (paper, section 3).
        feature: L_G of all learners.
        discriminator: L_D of all discriminators; they share no parameters, so one sum serves all of them.
        metrics: every term by name, before its weight; detached scalars.
    """

    def __init__(self, zero: Tensor) -> None:
        self.logit = self.feature = self.discriminator = zero
        self.metrics: Metrics = {}

    def add(self, loss: str, name: str, term: Tensor, weight: float = 1.0, share: float = 1.0) -> None:
        """Adds a term, a scalar, to the loss of that name; `share` is its part in a mean over several connections."""
        self.log(name, term, share)
        setattr(self, loss, getattr(self, loss) + _times(weight * share, term))

    def log(self, name: str, value: Tensor, share: float = 1.0) -> None:
        """Records a scalar that is not optimised."""
        value = _times(share, value.detach())
        self.metrics[name] = self.metrics[name] + value if name in self.metrics else value


def _times(factor: float, x: Tensor) -> Tensor:
    """The product, without a kernel where the factor is 1, as it is for a pair in the paper's method."""
    return x if factor == 1 else factor * x
