"""Weighted nearest neighbours: against a loop written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from feature_gan_kd import UserError
from feature_gan_kd.training import neighbours
from feature_gan_kd.training.neighbours import knn_classify

Array = NDArray[np.float64]


def by_hand(features: Array, labels: NDArray[np.int64], query: Array, k: int, temperature: float) -> int:
    """Equation 5 and section 3.4 of Wu et al. 2018: one query at a time."""
    cosines = [float(one @ query / np.sqrt((one @ one) * (query @ query))) for one in features]
    votes: dict[int, float] = {}
    for k_th in sorted(range(len(cosines)), key=lambda n: -cosines[n])[:k]:
        votes[int(labels[k_th])] = votes.get(int(labels[k_th]), 0.0) + float(np.exp(cosines[k_th] / temperature))
    return max(votes, key=votes.__getitem__)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (60, 0.07), (60, 0.5)])
def test_it_votes_as_the_formula_says(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(k)
    features, queries = rng.normal(size=(60, 7)) + 0.5, rng.normal(size=(40, 7)) + 0.5
    labels = np.arange(60) % 5
    expected = [by_hand(features, labels, query, k, temperature) for query in queries]
    given = [torch.from_numpy(one) for one in (features, labels, queries)]
    assert knn_classify(*given, k=k, temperature=temperature).tolist() == expected
    assert len(set(expected)) > 1
    monkeypatch.setattr(neighbours, "_CHUNK", 60 * 7)  # seven queries at a time, and five at last
    assert knn_classify(*given, k=k, temperature=temperature).tolist() == expected


def test_the_length_of_a_vector_does_not_count() -> None:
    features = torch.tensor([[100.0, 100.0], [0.0, 0.01]])
    assert knn_classify(features, torch.tensor([0, 1]), torch.tensor([[0.001, 0.1]]), k=1).tolist() == [1]


def test_a_near_neighbour_outvotes_several_far_ones() -> None:
    features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.2]])
    assert knn_classify(features, labels, query, k=3, temperature=0.07).tolist() == [0]
    assert knn_classify(features, labels, query, k=3, temperature=100).tolist() == [1]


def test_a_low_temperature_takes_the_nearest() -> None:
    """exp(cosine / temperature) by itself would be infinite for all of them."""
    features = torch.tensor([[1.0, 0.1], [1.0, 0.5], [1.0, 0.6]])
    answers = knn_classify(features, torch.tensor([2, 0, 0]), torch.tensor([[1.0, 0.0]]), k=3, temperature=1e-4)
    assert answers.tolist() == [2]


@pytest.mark.parametrize(
    ("k", "temperature", "line"),
    [
        (4, 0.07, "--k: 4 neighbours of 3 labelled images: give at most 3, or more images"),
        (0, 0.07, "--k: 0 is not allowed"),
        (2, 0.0, "--temperature: 0 is not allowed, expected a number above 0"),
        (2, float("nan"), "--temperature: nan is not allowed"),
    ],
)
def test_what_cannot_be_done(k: int, temperature: float, line: str) -> None:
    with pytest.raises(UserError, match=line):
        knn_classify(torch.eye(3), torch.arange(3), torch.eye(3), k=k, temperature=temperature)
