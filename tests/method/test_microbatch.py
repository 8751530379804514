from __future__ import annotations

import itertools

import pytest
import torch

from feature_gan_kd.method.microbatch import microbatch_slices


@pytest.mark.parametrize("images", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_of_a_batch_hold_every_image_once(images: int, parts: int) -> None:
    chosen = [list(range(images))[part] for part in microbatch_slices(images, parts, torch.device("cpu"))]
    assert sorted(itertools.chain(*chosen)) == list(range(images))
    assert len(chosen) == min(parts, images)
    assert max(map(len, chosen)) - min(map(len, chosen)) <= 1
