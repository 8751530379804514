"""Values and gradients of the loss terms against formulas written out here."""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Callable

import pytest
import torch
from timm.loss import create_classification_loss
from torch import Tensor

from feature_gan_kd.config.method_settings import AdversarialLoss, LogitLoss
from feature_gan_kd.method import losses
from feature_gan_kd.method.logit_terms import LOGIT_LOSSES
from tests.helpers import reference

BATCH, CLASSES = 7, 5


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def softmax(logits: Tensor) -> Tensor:
    return torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)


LABELS = torch.tensor([0, 4, 2, 2, 1, 3, 0])
ONE_HOT = torch.eye(CLASSES, dtype=torch.float64)[LABELS]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation(temperature: float) -> None:
    learner, source = random(BATCH, CLASSES, scale=3), random(BATCH, CLASSES, seed=1, scale=3)
    loss = losses.distillation(learner, source, temperature)
    torch.testing.assert_close(loss, reference.divergence(learner, source, temperature))
    # d/dz of T^2 KL is T (softmax(z / T) - softmax(z_source / T)) / batch.
    expected = temperature * (softmax(learner / temperature) - softmax(source / temperature)) / BATCH
    torch.testing.assert_close(gradient(lambda z: losses.distillation(z, source, temperature), learner), expected)


def test_distillation_by_hand() -> None:
    # Source (1/2, 1/2), learner (3/4, 1/4), T = 1: KL = 1/2 ln(2/3) + 1/2 ln 2. At T = 2 the learner's logits halve.
    learner, source = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    assert float(losses.distillation(learner, source, 1.0)) == pytest.approx(0.5 * math.log(4 / 3))
    p = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    assert float(losses.distillation(learner, source, 2.0)) == pytest.approx(expected)


def test_distillation_has_a_direction() -> None:
    learner, source = random(BATCH, CLASSES, scale=3), random(BATCH, CLASSES, seed=1, scale=3)
    assert not torch.isclose(losses.distillation(learner, source, 1.0), losses.distillation(source, learner, 1.0))


def test_distillation_of_equal_logits_is_zero_with_zero_gradient() -> None:
    logits = random(BATCH, CLASSES)
    shifted = logits + random(BATCH, 1, seed=2)  # softmax does not see a shift
    assert abs(float(losses.distillation(logits, shifted, 3.0))) < 1e-14
    assert gradient(lambda z: losses.distillation(z, shifted, 3.0), logits).abs().max() < 1e-15


def test_distillation_of_extreme_logits_is_finite() -> None:
    learner = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = losses.distillation(learner, torch.tensor([[-1e4, 1e4, 0.0]]), 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4)
    assert learner.grad is not None
    assert learner.grad.isfinite().all()


MISSING = torch.tensor([0, 4, -1, 2, 1, -1, 0])  # -1: without a label


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["kl", "standardised", "decoupled"])
@pytest.mark.parametrize("labels", [LABELS, MISSING])
def test_logit_losses(kind: LogitLoss, temperature: float, labels: Tensor) -> None:
    learner, source = random(BATCH, CLASSES, scale=3), random(BATCH, CLASSES, seed=1, scale=3)

    def found(z: Tensor) -> Tensor:
        return LOGIT_LOSSES[kind](z, source, labels, temperature, None)

    def expected(z: Tensor) -> Tensor:
        return reference.logit_divergence(kind, z, source, labels, temperature)

    torch.testing.assert_close(found(learner), expected(learner))
    torch.testing.assert_close(gradient(found, learner), gradient(expected, learner))


@pytest.mark.parametrize("kind", ["kl", "standardised", "decoupled"])
def test_images_that_do_not_count(kind: LogitLoss) -> None:
    """Their loss is 0, and the mean stays one over all images; a count of all is the same as none."""
    learner, source = random(BATCH, CLASSES, scale=3), random(BATCH, CLASSES, seed=1, scale=3)
    kept = torch.tensor([0, 2, 5])
    counted = torch.zeros(BATCH, dtype=torch.bool).index_fill_(0, kept, True)
    some = LOGIT_LOSSES[kind](learner, source, MISSING, 2.0, counted)
    alone = reference.logit_divergence(kind, learner[kept], source[kept], MISSING[kept], 2.0)
    torch.testing.assert_close(some, alone * 3 / BATCH)
    found = gradient(lambda z: LOGIT_LOSSES[kind](z, source, MISSING, 2.0, counted), learner)
    assert (found[kept] != 0).any(1).all()
    assert (found[~counted] == 0).all()
    everything = LOGIT_LOSSES[kind](learner, source, MISSING, 2.0, torch.ones(BATCH, dtype=torch.bool))
    assert torch.equal(everything, LOGIT_LOSSES[kind](learner, source, MISSING, 2.0, None))


def test_confident_is_asked_of_probabilities_at_temperature_1() -> None:
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64).log() + 5
    assert losses.confident(logits, 0.75 - 1e-9).tolist() == [True, False, True]
    assert losses.confident(logits, 0.76).tolist() == [False, False, True]
    assert losses.confident(torch.zeros(1, 2), 0.5).tolist() == [True]  # at least


def test_every_logit_loss_is_tested() -> None:
    assert list(LOGIT_LOSSES) == list(typing.get_args(LogitLoss)) == ["kl", "standardised", "decoupled"]


def test_standardised_logits_need_neither_size_nor_offset() -> None:
    learner = random(BATCH, CLASSES, scale=3)
    assert float(losses.standardised(learner, 50 * learner + 7, 2.0)) == pytest.approx(0, abs=1e-9)
    assert float(losses.distillation(learner, 50 * learner + 7, 2.0)) > 1


def test_standardised_equal_logits_give_finite_gradients() -> None:
    """Those of a classifier that begins at 0."""
    zeros, source = torch.zeros(BATCH, CLASSES), random(BATCH, CLASSES).float()
    assert float(losses.standardised(zeros, zeros, 3.0)) == 0
    assert gradient(lambda z: losses.standardised(z, source, 3.0), zeros).isfinite().all()


def test_decoupled_by_hand() -> None:
    # Source (1/2, 1/4, 1/4), learner (1/4, 1/4, 1/2), label 0, T = 1.
    source, learner = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]))
    own = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    among = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
    assert float(losses.decoupled(learner, source, torch.tensor([0]), 1.0)) == pytest.approx(own + 8 * among)
    assert float(losses.distillation(learner, source, 1.0)) == pytest.approx(own + 0.5 * among)


def test_decoupled_of_extreme_logits_is_finite() -> None:
    learner = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = losses.decoupled(learner, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([0]), 1.0)
    (to_learner,) = torch.autograd.grad(loss, learner)
    assert loss.isfinite()
    assert to_learner.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: losses.distillation(a, b, 3.0),
        lambda a, b: losses.standardised(a, b, 3.0),
        lambda a, b: losses.decoupled(a, b, LABELS, 3.0),
        losses.l1,
        losses.l2,
    ],
)
def test_no_gradient_reaches_the_source(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    learner, source = (random(BATCH, CLASSES, seed=seed).requires_grad_() for seed in (0, 1))
    loss(learner, source).backward()
    assert learner.grad is not None
    assert source.grad is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("paper", 5 / 8), ("least-squares", 5 / 8), ("hinge", 5 / 8), ("relativistic", 3 / 4), ("reversal", 5 / 8)],
)
def test_right_answers(kind: AdversarialLoss, expected: float) -> None:
    """An answer in the very middle is not right."""
    real, fake = torch.tensor([0.9, 0.5, 0.6, 0.7]), torch.tensor([0.1, 0.6, 0.4, 0.5])
    if kind in ("hinge", "reversal"):
        real, fake = real - 0.5, fake - 0.5
    assert float(losses.discriminator_accuracy(real, fake, kind)) == 100 * expected
    assert float(losses.discriminator_accuracy(real.view(2, 2), fake.view(2, 2), kind)) == 100 * expected


def test_discriminator() -> None:
    real, fake = torch.sigmoid(random(BATCH)), torch.sigmoid(random(BATCH, seed=1))
    expected = sum((1 - r) ** 2 + f**2 for r, f in zip(real.tolist(), fake.tolist(), strict=True)) / BATCH
    assert float(losses.discriminator(real, fake)) == pytest.approx(expected)
    torch.testing.assert_close(gradient(lambda x: losses.discriminator(x, fake), real), -2 * (1 - real) / BATCH)
    torch.testing.assert_close(gradient(lambda x: losses.discriminator(real, x), fake), 2 * fake / BATCH)


def test_discriminator_is_zero_where_it_is_right_and_two_where_it_is_wrong() -> None:
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)
    assert float(losses.discriminator(ones, zeros)) == 0
    assert float(losses.discriminator(zeros, ones)) == 2


def test_adversarial() -> None:
    real, fake = torch.sigmoid(random(BATCH, seed=1)), torch.sigmoid(random(BATCH))
    assert float(losses.adversarial(real, fake)) == pytest.approx(sum((1 - f) ** 2 for f in fake.tolist()) / BATCH)
    torch.testing.assert_close(gradient(lambda x: losses.adversarial(real, x), fake), -2 * (1 - fake) / BATCH)
    assert float(losses.adversarial(real, torch.ones(BATCH))) == 0


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([0.25, 3.0]), torch.tensor([-2.0, 0.5])
    assert float(losses.discriminator(real, fake, "hinge")) == (0.75 + 1.5) / 2
    assert float(losses.adversarial(real, fake, "hinge")) == 0.75


def test_relativistic_by_hand() -> None:
    real, fake = torch.tensor([math.log(3.0), 0.0]), torch.zeros(2)
    assert float(losses.discriminator(real, fake, "relativistic")) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert float(losses.adversarial(real, fake, "relativistic")) == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_reversal_by_hand() -> None:
    """The learner's gradient for its own answer is the discriminator's, reversed."""
    real, fake = torch.tensor([math.log(3.0), 0.0]), torch.tensor([0.0, math.log(3.0)])
    assert float(losses.discriminator(real, fake, "reversal")) == pytest.approx(
        (math.log(4 / 3) + math.log(2)) / 2 + (math.log(2) + math.log(4)) / 2
    )
    assert float(losses.adversarial(real, fake, "reversal")) == pytest.approx(-(math.log(2) + math.log(4)) / 2)
    learner = gradient(lambda x: losses.adversarial(real, x, "reversal"), fake)
    assert torch.equal(learner, -gradient(lambda x: losses.discriminator(real, x, "reversal"), fake))


@pytest.mark.parametrize("kind", ["least-squares", "hinge", "relativistic", "reversal"])
def test_learners_and_discriminators_pull_apart(kind: losses.AdversarialLoss) -> None:
    real, fake = random(BATCH), random(BATCH, seed=1)
    up = gradient(lambda x: losses.adversarial(real, x, kind), fake)
    down = gradient(lambda x: losses.discriminator(real, x, kind), fake)
    between = fake.abs() < 1  # where no kind is flat or turns
    assert between.any()
    assert (up * down <= 0)[between & (fake > 0)].all()


def test_l1_and_l2_are_means_over_every_element() -> None:
    learner, source = random(BATCH, 3, 2, 4), random(BATCH, 3, 2, 4, seed=1)
    apart = learner - source
    torch.testing.assert_close(losses.l1(learner, source), apart.abs().sum() / apart.numel())
    torch.testing.assert_close(losses.l2(learner, source), (apart**2).sum() / apart.numel())
    torch.testing.assert_close(gradient(lambda x: losses.l1(x, source), learner), apart.sign() / apart.numel())
    torch.testing.assert_close(gradient(lambda x: losses.l2(x, source), learner), 2 * apart / apart.numel())


def test_cross_entropy() -> None:
    logits = random(BATCH, CLASSES, scale=3)
    expected = sum(-math.log(softmax(logits)[i, label]) for i, label in enumerate(LABELS.tolist())) / BATCH
    assert float(losses.label_loss(logits, LABELS)) == pytest.approx(expected)
    torch.testing.assert_close(
        gradient(lambda z: losses.label_loss(z, LABELS), logits), (softmax(logits) - ONE_HOT) / BATCH
    )


def test_cross_entropy_of_probabilities() -> None:
    logits, labels = random(BATCH, CLASSES, scale=3), softmax(random(BATCH, CLASSES, seed=1))
    torch.testing.assert_close(losses.label_loss(logits, labels), -(labels * softmax(logits).log()).sum() / BATCH)
    torch.testing.assert_close(losses.label_loss(logits, ONE_HOT), losses.label_loss(logits, LABELS))


def label_losses(logits: Tensor, smoothing: float, *, binary: bool) -> list[list[float]]:
    """The loss of each image for each class that could be its label, from the definition, number by number."""
    found = []
    for z in logits.tolist():
        largest = max(z)
        total = sum(math.exp(value - largest) for value in z)
        own = []
        for label in range(CLASSES):
            loss = 0.0
            for c, value in enumerate(z):
                target = (1 - smoothing) * (c == label) + smoothing / CLASSES
                if binary:
                    p = 1 / (1 + math.exp(-value))
                    loss -= (target * math.log(p) + (1 - target) * math.log(1 - p)) / CLASSES
                else:
                    loss -= target * (value - largest - math.log(total))
            own.append(loss)
        found.append(own)
    return found


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_smoothed_binary_and_weighted_losses_of_the_labels(
    smoothing: float, binary: bool, weights: Tensor | None
) -> None:
    """Of class indices, and of mixed labels: the mixture of the losses."""
    logits = random(BATCH, CLASSES, scale=3)
    each = label_losses(logits, smoothing, binary=binary)
    own = [1.0] * CLASSES if weights is None else weights.tolist()
    expected = sum(own[label] * each[i][label] for i, label in enumerate(LABELS.tolist())) / BATCH
    loss = functools.partial(losses.label_loss, smoothing=smoothing, binary=binary, weights=weights)
    assert float(loss(logits, LABELS)) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(loss(logits, ONE_HOT), loss(logits, LABELS))
    mixed = 0.7 * ONE_HOT + 0.3 * ONE_HOT.flip(0)
    torch.testing.assert_close(
        loss(logits, mixed), 0.7 * loss(logits, LABELS) + 0.3 * loss(logits, LABELS.flip(0)), rtol=1e-12, atol=0
    )
    parts = [loss(logits[i : i + 1], LABELS[i : i + 1]) for i in range(BATCH)]
    torch.testing.assert_close(loss(logits, LABELS), torch.stack(parts).mean())  # of microbatches and processes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_losses_of_the_labels_are_timms(smoothing: float) -> None:
    logits = random(BATCH, CLASSES, scale=3)
    timms = create_classification_loss("bce", smoothing=smoothing)
    torch.testing.assert_close(
        losses.label_loss(logits, LABELS, smoothing=smoothing, binary=True), timms(logits, LABELS)
    )
    timms = create_classification_loss("ce", smoothing=smoothing)
    torch.testing.assert_close(losses.label_loss(logits, LABELS, smoothing=smoothing), timms(logits, LABELS))
    softened = (1 - smoothing) * ONE_HOT.roll(1, 0) + smoothing / CLASSES  # as timm's Mixup smooths, before the loss
    for kind in ("ce", "bce"):
        timms = create_classification_loss(kind, soft_targets=True)
        own = losses.label_loss(logits, ONE_HOT.roll(1, 0), smoothing=smoothing, binary=kind == "bce")
        torch.testing.assert_close(own, timms(logits, softened))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_losses_of_extreme_logits_are_finite(weights: Tensor | None) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 50.0, -50.0]], dtype=torch.float64, requires_grad=True)
    loss = losses.label_loss(logits, torch.tensor([1]), smoothing=0.1, binary=True, weights=weights)
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: losses.distillation(a, b, 3.0),
        lambda a, b: losses.discriminator(torch.sigmoid(a[:, 0]), torch.sigmoid(b[:, 0])),
        lambda a, b: losses.adversarial(torch.sigmoid(b[:, 0]), torch.sigmoid(a[:, 0])),
        losses.l1,
        losses.l2,
        lambda a, b: losses.label_loss(a, softmax(b)),
    ],
    ids=["distillation", "discriminator", "adversarial", "l1", "l2", "cross_entropy"],
)
def test_every_loss_is_a_mean_over_the_batch(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = random(BATCH, CLASSES), random(BATCH, CLASSES, seed=1)
    each = torch.stack([loss(a[i : i + 1], b[i : i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(loss(a, b), each.mean())


def test_accuracy() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5]])
    assert float(losses.accuracy(logits, torch.tensor([0, 2, 2, 0]))) == 75
    soft = torch.tensor([[0.4, 0.3, 0.3], [0.6, 0.1, 0.3], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]])
    assert float(losses.accuracy(logits, soft)) == 50


def test_direct_terms_by_hand() -> None:
    """Maps of one position: two channels, two images."""
    fake = torch.tensor([[[[1.0]], [[0.0]]], [[[3.0]], [[4.0]]]], dtype=torch.float64)
    real = torch.tensor([[[[0.0]], [[2.0]]], [[[3.0]], [[4.0]]]], dtype=torch.float64)
    assert losses.aligned(fake, real).item() == pytest.approx((1 - 0 + 1 - 1) / 2)
    assert losses.aligned(5 * fake, real).item() == pytest.approx(0.5)
    # Channel 0: means 2 and 1.5, deviations 1 and 1.5; channel 1: 2 and 3, 2 and 1.
    moments = [(one.mean((0, 2, 3)), one.var((0, 2, 3), correction=0)) for one in (fake, real)]
    assert losses.statistics(*moments).item() == pytest.approx((0.25 + 0.25 + 1 + 1) / 2)


def test_relation_ignores_widths_and_scales_and_the_image_itself() -> None:
    learner, source = random(4, 3, seed=1), random(4, 7, seed=2)
    value = losses.relation((learner, learner), (source, source), 0)
    assert value.item() > 0
    torch.testing.assert_close(losses.relation((9 * learner, learner), (source, 0.1 * source), 0), value)
    torch.testing.assert_close(losses.relation((source, source), (source, source), 0), torch.zeros_like(value))
    # A process with the last two images gives their share of the mean.
    parts = [losses.relation((learner[r], learner), (source[r], source), r.start) for r in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(parts) / 2, value)


def test_relation_of_a_single_image_is_zero_with_zero_gradient() -> None:
    learner = random(1, 3).requires_grad_()
    value = losses.relation((learner, learner.detach()), (random(1, 3), random(1, 3)), 0)
    value.backward()
    assert value.item() == 0
    assert learner.grad is not None
    assert not learner.grad.any()
