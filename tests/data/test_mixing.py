"""Mixup and CutMix: whose partner is whose, and what decides the ratio."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from feature_gan_kd.data import MixupCutmix
from feature_gan_kd.data.batches import rank_slice
from feature_gan_kd.method import losses

CLASSES = 12


def batch(count: int) -> tuple[Tensor, Tensor]:
    """Images that say which they are: all values of image i are i; its label is i, too."""
    indices = torch.arange(count)
    return indices.float()[:, None, None, None].expand(count, 3, 8, 8).clone(), indices % CLASSES


def test_mixup_blends_neighbours_and_their_labels_alike() -> None:
    images, labels = batch(7)
    mixed, soft = MixupCutmix(1.0, 0.0, CLASSES, seed=0)(images, labels, step=3)
    assert torch.equal(images, batch(7)[0])  # the batch itself is left alone
    ratio = soft[0, 0]
    assert 0.02 < ratio < 0.98
    for own, other in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)):
        torch.testing.assert_close(mixed[own], ratio * images[own] + (1 - ratio) * images[other])
        torch.testing.assert_close(soft[own, [own, other]], torch.stack([ratio, 1 - ratio]))
    assert torch.equal(mixed[6], images[6])  # nobody is left for it
    assert soft[6, 6] == 1
    torch.testing.assert_close(soft.sum(1), torch.ones(7))


def test_cutmix_takes_a_rectangle_and_its_share_of_the_label() -> None:
    images, labels = batch(4)
    mixed, soft = MixupCutmix(0.0, 1.0, CLASSES, seed=0)(images, labels, step=1)
    for own, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        foreign = (mixed[own] == images[other]).all(0)
        assert ((mixed[own] == images[own]).all(0) | foreign).all()
        torch.testing.assert_close(soft[own, other], foreign.float().mean())
        rows, columns = foreign.any(1).sum(), foreign.any(0).sum()
        assert 0 < foreign.sum() == rows * columns


def test_with_both_each_step_has_one_or_the_other() -> None:
    images, labels = batch(2)
    mixing = MixupCutmix(1.0, 1.0, CLASSES, seed=0)
    cut = [bool((mixing(images, labels, step)[0] % 1 == 0).all()) for step in range(40)]
    assert 10 < sum(cut) < 30


def test_the_ratio_is_a_function_of_seed_and_step_and_disturbs_nothing_else() -> None:
    images, labels = batch(4)
    soft = [
        MixupCutmix(1.0, 0.0, CLASSES, seed)(images, labels, step)[1] for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert torch.equal(soft[0], soft[1])
    assert not torch.equal(soft[0], soft[2])
    assert not torch.equal(soft[0], soft[3])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    MixupCutmix(1.0, 1.0, CLASSES, seed=0)(images, labels, step=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("world", [2, 3])
def test_even_shares_mix_as_the_whole_batch(world: int) -> None:
    images, labels = batch(12)
    mixing = MixupCutmix(1.0, 1.0, CLASSES, seed=0)
    for step in range(4):
        whole = mixing(images, labels, step)
        parts = [
            mixing(images[part], labels[part], step) for part in (rank_slice(12, rank, world) for rank in range(world))
        ]
        for one, expected in zip(zip(*parts, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(one), expected)


@pytest.mark.parametrize("count", [0, 1])
def test_a_share_without_a_pair(count: int) -> None:
    images, labels = batch(count)
    mixed, soft = MixupCutmix(1.0, 1.0, CLASSES, seed=0)(images, labels, step=1)
    assert torch.equal(mixed, images)
    assert soft.shape == (count, CLASSES)


def test_soft_labels_in_the_metrics() -> None:
    """Cross-entropy is the labels' mixture; accuracy counts the label that outweighs."""
    images, labels = batch(4)
    _, soft = MixupCutmix(1.0, 0.0, CLASSES, seed=0)(images, labels, step=3)
    logits = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
    ratio = soft[0, 0]
    partners = labels.view(2, 2).flip(1).reshape(4)
    expected = ratio * losses.label_loss(logits, labels) + (1 - ratio) * losses.label_loss(logits, partners)
    torch.testing.assert_close(losses.label_loss(logits, soft), expected)
    dominant = labels if ratio > 0.5 else partners
    assert losses.accuracy(10 * torch.nn.functional.one_hot(dominant, CLASSES).float(), soft) == 100


def test_without_labels_images_are_mixed_alike_and_have_no_label() -> None:
    images, labels = batch(6)
    for alphas in ((1.0, 0.0), (0.0, 1.0)):
        mixed, without = MixupCutmix(*alphas, None, seed=0)(images, torch.full_like(labels, -1), step=3)
        assert torch.equal(mixed, MixupCutmix(*alphas, CLASSES, seed=0)(images, labels, step=3)[0])
        assert without.tolist() == [-1] * 6
