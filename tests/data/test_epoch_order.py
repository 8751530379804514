"""The order of an epoch: once each, every class equally often, a share with labels; and weights of the classes."""

from __future__ import annotations

import torch

from feature_gan_kd.data.batches import rank_slice
from feature_gan_kd.data.class_weights import class_weights
from feature_gan_kd.data.epoch_order import BalancedOrder, OnceOrder, SharedOrder
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


PARTLY = torch.tensor([0, -1, 1, -1, -1, 1, -1, -1, -1, -1, 0, -1, -1])  # 4 with a label, 9 without


def test_a_shared_order_shows_every_image_and_every_batch_has_its_share() -> None:
    order = SharedOrder(PARTLY, 0.5)
    assert (order.labeled_per_batch(4), order.batches(4), order.length(4)) == (2, 5, 20)
    for epoch in range(3):
        keys = order.draw(0, epoch, 4)
        assert len(keys) == len(keys.unique()) == 20
        assert ((PARTLY[keys % 13] >= 0).view(5, 4).sum(1) == 2).all()
        times = torch.bincount(keys % 13, minlength=13)
        assert sorted(times[PARTLY >= 0].tolist()) == [2, 2, 3, 3]
        assert sorted(times[PARTLY < 0].tolist()) == [1] * 8 + [2]
        for image in range(13):
            assert sorted((keys[keys % 13 == image] // 13).tolist()) == list(range(int(times[image])))
    assert torch.equal(order.draw(1, 2, 4), order.draw(1, 2, 4))
    assert not torch.equal(order.draw(1, 2, 4), order.draw(2, 2, 4))
    assert not torch.equal(order.draw(1, 2, 4), order.draw(1, 3, 4))


def test_the_labelled_images_of_a_batch_lie_at_equal_distances() -> None:
    for fraction, size in ((0.25, 16), (0.5, 6), (0.8, 10), (1 / 3, 9)):
        order = SharedOrder(PARTLY, fraction)
        labelled = (PARTLY[order.draw(0, 0, size) % 13] >= 0).view(-1, size)
        for share in (labelled[:, rank_slice(size, rank, world)] for world in (2, 3) for rank in range(world)):
            assert (share.sum(1) - fraction * share.shape[1]).abs().max() < 1


def test_a_batch_that_is_larger_than_the_data() -> None:
    order = SharedOrder(PARTLY, 0.25)
    keys = order.draw(0, 0, 100)
    assert (order.length(100), len(keys.unique())) == (100, 100)
    assert (PARTLY[keys % 13] >= 0).sum() == 25


def test_images_without_a_label_do_not_weigh() -> None:
    labelled = PARTLY[PARTLY >= 0]
    assert torch.equal(class_weights(PARTLY, 3), class_weights(labelled, 3))
