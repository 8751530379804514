"""The linear probe: against the condition of the minimum, and against another solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from feature_gan_kd import UserError
from feature_gan_kd.analysis.linear_probe import PENALTIES, choose_penalty, fit_linear_probe, linear_classify


def clouds(count: int, classes: int, size: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around the centre of their class, of very different scales; the last feature never changes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    features = centres[labels] + spread * torch.randn(count, size, generator=generator, dtype=torch.float64)
    features = features * torch.logspace(-3, 3, size, dtype=torch.float64) + 7
    features[:, -1] = 0.1
    return features, labels


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_gradient_is_zero_at_the_answer(penalty: float) -> None:
    """Of the loss written out: softmax less the labels, times the standardised features, plus the penalty's share."""
    features, labels = clouds(80, 4, 6, spread=1.0)
    probe = fit_linear_probe(features, labels, penalty)
    x = features.numpy()
    std = x.std(0)
    std[-1] = 1
    x = (x - x.mean(0)) / std
    weight, bias = probe.weight.numpy(), probe.bias.numpy()
    scores = x @ weight.T + bias
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    error = (shares - np.eye(4)[labels.numpy()]) / len(x)
    assert np.abs(error.T @ x + penalty * weight).max() < 2e-6
    assert np.abs(error.sum(0)).max() < 2e-6
    assert probe.is_solved
    assert np.allclose(probe.logits(features).numpy(), scores)
    assert np.abs(weight[:, -1]).max() < 1e-6  # the feature that never changes
    assert np.abs(weight[:, :-1]).max() > 0.01


def test_another_solver_finds_the_same_answer() -> None:
    features, labels = clouds(60, 3, 5, spread=1.5)
    features = features[:, :-1]
    x, y, penalty = ((features - features.mean(0)) / features.std(0, correction=0)).numpy(), labels.numpy(), 0.01

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:12].reshape(3, 4), flat[12:]
        scores = x @ weight.T + bias
        log_sums = np.log(np.exp(scores).sum(1))
        return float((log_sums - scores[np.arange(60), y]).mean() + penalty / 2 * (weight**2).sum())

    answer = minimize(loss, np.zeros(15), method="BFGS", options={"gtol": 1e-7})
    probe = fit_linear_probe(features, labels, penalty)
    assert np.allclose(probe.weight.numpy().ravel(), answer.x[:12], atol=1e-4)
    biases = probe.bias.numpy() - probe.bias.numpy().mean(), answer.x[12:] - answer.x[12:].mean()
    assert np.allclose(*biases, atol=1e-4)


def test_the_answer_does_not_depend_on_the_start() -> None:
    features, labels = clouds(60, 3, 5, spread=1.5)
    near = fit_linear_probe(features, labels, 1e-3, fit_linear_probe(features, labels, 1.0))
    assert torch.allclose(near.weight, fit_linear_probe(features, labels, 1e-3).weight, atol=1e-3)


def test_noise_gets_more_regularisation_than_what_separates() -> None:
    noise = torch.randn(100, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(100) % 2
    noise[:, 0] += 2.0 * labels
    clear, of = clouds(100, 2, 6, spread=0.01)
    # All penalties classify these; the smaller the penalty, the lower the cross-entropy.
    assert choose_penalty(clear, of) == PENALTIES[-1]
    assert choose_penalty(noise, labels) >= 1e-2
    assert choose_penalty(noise, labels) == choose_penalty(noise, labels)


def test_it_classifies_by_the_labels_that_there_are() -> None:
    """Classes without images, here 0, 2 and 3, are never answered."""
    features, labels = clouds(60, 3, 8, spread=0.1)
    queries, right = clouds(30, 3, 8, spread=0.1, seed=5)
    named = torch.tensor([1, 4, 6])
    answers, probe = linear_classify(features.float(), named[labels], queries.float())
    assert torch.equal(answers, named[right])
    assert probe.weight.shape == (3, 8)
    assert probe.weight.dtype is torch.float64


def test_a_single_class() -> None:
    line = "linear probe: all 6 training images are of one class, at least 2 classes are needed: give more"
    with pytest.raises(UserError, match=line):
        linear_classify(torch.randn(6, 4), torch.full((6,), 3), torch.randn(6, 4))


def test_one_image_of_each_class() -> None:
    """None can be held out."""
    answers, probe = linear_classify(torch.eye(5), torch.arange(5), torch.eye(5))
    assert answers.tolist() == [0, 1, 2, 3, 4]
    assert probe.penalty == 0.2
    assert probe.is_solved
