"""The loss terms: pure functions of tensors that return a scalar, a mean over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_gan_kd.config.method_settings import AdversarialLoss

NO_LABEL = -1
"""In place of the class of an image without a label."""

RELATION_TEMPERATURE = 0.1
"""Of the softmax over similarities."""

OTHER_CLASSES_WEIGHT = 8.0
"""Of the other classes in `decoupled`, against 1 of the label's own: the authors' for CIFAR-100."""


def confident(logits: Tensor, threshold: float) -> Tensor:
    """Which images have a class of at least that probability (FixMatch: Sohn et al. 2020, who ask it of pseudo-labels).

    Args:
        logits: (batch, classes) of what teaches.
        threshold: of the largest probability, at temperature 1.

    Returns:
        Bool (batch,).
    """
    return logits.detach().softmax(1).amax(1) >= threshold


def distillation(
    learner_logits: Tensor, source_logits: Tensor, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """T^2 KL(softmax(source / T) || softmax(learner / T)) (paper, section 3, after Hinton 2015).

    Args:
        learner_logits: (batch, classes).
        source_logits: (batch, classes); no gradient reaches it.
        temperature: T > 0.
        counted: (batch,) whether an image counts, else its loss is 0; None: all do.

    Returns:
        Scalar, in nats, averaged over the whole batch.
    """
    target = F.log_softmax(source_logits.detach() / temperature, dim=1)
    answer = F.log_softmax(learner_logits / temperature, dim=1)
    return _mean(F.kl_div(answer, target, reduction="none", log_target=True), counted) * temperature**2


def _mean(parts: Tensor, counted: Tensor | None) -> Tensor:
    """The sum of the parts (batch, any), divided by the batch; 0 where an image does not count."""
    if counted is not None:
        parts = torch.where(counted[:, None], parts, 0)
    return parts.sum() / len(parts)


def standardised(
    learner_logits: Tensor, source_logits: Tensor, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """`distillation` of logits that are standardised: those of each image have mean 0 and deviation 1 over the classes.

    A learner then needs the source's order and ratios of the logits, not their size (Sun et al., CVPR 2024, algorithms
    1 and 2). The deviation is sqrt(variance + 1e-5), as in batch normalisation (ours): equal logits give no infinities.

    Args:
        learner_logits: (batch, classes).
        source_logits: (batch, classes); no gradient reaches it.
        temperature: T > 0, which acts on the standardised logits.
        counted: (batch,) whether an image counts, else its loss is 0; None: all do.

    Returns:
        Scalar, in nats, averaged over the whole batch.
    """
    return distillation(_standardise(learner_logits), _standardise(source_logits), temperature, counted)


def _standardise(logits: Tensor) -> Tensor:
    variance, mean = torch.var_mean(logits, dim=1, correction=0, keepdim=True)
    return (logits - mean) * (variance + 1e-5).rsqrt()


def decoupled(
    learner_logits: Tensor, source_logits: Tensor, labels: Tensor, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """T^2 (KL of the label's class against all others + 8 KL among the others), after Zhao et al., CVPR 2022 (DKD).

    The plain KL is the same sum with the source's probability of the other classes in place of 8 (their equation 6),
    so where a source is sure, it says little about them. An image without a label has the plain KL (ours).

    Args:
        learner_logits: (batch, classes).
        source_logits: (batch, classes); no gradient reaches it.
        labels: (batch,) class indices, -1 for an image without a label.
        temperature: T > 0.
        counted: (batch,) whether an image counts, else its loss is 0; None: all do.

    Returns:
        Scalar, in nats, averaged over the whole batch.
    """
    own = labels.clamp_min(0)[:, None]
    others = torch.arange(learner_logits.shape[1] - 1, device=labels.device)[None]
    others = others + (others >= own)  # gather, since a mask would make the device wait

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities of the label's class and of all others together; and those among the others."""
        log_p = F.log_softmax(logits / temperature, dim=1)
        among = log_p.gather(1, others)
        together = among.logsumexp(1, keepdim=True)
        return torch.cat([log_p.gather(1, own), together], dim=1), among - together

    (learner_own, learner_among), (source_own, source_among) = parts(learner_logits), parts(source_logits.detach())
    own_class = F.kl_div(learner_own, source_own, reduction="none", log_target=True)
    among = F.kl_div(learner_among, source_among, reduction="none", log_target=True)
    weight = torch.where((labels == NO_LABEL)[:, None], source_own[:, 1:].exp(), OTHER_CLASSES_WEIGHT)
    return _mean(torch.cat([own_class, weight * among], dim=1), counted) * temperature**2


def discriminator(real: Tensor, fake: Tensor, kind: AdversarialLoss = "paper") -> Tensor:
    """The loss that a discriminator minimises: answers to the source's maps rise, those to the learner's fall.

    - `paper` (section 3): [1 - D(source's map)]^2 + [D(learner's map)]^2, of answers in (0, 1).
    - `least-squares`: the same, of unbounded answers (Mao et al. 2017).
    - `hinge`: max(0, 1 - D(source's map)) + max(0, 1 + D(learner's map)) (Lim and Ye 2017).
    - `relativistic`: log(1 + exp(D(learner's map) - D(source's map))), the two maps of one image
      (Jolicoeur-Martineau 2018).
    - `reversal`: log(1 + exp(-D(source's map))) + log(1 + exp(D(learner's map))), the cross-entropy of which map it is
      (Ganin et al. 2016, DANN).

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
    if kind == "reversal":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return (1 - real).square().mean() + fake.square().mean()


def adversarial(real: Tensor, fake: Tensor, kind: AdversarialLoss = "paper") -> Tensor:
    """The loss that a learner minimises to fool its discriminator.

    - `paper` (section 3) and `least-squares`: [1 - D(learner's map)]^2.
    - `hinge`: -D(learner's map).
    - `relativistic`: log(1 + exp(D(source's map) - D(learner's map))).
    - `reversal`: -log(1 + exp(D(learner's map))), whose gradient is the discriminator's own, reversed.

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
    if kind == "reversal":
        return -F.softplus(fake).mean()
    return (1 - fake).square().mean()


def discriminator_accuracy(real: Tensor, fake: Tensor, kind: AdversarialLoss = "paper") -> Tensor:
    """Percentage of a discriminator's answers that are right (ours).

    An answer to a source's map is right above 0.5 (above 0 for `hinge` and `reversal`), one to a learner's map below
    it. For `relativistic` the answer to the source's map must be above that to the learner's map of the same image.

    Args:
        real: (batch,) or (batch, patches) answers to the source's maps; in (0, 1) for `paper`.
        fake: the same, to the learner's maps.
        kind: of the loss.

    Returns:
        Scalar in [0, 100].
    """
    if kind == "relativistic":
        return 100 * (real > fake).to(torch.float32).mean()
    middle = 0.0 if kind in ("hinge", "reversal") else 0.5
    return 100 * torch.cat([real > middle, fake < middle]).to(torch.float32).mean()


def l1(learner_map: Tensor, source_map: Tensor) -> Tensor:
    """Mean absolute difference of two maps (batch, channels, height, width); the source's is detached.

    Direct alignment: what the paper argues against (section 4).
    """
    return F.l1_loss(at_least_float32(learner_map), at_least_float32(source_map.detach()))


def l2(learner_map: Tensor, source_map: Tensor) -> Tensor:
    """Mean squared difference of two maps (batch, channels, height, width); the source's is detached (ours)."""
    return F.mse_loss(at_least_float32(learner_map), at_least_float32(source_map.detach()))


def aligned(learner_map: Tensor, source_map: Tensor) -> Tensor:
    """Mean over images and positions of 1 - cosine between the channels of two maps; the source's is detached (ours).

    Unlike `l1` and `l2` it does not depend on the scale of the maps. Both are standardised before.

    Args:
        learner_map: (batch, channels, height, width), projected into the source's space.
        source_map: the same of the source.

    Returns:
        Scalar in [0, 2].
    """
    fake, real = at_least_float32(learner_map), at_least_float32(source_map.detach())
    return 1 - F.cosine_similarity(fake, real, dim=1).mean()


def statistics(fake: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor]) -> Tensor:
    """Squared difference of the channels' means, plus that of their deviations (after Li et al. 2017).

    It compares the distributions of two sets of maps, as a discriminator does, but only their first two moments.

    Args:
        fake: mean and variance of the learner's channels over a batch and all positions, (channels,) each.
        real: the same of the source; detached.

    Returns:
        Scalar, a mean over the channels.
    """
    epsilon = 1e-8  # a deviation of 0 has no gradient
    means = (fake[0] - real[0].detach()).square().mean()
    deviations = ((fake[1] + epsilon).sqrt() - (real[1].detach() + epsilon).sqrt()).square().mean()
    return means + deviations


def relation(learner: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor], first: int) -> Tensor:
    """KL divergence between source and learner of how similar an image is to the others of the batch.

    Each model's similarities are those of its own vectors, so the two need no common width (after Abbasi Koohpayegani
    et al. 2020, CompRess). The softmax has a temperature of 0.1 (ours). The gradient reaches each image as the one
    that is compared, not as one of the others.

    Args:
        learner: vectors (share, width) of this process's images, and those of all images (batch, width), detached.
        source: the same of the source; detached.
        first: position of this process's first image among all.

    Returns:
        Scalar, in nats, a mean over this process's images; 0 where there is no other image.
    """
    if len(learner[1]) < 2:
        return learner[0].sum() * 0
    rows = slice(0, max(len(learner[1]) - first, 1))  # a dummy image beyond them has no weight
    own, taught = (_log_similarities(one[rows], all_rows, first) for one, all_rows in (learner, source))
    return F.kl_div(own, taught.detach(), reduction="batchmean", log_target=True)


def _log_similarities(rows: Tensor, everyone: Tensor, first: int) -> Tensor:
    """Log of the softmax of the cosines to all other images: (share, batch - 1)."""
    cosines = F.normalize(at_least_float32(rows), dim=1) @ F.normalize(at_least_float32(everyone), dim=1).T
    itself = (torch.arange(len(rows), device=rows.device) + first).clamp(max=len(everyone) - 1)
    others = torch.arange(len(everyone), device=rows.device)[None] != itself[:, None]
    return (cosines[others].view(len(rows), -1) / RELATION_TEMPERATURE).log_softmax(1)


def label_loss(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, binary: bool = False, weights: Tensor | None = None
) -> Tensor:
    """The loss of the labels: cross-entropy, smoothed or weighted, or the binary cross-entropy of each class.

    With smoothing e, class k becomes the target t = (1 - e) onehot(k) + e / classes (Szegedy 2016). Its loss is
    l(k) = -sum_c t_c log softmax(z)_c, or with `binary` the mean over the classes of
    -t_c log sigmoid(z_c) - (1 - t_c) log(1 - sigmoid(z_c)), as timm's losses are (Wightman 2021). An image with the
    probabilities p of the classes has the loss sum_k p_k weights_k l(k), which is linear: mixed labels give the mixture
    of the two losses. The mean is over images, not over weights, so that parts of a batch add up to the whole.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices, -1 for an image without a label, whose loss is 0; or (batch, classes)
            probabilities.
        smoothing: e, at least 0 and below 1.
        binary: take the classes one by one.
        weights: (classes,), of the classes; None for 1.

    Returns:
        Scalar, in nats, averaged over the batch.
    """
    if not binary and weights is None:
        if labels.ndim == 2:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        total = F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=NO_LABEL, reduction="sum")
        return total / len(labels)
    classes = logits.shape[1]
    target = (_one_hot(labels, classes) if labels.ndim == 1 else labels).to(logits.dtype)
    if weights is not None:
        target = target * weights.to(logits.dtype)
    total = target.sum(1, keepdim=True)  # 1, or the weight of the image
    target = (1 - smoothing) * target + smoothing / classes * total
    if binary:
        # An image without a label has the total 0.
        return F.binary_cross_entropy_with_logits(logits, target / total.clamp_min(1e-12), weight=total)
    return -(target * F.log_softmax(logits, dim=1)).sum(1).mean()


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(batch, classes) with a row of zeros for an image without a label."""
    return F.one_hot(labels.clamp_min(0), classes) * (labels != NO_LABEL)[:, None]


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of images whose largest logit is the label's (soft labels: their largest class), as a scalar.

    An image without a label (-1) is not among them.
    """
    classes = labels if labels.ndim == 1 else labels.argmax(1)
    return 100 * (logits.argmax(1) == classes).to(torch.float32).mean()


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor, of any shape, in float32 or wider: losses are not computed in autocast's reduced precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
