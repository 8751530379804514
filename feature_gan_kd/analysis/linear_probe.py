"""A linear probe: logistic regression on fixed features, which tells how well they separate classes (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_gan_kd.data import draw_fifth
from feature_gan_kd.utils.errors import UserError

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Weights of the regularisation to choose from, the strongest first."""

TOLERANCE = 1e-6
"""Largest entry of the gradient at which the solver ends."""

_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of standardised features.

    Attributes:
        weight: (classes, features).
        bias: (classes,).
        mean: of each feature, (features,).
        std: standard deviation of each feature, (features,); 1 for features that never change.
        penalty: weight of the regularisation.
        gradient: largest entry of the gradient where the solver ended.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    penalty: float
    gradient: float

    @property
    def is_solved(self) -> bool:
        """Whether the solver reached the minimum."""
        return self.gradient <= 10 * TOLERANCE

    def logits(self, features: Tensor) -> Tensor:
        """Logits (images, classes), float64, of features (images, features)."""
        return F.linear((features.to(self.mean) - self.mean) / self.std, self.weight, self.bias)


def probe_loss(weight: Tensor, bias: Tensor, inputs: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """The mean cross-entropy plus half the penalty times the sum of squared weights; the bias is free.

    Args:
        weight: (classes, features).
        bias: (classes,).
        inputs: standardised features, (images, features).
        labels: int64 (images,).
        penalty: weight of the regularisation; scikit-learn's C is 1 / (penalty * images).

    Returns:
        Scalar.
    """
    return F.cross_entropy(F.linear(inputs, weight, bias), labels) + 0.5 * penalty * weight.square().sum()


def fit_linear_probe(features: Tensor, labels: Tensor, penalty: float, start: LinearProbe | None = None) -> LinearProbe:
    """Fits L2-regularised multinomial logistic regression on standardised features, by L-BFGS in float64.

    The loss is strictly convex in the weights, so the answer does not depend on where the solver begins.

    Args:
        features: (images, features).
        labels: int64 (images,), each class from 0 on at least once: the bias of an absent one would never settle.
        penalty: weight of the regularisation, see `probe_loss`.
        start: an earlier probe, near to which the answer may be.
    """
    classes = int(labels.max()) + 1
    exact = features.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)
    # A constant feature has a deviation of rounding errors, which would blow it up.
    std = torch.where(std > 1e-10 * exact.abs().amax(0).clamp(min=1e-30), std, torch.ones_like(std))
    inputs = (exact - mean) / std
    weight = exact.new_zeros((classes, exact.shape[1])) if start is None else start.weight.clone()
    bias = exact.new_zeros(classes) if start is None else start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        max_eval=2 * _MAX_ITERATIONS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        solver.zero_grad()
        loss = probe_loss(weight, bias, inputs, labels, penalty)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(evaluate)  # type: ignore[no-untyped-call]
    evaluate()
    assert weight.grad is not None
    assert bias.grad is not None
    gradient = float(torch.cat([weight.grad.flatten(), bias.grad]).abs().max())
    return LinearProbe(weight.detach(), bias.detach(), mean, std, penalty, gradient)


def choose_penalty(features: Tensor, labels: Tensor) -> float:
    """Chooses the regularisation on a fixed fifth of the images, the same share of each class, see `draw_fifth`.

    Takes the penalty with the highest accuracy there, of equal ones that with the lowest cross-entropy. Where each
    class has a single image, none can be held out: then it is 1 / images, which is scikit-learn's default, C = 1.

    Args:
        features: (images, features).
        labels: int64 (images,), see `fit_linear_probe`.

    Raises:
        UserError: for a single class.
    """
    if len(torch.unique(labels)) < 2:
        raise UserError(
            f"linear probe: all {len(labels)} training images are of one class, at least 2 classes are needed: give "
            "more labelled images"
        )
    held = draw_fifth(labels.cpu()).to(labels.device)
    if len(held) == 0:
        return 1 / len(labels)
    kept = torch.ones_like(labels, dtype=torch.bool).index_fill(0, held, False)
    best: tuple[float, float, float] | None = None
    probe: LinearProbe | None = None
    for penalty in PENALTIES:
        probe = fit_linear_probe(features[kept], labels[kept], penalty, probe)
        logits = probe.logits(features[held])
        accuracy = float((logits.argmax(1) == labels[held]).double().mean())
        figures = (accuracy, -float(F.cross_entropy(logits, labels[held])), penalty)
        best = figures if best is None else max(best, figures)
    assert best is not None
    return best[2]


def linear_classify(features: Tensor, labels: Tensor, queries: Tensor) -> tuple[Tensor, LinearProbe]:
    """Classifies by a linear probe whose regularisation is chosen on a fifth, and which is then fitted on all images.

    Args:
        features: of labelled images, (images, features).
        labels: their classes, int64 (images,).
        queries: features to classify, (queries, features).

    Returns:
        A class for each query, int64 (queries,), and the probe, whose classes are those of the labels, in order.

    Raises:
        UserError: for a single class.
    """
    present, numbered = torch.unique(labels, return_inverse=True)
    probe = fit_linear_probe(features, numbered, choose_penalty(features, numbered))
    return present[probe.logits(queries).argmax(1)], probe
