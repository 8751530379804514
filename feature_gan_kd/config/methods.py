"""The methods: which loss terms act, and with what weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["afd", "logit", "dml", "vanilla", "feature", "l1", "l1-only", "l2", "l2-only", "zero-gradient"]
AdversarialLoss = Literal["paper", "least-squares", "hinge", "relativistic"]


@dataclass(frozen=True)
class LossWeights:
    """The weights of the loss terms: what a method is. Cross-entropy always has weight 1.

    Attributes:
        temperature: T of the logit term (paper, section 3: T = 3).
        kl_weight: of T^2 KL(source || learner), in the logit loss.
        adversarial_weight: of the learner's adversarial term, in the feature loss.
        adversarial_loss: what discriminators and learners lower; `paper` is least squares of answers in (0, 1).
        l1_weight: of the mean absolute difference of the maps, in the feature loss.
        l2_weight: of the mean squared difference of the maps, in the feature loss.
        decay_only_update: the extractors' Adam steps even where the feature loss is zero, so that only its weight
            decay acts: the control that the paper lacks (ours).
    """

    temperature: float = 3.0
    kl_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_loss: AdversarialLoss = "paper"
    l1_weight: float = 0.0
    l2_weight: float = 0.0
    decay_only_update: bool = False

    @property
    def has_feature_loss(self) -> bool:
        """Whether any term compares feature maps."""
        return self.adversarial_weight > 0 or self.l1_weight > 0 or self.l2_weight > 0

    @property
    def updates_extractors(self) -> bool:
        """Whether the extractors have an optimiser of their own."""
        return self.has_feature_loss or self.decay_only_update


METHODS: dict[MethodName, LossWeights] = {
    "afd": LossWeights(kl_weight=1, adversarial_weight=1),
    "logit": LossWeights(kl_weight=1),
    "dml": LossWeights(kl_weight=1, temperature=1),
    "vanilla": LossWeights(),
    "feature": LossWeights(adversarial_weight=1),
    "l1": LossWeights(kl_weight=1, l1_weight=1),
    "l1-only": LossWeights(l1_weight=1),
    "l2": LossWeights(kl_weight=1, l2_weight=1),
    "l2-only": LossWeights(l2_weight=1),
    "zero-gradient": LossWeights(kl_weight=1, decay_only_update=True),
}
