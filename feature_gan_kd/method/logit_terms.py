"""The terms that compare a learner's logits with those of its sources, as the settings ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from feature_gan_kd.config.method_settings import LogitLoss, LossSettings
from feature_gan_kd.method import losses

LOGIT_LOSSES: Mapping[LogitLoss, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kl": lambda learner, source, _, temperature: losses.distillation(learner, source, temperature),
    "standardised": lambda learner, source, _, temperature: losses.standardised(learner, source, temperature),
    "decoupled": losses.decoupled,
}
"""Each takes the logits of learner and source (batch, classes), the labels (batch,) and the temperature."""


class LogitTerms:
    """The logit terms of a learner: one for each source, or one with the mean of its own and all sources' logits.

    Args:
        weights: which loss, its temperature, and which targets.
        sources: for each learner the models that teach it logits, by position.
    """

    def __init__(self, weights: LossSettings, sources: Mapping[int, Sequence[int]]) -> None:
        self._temperature = weights.temperature
        self._compare = LOGIT_LOSSES[weights.logit_loss]
        self._is_ensemble = weights.targets == "ensemble"
        self._sources = sources

    def __call__(
        self, k: int, logits: Sequence[Tensor], taught: Sequence[Tensor], labels: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        """Yields the value of every term, a scalar, and its share in their mean.

        Args:
            k: position of the learner.
            logits: of every model, (batch, classes).
            taught: what each model teaches, of the same shape.
            labels: (batch,) class indices, -1 for an image without a label; (batch, classes) where no loss asks.
        """
        targets = [taught[s] for s in self._sources[k]]
        if targets and self._is_ensemble:
            targets = [torch.stack([logits[k].detach(), *targets]).mean(0)]
        for target in targets:
            yield self._compare(logits[k], target, labels, self._temperature), 1 / len(targets)
