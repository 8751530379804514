from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from feature_gan_kd.data.rng import CROP, ORDER, item_seeds, permutation, random_bits, seeded

WORD = 2**64


def reference_mix(value: int) -> int:
    """SplitMix64's finaliser on unsigned integers of any size, as published."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


def reference_hash(seed: int, epoch: int, stream: int, index: int) -> int:
    gamma = 0x9E3779B97F4A7C15
    key = 0
    for part in (seed, epoch, stream):
        key = reference_mix(((key ^ part) + gamma) % WORD)
    return reference_mix((reference_mix((index * gamma + key) % WORD) + gamma) % WORD)


@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 1), (2**31 - 1, 299, 3), (7, 12, 2)])
def test_hash_is_splitmix64_in_unbounded_integers(seed: int, epoch: int, stream: int) -> None:
    indices = torch.tensor([0, 1, 2, 49_999, 2**40])
    expected = [reference_hash(seed, epoch, stream, int(index)) for index in indices]
    assert [value % WORD for value in random_bits(seed, epoch, stream, indices).tolist()] == expected


def test_every_bit_is_set_half_of_the_time() -> None:
    values = random_bits(0, 0, CROP, torch.arange(20_000))
    shares = torch.stack([(values >> bit & 1).double().mean() for bit in range(64)])
    assert (shares - 0.5).abs().max() < 0.02  # over 5 standard deviations


def test_streams_epochs_and_seeds_differ() -> None:
    indices = torch.arange(100)
    drawn = [random_bits(*key, indices) for key in [(0, 0, ORDER), (0, 0, CROP), (0, 1, ORDER), (1, 0, ORDER)]]
    assert len({tuple(values.tolist()) for values in drawn}) == 4


@pytest.mark.parametrize("length", [0, 1, 2, 1000])
def test_permutation_has_each_index_once(length: int) -> None:
    assert sorted(permutation(length, 3, 4).tolist()) == list(range(length))


def test_permutation_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = permutation(50, 0, 0)
    torch.manual_seed(2)
    assert torch.equal(first, permutation(50, 0, 0))
    assert not torch.equal(first, permutation(50, 0, 1))
    assert not torch.equal(first, permutation(50, 1, 0))


def test_item_seeds_do_not_depend_on_the_others_asked_for() -> None:
    together = item_seeds(5, 6, torch.arange(10))
    assert together == [item_seeds(5, 6, torch.tensor([index]))[0] for index in range(10)]
    assert all(0 <= seed < 2**32 for seed in together)


def test_seeded_decides_all_three_generators_and_puts_them_back() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), np.random.rand()

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    undisturbed = draw(), draw()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    before = draw()
    with seeded(11):
        first = draw()
    with pytest.raises(ZeroDivisionError), seeded(11):
        assert 1 / (draw() != first)
    with seeded(12):
        assert draw() != first
    assert (before, draw()) == undisturbed
