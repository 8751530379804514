"""Mixup and CutMix of a batch, by timm, as a function of (seed, step) alone."""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.data.batches import Batch
from feature_gan_kd.data.rng import MIX, item_seeds, seeded


class MixupCutmix:
    """Blends neighbours of a batch and their labels: the images 0 and 1, 2 and 3, and so on.

    The order of the images is shuffled, so a neighbour is any other image. One ratio holds for a whole step, on all
    processes, which pair the images of their own share: where every share begins at an even position of the batch,
    as with a batch size that is a multiple of twice the number of processes, the pairs do not depend on that
    number. An image left over stays as it is.

    Args:
        mixup: alpha of the Beta distribution from which mixup's ratio is drawn; 0 for none.
        cutmix: likewise of CutMix. With both, each step has one or the other.
        num_classes: of the labels.
        seed: of the run.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        self.num_classes = num_classes
        self.seed = seed
        self._mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        """Mixes the images (n, C, H, W) of update `step` with labels (n,): the same shape, and (n, classes)."""
        mixed, soft = images.clone(), torch.nn.functional.one_hot(labels, self.num_classes).to(images.dtype)
        half = len(images) // 2
        if not half:
            return mixed, soft
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        # timm mixes an image with the one as far from the other end.
        ends = [torch.cat([one[first], one[second].flip(0)]) for one in (images, labels)]
        (seed,) = item_seeds(self.seed, step, torch.zeros(1, dtype=torch.int64), MIX)
        with seeded(seed):
            for result, both in zip((mixed, soft), self._mix(*ends), strict=True):
                result[first], result[second] = both[:half], both[half:].flip(0)
        return mixed, soft


def build_mixup_cutmix(config: DistillConfig, num_classes: int) -> MixupCutmix | None:
    """The mixing that the settings ask for, if any."""
    if config.mixup == config.cutmix == 0:
        return None
    return MixupCutmix(config.mixup, config.cutmix, num_classes, config.seed)
