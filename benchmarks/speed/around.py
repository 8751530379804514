"""The work around an update: the input pipeline, and `fit` from end to end beside the bare step."""

from __future__ import annotations

import datasets
import numpy as np
import torch

from benchmarks.speed.clock import now, timed
from benchmarks.speed.rows import CLASSES, Case, distiller
from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.data.batch_transforms import CropFlip
from feature_gan_kd.data.in_memory import MemoryImages
from feature_gan_kd.training.callbacks import Callback

UPDATES = 8
"""Number of updates of `fit` in one round, and of bare steps after them."""


class FitAndBareTimer(Callback):
    """Times stretches of a running `fit`, and after each one as many bare steps of the same distiller."""

    def __init__(self, built: OnlineAdversarialDistiller, case: Case) -> None:
        self.built, self.batch, self.case = built, case.images(), case
        self.seconds: dict[str, list[float]] = {"fit": [], "bare step": []}
        self.began = 0.0

    def on_step(self, step: int) -> None:
        """Times the stretch that ends with this update, if one does."""
        if step % UPDATES:
            return
        reached = now(self.case)
        if step > UPDATES:  # the first stretch warms up
            self.seconds["fit"].append((reached - self.began) / UPDATES)
            self.seconds["bare step"].append(timed(lambda: self.built.training_step(*self.batch), UPDATES, self.case))
        self.began = now(self.case)


def fit_and_bare(case: Case, rounds: int) -> dict[str, list[float]]:
    """Times one update by round, in seconds: in `fit` (with reading, augmentation, schedules and records), and bare.

    Evaluations and checkpoints are not included.
    """
    data = {
        "train": noise(case.batch * UPDATES * (rounds + 1), case.image_size),
        "test": noise(CLASSES, case.image_size),
    }
    built = distiller(case, method="afd", epochs=1, batch_size=case.batch, log_every_steps=UPDATES)
    timer = FitAndBareTimer(built, case)
    built.fit(datasets.DatasetDict(data), callbacks=[timer])
    return timer.seconds


def noise(count: int, size: int) -> datasets.Dataset:
    """Returns a data set of `count` images of noise with labels."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(k) for k in range(CLASSES)])}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return datasets.Dataset.from_dict({"image": list(pixels), "label": [k % CLASSES for k in range(count)]}, features)


def input_rate(case: Case) -> float:
    """Measures images/s of one epoch of 32x32 images in memory: order, crop, flip and normalisation."""
    pixels = torch.randint(0, 256, (50_000, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = MemoryImages(pixels, torch.arange(50_000) % CLASSES, CropFlip(4, flip=True))

    def epoch() -> None:
        for _ in images.batches(batch_size=128, seed=0, epoch=0, device=case.device, train=True):
            pass

    return len(pixels) / min(timed(epoch, 1, case) for _ in range(3))
