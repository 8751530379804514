"""Every class equally often, and weights by the frequency of the classes."""

from __future__ import annotations

import torch

from feature_gan_kd.data.class_weights import class_weights
from feature_gan_kd.data.epoch_order import BalancedOrder, OnceOrder
from feature_gan_kd.data.rng import permutation

LABELS = torch.tensor([0] * 50 + [1] * 3 + [3] * 8)  # no image of class 2


def test_every_class_comes_equally_often_and_each_image_before_any_comes_again() -> None:
    extra = set()
    for epoch in range(6):
        keys = BalancedOrder(LABELS).draw(0, epoch, 8)
        assert len(keys) == len(keys.unique()) == 61
        images = keys % 61
        counts = torch.bincount(LABELS[images])
        assert sorted(counts.tolist()) == [0, 20, 20, 21]
        extra.add(int(counts.argmax()))
        times = torch.bincount(images, minlength=61)
        for label in (0, 1, 3):
            own = times[label == LABELS]
            assert own.max() - own.min() <= 1
        for image in range(61):  # the n-th time that an image comes has a key of its own
            assert (keys[images == image] // 61).sort().values.tolist() == list(range(int(times[image])))
    assert len(extra) > 1  # not always the same class comes once more


def test_the_order_is_a_function_of_seed_and_epoch_and_mixes_the_classes() -> None:
    order = BalancedOrder(LABELS)

    def draw(seed: int, epoch: int) -> torch.Tensor:
        return order.draw(seed, epoch, 8)

    assert torch.equal(draw(3, 1), draw(3, 1))
    assert not torch.equal(draw(3, 1), draw(3, 2))
    assert not torch.equal(draw(3, 1), draw(4, 1))
    assert len(LABELS[draw(0, 0)[:15] % 61].unique()) == 3
    seen = {int(key) % 61 for epoch in range(12) for key in draw(0, epoch)}
    assert seen == set(range(61))  # a large class gives others in each epoch


def test_without_balance_each_image_comes_once() -> None:
    assert torch.equal(OnceOrder(61).draw(2, 3, 8), permutation(61, 2, 3))


def test_weights_are_the_inverse_frequency_with_a_mean_of_one() -> None:
    weights = class_weights(LABELS, 5)
    torch.testing.assert_close(weights, torch.tensor([61 / 150, 61 / 9, 1, 61 / 24, 1]))
    assert abs(float(weights[LABELS].mean()) - 1) < 1e-6
    shares = torch.zeros(5).index_add_(0, LABELS, weights[LABELS])
    torch.testing.assert_close(shares[[0, 1, 3]], torch.full((3,), 61 / 3))
