"""The terms that compare a learner's logits with those of its sources, as the settings ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from feature_gan_kd.config.method_settings import LogitLoss, LossSettings
from feature_gan_kd.method import losses
from feature_gan_kd.method.loss_sums import Losses

LogitLossFunction = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
"""Takes the logits of learner and target (batch, classes), labels (batch,), temperature, and which images count."""

LOGIT_LOSSES: Mapping[LogitLoss, LogitLossFunction] = {
    "kl": lambda learner, target, _, temperature, counted: losses.distillation(learner, target, temperature, counted),
    "standardised": lambda learner, target, _, temperature, counted: losses.standardised(
        learner, target, temperature, counted
    ),
    "decoupled": losses.decoupled,
}


class LogitTerms:
    """The logit terms of a learner: one for each source, or one with the mean of its own and all sources' logits.

    Args:
        weights: which loss, its temperature, and which targets.
        sources: for each learner the models that teach it logits, by position.
    """

    def __init__(self, weights: LossSettings, sources: Mapping[int, Sequence[int]]) -> None:
        self._weights = weights
        self._compare = LOGIT_LOSSES[weights.logit_loss]
        self._is_ensemble = weights.targets == "ensemble"
        self._sources = sources

    def __call__(
        self, loss: Losses, k: int, logits: Sequence[Tensor], taught: Sequence[Tensor], labels: Tensor
    ) -> None:
        """Adds the terms of a learner to the logit loss.

        Args:
            loss: of the microbatch.
            k: position of the learner.
            logits: of every model, (batch, classes).
            taught: what each model teaches, of the same shape.
            labels: (batch,) class indices, -1 for an image without a label; (batch, classes) where no loss asks.
        """
        targets = [taught[s] for s in self._sources[k]]
        if targets and self._is_ensemble:
            targets = [torch.stack([logits[k].detach(), *targets]).mean(0)]
        threshold, counted = self._weights.confidence_threshold, None
        for target in targets:
            share = 1 / len(targets)
            if threshold:
                counted = losses.confident(target, threshold)
                loss.log(f"confident/{k}", 100 * counted.to(target.dtype).mean(), share)
            term = self._compare(logits[k], target, labels, self._weights.temperature, counted)
            loss.add("logit", f"kl/{k}", term, self._weights.kl_weight, share)
