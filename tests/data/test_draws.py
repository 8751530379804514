from __future__ import annotations

import pytest
import torch

from feature_gan_kd.data.draws import draw_balanced, draw_fifth


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([5, 10, 20], [1, 2, 4]),
        ([8, 7, 5], [2, 1, 1]),
        ([3], [1]),
        ([4, 4, 4], [1, 1, 1]),
        ([2], [0]),
        ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        ([1, 1, 1, 4, 4], [0, 0, 0, 1, 1]),
    ],
)
def test_a_fifth_of_each_class_where_there_is_one(sizes: list[int], held: list[int]) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    drawn = draw_fifth(labels)
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.bincount(labels[drawn], minlength=len(sizes)).tolist() == held


def test_small_classes_give_a_fifth_of_all_images_together() -> None:
    labels = torch.arange(100) % 50
    counts = torch.bincount(labels[draw_fifth(labels)], minlength=50)
    assert (int(counts.sum()), int(counts.max())) == (20, 1)


@pytest.mark.parametrize(
    ("sizes", "count", "drawn"), [([20, 20], 10, [5, 5]), ([20, 2, 20], 10, [4, 2, 4]), ([3, 1], 4, [3, 1])]
)
def test_each_class_gives_the_same_number_as_far_as_it_has_so_many(
    sizes: list[int], count: int, drawn: list[int]
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    found = draw_balanced(labels, count, seed=3)
    assert torch.equal(found, found.unique())
    assert torch.bincount(labels[found]).tolist() == drawn


def test_the_seed_decides_which_images_and_which_classes() -> None:
    labels = torch.arange(40) % 4
    draws = {tuple(draw_balanced(labels, 6, seed).tolist()) for seed in range(5)}
    assert len(draws) == 5
    assert torch.equal(draw_balanced(labels, 6, 1), draw_balanced(labels, 6, 1))
    extra = {tuple(torch.bincount(labels[list(draw)], minlength=4).tolist()) for draw in draws}
    assert len(extra) > 1
    assert all(set(counts) == {1, 2} for counts in extra)


def test_images_without_a_label_keep_their_share() -> None:
    labels = torch.cat([torch.arange(40) % 4, torch.full((60,), -1)])
    found = draw_balanced(labels, 20, seed=1)
    assert torch.equal(found, found.unique())
    assert torch.bincount(labels[found] + 1).tolist() == [12, 2, 2, 2, 2]
    for few in (torch.tensor([-1] * 99 + [0]), torch.tensor([0] * 99 + [-1])):
        assert len(few[draw_balanced(few, 3, seed=0)].unique()) == 2
