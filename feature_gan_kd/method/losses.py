"""The loss terms: pure functions, tensors in, scalar out. Every one is a mean over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_gan_kd.config.methods import AdversarialLoss


def distillation(learner_logits: Tensor, source_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(source / T) || softmax(learner / T)) (paper, section 3, after Hinton 2015).

    Args:
        learner_logits: (batch, classes).
        source_logits: (batch, classes); no gradient reaches it.
        temperature: T > 0.

    Returns:
        Scalar, in nats, averaged over the batch.
    """
    target = F.log_softmax(source_logits.detach() / temperature, dim=1)
    answer = F.log_softmax(learner_logits / temperature, dim=1)
    return F.kl_div(answer, target, reduction="batchmean", log_target=True) * temperature**2


def discriminator(real: Tensor, fake: Tensor, kind: AdversarialLoss = "paper") -> Tensor:
    """What a discriminator lowers: answers to the source's maps go up, those to the learner's down.

    `paper` (section 3) is [1 - D(source's map)]^2 + [D(learner's map)]^2 of answers in (0, 1), `least-squares` the
    same of unbounded ones (Mao et al. 2017), `hinge` max(0, 1 - real) + max(0, 1 + fake) (Lim and Ye 2017),
    `relativistic` log(1 + exp(fake - real)) of the two maps of one image (Jolicoeur-Martineau 2018).

    Args:
        real: (batch,) or (batch, patches) answers to the source's maps; in (0, 1) for `paper`.
        fake: the same, to the learner's maps.
        kind: of the loss.

    Returns:
        Scalar, averaged over the batch.
    """
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "relativistic":
        return F.softplus(fake - real).mean()
    return (1 - real).square().mean() + fake.square().mean()


def adversarial(real: Tensor, fake: Tensor, kind: AdversarialLoss = "paper") -> Tensor:
    """What a learner lowers to fool its own discriminator.

    `paper` (section 3) and `least-squares` are [1 - D(learner's map)]^2, `hinge` is -D(learner's map),
    `relativistic` log(1 + exp(real - fake)).

    Args:
        real: (batch,) or (batch, patches) answers to the source's maps; in (0, 1) for `paper`.
        fake: the same, to the learner's maps.
        kind: of the loss.

    Returns:
        Scalar, averaged over the batch.
    """
    if kind == "hinge":
        return -fake.mean()
    if kind == "relativistic":
        return F.softplus(real - fake).mean()
    return (1 - fake).square().mean()


def right(real: Tensor, fake: Tensor, kind: AdversarialLoss = "paper") -> Tensor:
    """Percentage of a discriminator's answers that tell source and learner apart.

    Above the middle to the source's maps, below it to the learner's: 0.5, and 0 for `hinge`. For `relativistic` an
    answer to the source's map above that to the learner's of the same image.

    Args:
        real: (batch,) or (batch, patches) answers to the source's maps; in (0, 1) for `paper`.
        fake: the same, to the learner's maps.
        kind: of the loss.

    Returns:
        Scalar in [0, 100].
    """
    if kind == "relativistic":
        return 100 * (real > fake).to(torch.float32).mean()
    middle = 0.0 if kind == "hinge" else 0.5
    return 100 * torch.cat([real > middle, fake < middle]).to(torch.float32).mean()


def l1(learner_map: Tensor, source_map: Tensor) -> Tensor:
    """Mean absolute difference of two maps (batch, channels, height, width); the source's is detached.

    Direct alignment: what the paper argues against (section 4).
    """
    return F.l1_loss(learner_map, source_map.detach())


def l2(learner_map: Tensor, source_map: Tensor) -> Tensor:
    """Mean squared difference of two maps (batch, channels, height, width); the source's is detached (ours)."""
    return F.mse_loss(learner_map, source_map.detach())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices, or (batch, classes) probabilities.

    Returns:
        Scalar, in nats, averaged over the batch.
    """
    return F.cross_entropy(logits, labels)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of images whose largest logit is the label's (soft labels: their largest class), as a scalar."""
    classes = labels if labels.ndim == 1 else labels.argmax(1)
    return 100 * (logits.argmax(1) == classes).to(torch.float32).mean()
