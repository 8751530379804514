"""The settings of the method: its losses, feature maps and discriminators; see `settings` on how they are declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from feature_gan_kd.config.fields import bounded
from feature_gan_kd.config.methods import MethodName

LogitLoss = Literal["kl", "standardised", "decoupled"]
AdversarialLoss = Literal["paper", "least-squares", "hinge", "relativistic", "reversal"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Losses: the method and the weights of its terms. Cross-entropy always has weight 1."""

    method: MethodName = "afd"
    """Preset of the weights below. afd: KL of the logits and adversarial feature maps (the paper); logit: KL only; dml:
    KL only, with temperature 1; vanilla: no distillation; feature: adversarial feature maps only; l1, l2: KL and the L1
    or L2 difference of the feature maps; l1-only, l2-only: that difference only; pooled: KL and the L2 difference of
    the averaged maps; aligned, statistics, relation: KL and the term of that name; zero-gradient: KL, and extractors
    that move by weight decay only (a control for afd)."""
    labels: bool = True
    """Learn from the labels of the training images. Without labels the models learn from each other alone, and models
    built by name have no classifier, unless num_classes is given."""
    kl_weight: float = bounded(1.0, at_least=0)
    """Weight of the logit term: T^2 times the KL divergence between the softened outputs of source and learner."""
    logit_loss: LogitLoss = "kl"
    """Form of the logit term. kl: the paper's; standardised: of logits with mean 0 and deviation 1 over the classes of
    each image; decoupled: the class of the label against all others, plus 8 times the KL among the others."""
    temperature: float = bounded(3.0, above=0)
    """T, which softens the outputs in the logit term."""
    confidence_threshold: float = bounded(0.0, at_least=0, below=1)
    """Let the logit term act only on images where the largest probability of the target, at temperature 1, is at least
    this; 0 takes all. The term stays a mean over all images."""
    adversarial_weight: float = bounded(1.0, at_least=0)
    """Weight of the learner's adversarial term on its feature maps."""
    adversarial_loss: AdversarialLoss = "paper"
    """Objective of discriminators and learners. paper: least squares of outputs in (0, 1); least-squares: of unbounded
    outputs; hinge; relativistic: compares the outputs for the two feature maps of one image; reversal: cross-entropy of
    unbounded outputs, of whose gradient for its own feature map a learner takes the reverse."""
    adversarial_interval: int = bounded(1, at_least=1)
    """Compare feature maps, and step extractors and discriminators, in every N-th update only: faster, but no longer
    the paper's algorithm."""
    l1_weight: float = bounded(0.0, at_least=0)
    """Weight of the mean absolute difference of the feature maps."""
    l2_weight: float = bounded(0.0, at_least=0)
    """Weight of the mean squared difference of the feature maps."""
    smoothing: float = bounded(0.0, at_least=0, below=1)
    """Label smoothing: the label loss gives this share of the probability to all classes alike; 0 is off. With mixup
    and cutmix it acts on the mixed labels, as in timm."""
    bce_loss: bool = False
    """Use the binary cross-entropy of each class, a mean over the classes as in timm, as the label loss."""
    class_weights: bool = False
    """Weight the label loss of each image by the inverse frequency of its class among the training images; the mean
    weight is 1."""
    targets: Literal["live", "ema", "ensemble"] = "live"
    """What the sources teach. live: their outputs with the weights of the last update; ema: with the running mean of
    their weights, see model_ema, with one more forward pass of every source that learns; ensemble: as live, but the
    logits that a learner is compared with are the mean of its own and its sources'."""
    aligned_weight: float = bounded(0.0, at_least=0)
    """Weight of 1 - cosine between the channels of the feature maps at each position."""
    statistics_weight: float = bounded(0.0, at_least=0)
    """Weight of the squared differences of the channels' means and deviations over the batch."""
    relation_weight: float = bounded(0.0, at_least=0)
    """Weight of the KL divergence of the similarities between the images of a batch, each model by its own maps."""
    max_grid: int | None = bounded(None, at_least=1)
    """Average feature maps to at most so many positions a side before they are compared; 1 compares one vector for each
    image (default: the smaller map's grid)."""
    decay_only_update: bool = False
    """Step the extractors' adversarial optimiser even without a feature loss, so that only its weight decay acts."""

    @property
    def feature_terms(self) -> tuple[str, ...]:
        """The terms that compare feature maps."""
        names = ("adversarial", "l1", "l2", "aligned", "statistics", "relation")
        return tuple(name for name in names if getattr(self, f"{name}_weight") > 0)

    @property
    def logit_term_words(self) -> tuple[str, ...]:
        """How the logit term differs from the paper's, in words."""
        loss = [self.logit_loss] * (self.logit_loss != "kl")
        targets = ["ensemble targets"] * (self.targets == "ensemble")
        sure = [f"targets at least {self.confidence_threshold:g} sure"] * (self.confidence_threshold > 0)
        return (*loss, *targets, *sure)

    @property
    def has_feature_loss(self) -> bool:
        """Whether any term compares feature maps."""
        return bool(self.feature_terms)

    @property
    def compares_in_one_space(self) -> bool:
        """Whether any term needs the learner's map in the source's space."""
        return bool(set(self.feature_terms) - {"relation"})

    @property
    def updates_extractors(self) -> bool:
        """Whether the extractors have a second optimiser, besides that of the logit loss."""
        return self.has_feature_loss or self.decay_only_update


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSettings:
    """Feature maps and discriminators."""

    discriminator_width: int = bounded(128, at_least=1)
    """Largest number of channels inside a discriminator."""
    discriminator_norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation inside a discriminator; the paper's is batch."""
    discriminator_classes: bool = False
    """Show a discriminator the averaged feature map multiplied with the class probabilities of the model that made it,
    in place of the feature map. Source and learner must classify the same classes."""
    discriminator_interval: int = bounded(1, at_least=1)
    """Step the discriminators in every N-th of the updates that compare feature maps."""
    vectors_as_maps: bool = False
    """Accept a named layer that outputs a vector, as a feature map of 1x1."""
