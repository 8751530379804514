"""timm's Mixup and CutMix, drawn from (seed, step) alone, so that a resumed run mixes as the uninterrupted one."""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.batches import Batch
from feature_gan_kd.data.labels import NO_LABEL
from feature_gan_kd.data.rng import MIX, item_seeds, seeded


class MixupCutmix:
    """Mixes neighbours of a batch and their labels: images 0 and 1, 2 and 3, and so on.

    The batch is in random order, so a neighbour is a random other image. All processes use one mixing ratio per step
    and pair the images of their own share. The pairs do not depend on the number of processes if every share begins at
    an even position of the batch, that is if the batch size is a multiple of twice that number. The last image of an
    odd share stays unmixed.

    Args:
        mixup: alpha of the Beta distribution that mixup's ratio is drawn from; 0 turns mixup off.
        cutmix: likewise for CutMix. With both, each step uses one or the other at random.
        num_classes: of the labels; None where they are not learned from: mixed images then have no label.
        seed: of the run.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int | None, seed: int) -> None:
        self.num_classes = num_classes
        self.seed = seed
        self._mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=num_classes or 1)

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        """Mixes images (n, C, H, W) and labels (n,) of update `step`.

        Returns:
            Images of the same shape, and labels (n, classes); `NO_LABEL` (n,) where labels are not learned from.
        """
        if self.num_classes is None:
            return self._mix_pairs(images, torch.zeros_like(labels), step, 1)[0], torch.full_like(labels, NO_LABEL)
        return self._mix_pairs(images, labels, step, self.num_classes)

    def _mix_pairs(self, images: Tensor, labels: Tensor, step: int, classes: int) -> Batch:
        mixed, soft = images.clone(), torch.nn.functional.one_hot(labels, classes).to(images.dtype)
        half = len(images) // 2
        if not half:
            return mixed, soft
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        # timm mixes image k with image n - 1 - k: put the second of each pair there.
        mirrored = [torch.cat([one[first], one[second].flip(0)]) for one in (images, labels)]
        (seed,) = item_seeds(self.seed, step, torch.zeros(1, dtype=torch.int64), MIX)
        with seeded(seed):
            for result, both in zip((mixed, soft), self._mix(*mirrored), strict=True):
                result[first], result[second] = both[:half], both[half:].flip(0)
        return mixed, soft


def build_mixup_cutmix(config: DistillConfig, num_classes: int | None) -> MixupCutmix | None:
    """Builds what the settings `mixup` and `cutmix` ask for; None where both are off."""
    if config.mixup == config.cutmix == 0:
        return None
    return MixupCutmix(config.mixup, config.cutmix, num_classes if config.labels else None, config.seed)
