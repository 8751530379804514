"""Runs `fit` as one process, or as one of several: `python -m tests.helpers.worker FOLDER CASE...`.

`DIE=1:10` in the environment kills process 1 in its tenth forward pass: that of the eighth update, since the first two
updates of several processes are rehearsed. An existing run is resumed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import pil_to_tensor

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.data.sources import BUNDLED_DIGITS
from feature_gan_kd.distributed.collectives import rank, world_size
from feature_gan_kd.training.checkpoint_files import list_checkpoints
from tests.helpers import norm_worker, stopping


class SmallModel(nn.Module):
    """Convolution, normalisation, convolution, mean and a linear layer. Converts images to its own type.

    Args:
        width: channels.
        norm: of `width` channels.
        dtype: of its parameters; in float64 rounding cannot hide a mistake.
    """

    def __init__(self, width: int, norm: nn.Module, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), norm, nn.GELU(), nn.Conv2d(width, width, 3, stride=2)
        )
        self.head = nn.Linear(width, 10)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        logits: Tensor = self.head(self.features(x.to(self.head.weight.dtype)).mean((2, 3)))
        return logits


def plain(*widths: int) -> list[nn.Module]:
    """Models without batch statistics."""
    return [SmallModel(width, nn.GroupNorm(2, width)) for width in widths]


def normalised(dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    """Models with batch statistics."""
    return [
        SmallModel(4, nn.BatchNorm2d(4, momentum=None), dtype),
        SmallModel(6, BatchNormAct2d(6), dtype),
        SmallModel(4, nn.BatchNorm2d(4, affine=False), dtype),
    ]


class WithRareBlock(SmallModel):
    """Has a block that few images reach: a process whose images do not reach it has no gradient for it."""

    def __init__(self, width: int) -> None:
        super().__init__(width, nn.Identity())
        self.rare = nn.Linear(10, 10, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        logits = super().forward(x)
        reached = x.mean((1, 2, 3)) > 0.03  # one or none in half a batch of the digits
        if not bool(reached.any()):
            return logits
        return logits + torch.zeros_like(logits).masked_scatter(reached[:, None], self.rare(logits[reached]))


class Hungry(SmallModel):
    """Does not fit into the memory of the last process, unless that is given half of its share at a time.

    Written by the launch's own numbers, which stay what they are where a process works alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        is_last = processes == 1 or torch.distributed.get_rank() == processes - 1
        if self.training and is_last and len(x) > 6 / processes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def hungry() -> list[nn.Module]:
    """Models with batch statistics of which one needs too much memory."""
    return [SmallModel(4, nn.BatchNorm2d(4)), Hungry(6, BatchNormAct2d(6))]


def images(count: int) -> TensorDataset:
    """Normalised random images with labels."""
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 10)


def turned(image: Any) -> Tensor:
    """A transform of the user's own that draws from all generators."""
    angle = 20 * (random.random() + np.random.rand() + float(torch.rand(())) - 1.5)
    return pil_to_tensor(image.rotate(angle).resize((8, 8)))


def unlabeled_digits() -> datasets.Dataset:
    """The bundled digits without labels."""
    return datasets.Dataset.from_parquet(str(BUNDLED_DIGITS)).remove_columns("label")


# 38 images in batches of 12: the last batch has 2, so that one of three processes has none.
SETTINGS: dict[str, Any] = {
    "image_size": 8,
    "max_train_samples": 38,
    "max_eval_samples": 50,
    "batch_size": 12,
    "epochs": 2,
    "log_every_steps": 1,
    "checkpoint_every_steps": 3,
    "lr": 0.05,
    "adversarial_lr": 1e-3,
    "discriminator_lr": 1e-3,
    "check_processes": True,
}
CASES: dict[str, Mapping[str, Any]] = {
    "pair": {},
    "cycle of 3": {"models": lambda: plain(4, 6, 4)},
    "frozen source": {"models": lambda: plain(4, 6, 4), "frozen": [2], "mean": (0.5,), "std": (0.25,)},
    "complete, two layers": {"feature_layers": ["features.0", "features.3"], "topology": "complete"},
    "parts": {"grad_accum_steps": 2},
    "more parts than a process has images": {"grad_accum_steps": 5, "batch_size": 9},
    "clipped": {"clip_grad": 0.5},
    "l1 and l2": {"method": "l1", "l2_weight": 0.5},
    "aligned, statistics and relation": {"method": "aligned", "statistics_weight": 0.5, "relation_weight": 2.0},
    "the same in parts": {
        **{"method": "statistics", "relation_weight": 0.5, "grad_accum_steps": 2},
        **{"models": lambda: plain(4, 6, 4), "topology": "complete"},
    },
    "logit": {"method": "logit"},
    "zero-gradient": {"method": "zero-gradient"},
    "recorded": {"similarity_images": 20, "log_gradients": True, "feature_layers": ["features.0", "features.3"]},
    "group norm in discriminators": {"discriminator_norm": "group"},
    "no norm in discriminators": {"discriminator_norm": "none"},
    "hinge": {
        "adversarial_loss": "hinge",
        "discriminator_interval": 2,
        "adversarial_warmup_fraction": 0.5,
    },
    "relativistic": {"adversarial_loss": "relativistic", "adversarial_interval": 2},
    "classes in discriminators, confident targets": {
        **{"discriminator_classes": True, "adversarial_loss": "reversal", "joint_backward": True},
        **{"logit_loss": "decoupled", "targets": "ensemble", "confidence_threshold": 0.13, "grad_accum_steps": 2},
    },
    "batch norm": {"models": normalised, "sync_batchnorm": True},
    "batch norm in parts": {"models": normalised, "sync_batchnorm": True, "grad_accum_steps": 2},
    "averaged weights that teach": {"model_ema": 0.9, "targets": "ema", "grad_accum_steps": 2},
    "averaged weights, batch norm": {"models": normalised, "sync_batchnorm": True, "model_ema": 0.9, "targets": "ema"},
    "ended early": {"epochs": 5, "lr": 1e-6, "early_stopping_patience": 2},
    "a block that few images reach": {"models": lambda: [WithRareBlock(4), WithRareBlock(6)], "optimizer": "adamw"},
    "float32": {"models": lambda: normalised(torch.float32), "sync_batchnorm": True},
    "a fault in the last process": {"fault": 3},
    "memory of the last process": {"models": hungry, "sync_batchnorm": True},
    "augmented": {
        "aa": "rand-m9-mstd0.5",
        "reprob": 0.5,
        "vflip": 0.5,
        "balanced_sampling": True,
        "smoothing": 0.1,
        "bce_loss": True,
        "grad_accum_steps": 2,
    },
    "plain for the sources": {
        **{"aa": "rand-m9-mstd0.5", "reprob": 0.5, "source_view": "plain", "model_ema": 0.9, "targets": "ema"},
        "grad_accum_steps": 2,
    },
    "weighted classes, a transform of its own": {"class_weights": True, "smoothing": 0.1, "transform": turned},
    "a frozen encoder without labels": {
        "models": lambda: plain(4, 6),
        "labels": False,
        "frozen": [0],
        "relation_weight": 1.0,
        "adversarial_weight": 0.5,
        "mean": (0.5,),
        "std": (0.25,),
    },
    "a share of each batch with labels": {
        "unlabeled": unlabeled_digits,
        "labeled_fraction": 0.25,
        "grad_accum_steps": 2,
    },
    "data set of torch": {"data": lambda: (images(38), images(50)), "max_train_samples": None},
    "loader": {
        "data": lambda: (DataLoader(images(38), 12, shuffle=True), DataLoader(images(50), 12)),
        "max_train_samples": None,
        "max_eval_samples": None,
    },
}


def build(models: Sequence[nn.Module], **settings: Any) -> OnlineAdversarialDistiller:
    """A distiller with the settings of all cases."""
    return OnlineAdversarialDistiller(models, **{**SETTINGS, **settings})


def run(case: str, folder: Path, number: int = 0, act: Callable[[nn.Module], object] = lambda model: None) -> None:
    """Trains one case into a folder; `act` is called with model 0 in its forward pass of that number (from 1)."""
    torch.manual_seed(0)
    changes = dict(CASES[case])
    models = changes.pop("models", lambda: plain(4, 6))
    data = changes.pop("data", lambda: (None, None))
    fault, transform = changes.pop("fault", 0), changes.pop("transform", None)
    unlabeled = changes.pop("unlabeled", lambda: None)
    if fault and rank() == world_size() - 1:
        # Several processes rehearse the first two updates: each has a forward pass more.
        number, act = fault + 2 * (world_size() > 1), poison
    distiller = build(models(), **changes)
    numbers = itertools.count(1)
    distiller.models[0].register_forward_pre_hook(
        lambda model, _: act(model) and None if model.training and next(numbers) == number else None
    )
    stated: dict[str, Any] = {"mean": (0.5,), "std": (0.25,)} if "data" in CASES[case] else {}
    own: dict[str, Any] = {"train_transform": transform, "unlabeled_data": unlabeled(), **stated}
    distiller.fit(*data(), output_dir=folder, resume=folder.exists(), **own)


def poison(model: nn.Module) -> None:
    """Makes this forward pass give NaN."""
    handle = model.register_forward_hook(lambda model, images, logits: (handle.remove(), logits * torch.nan)[1])


def spoil(model: nn.Module) -> None:
    """Changes one weight by one rounding step."""
    bias = list(model.parameters())[-1].detach()
    bias[5] = torch.nextafter(bias[5], bias[5] + 1)


def run_spoiled(folder: Path) -> None:
    """Trains a pair of which the second process has another weight, and writes down what ends that."""
    index = rank()
    try:
        run("pair", folder / "run", 3, spoil if index == 1 else lambda model: None)
    except UserError as error:
        (folder / f"{index}.txt").write_text(str(error))


def begin_alone(folder: Path) -> None:
    """Trains "cycle of 3" in one process until its eighth update."""

    def stop(model: nn.Module) -> None:
        raise ConnectionAbortedError

    with contextlib.suppress(ConnectionAbortedError):
        run("cycle of 3", folder, 8, stop)
    assert list_checkpoints(folder / "checkpoints")[0].name == "step-6"


# What two processes are asked beside the cases, by its name.
OTHERS: dict[str, Callable[[Path], object]] = {
    "norms": norm_worker.save,
    "spoiled": run_spoiled,
    "stopped": lambda folder: stopping.train(folder, told=1),
    "begun by one": lambda folder: run("cycle of 3", folder),
}


def main() -> None:
    """Trains the named cases, each into a folder of its name; those of `OTHERS` are explained in their tests."""
    parent, *cases = sys.argv[1:]
    Accelerator()
    dying, number = map(int, os.environ.get("DIE", "-1:0").split(":"))
    for case in cases:
        folder = Path(parent) / case
        if case in OTHERS:
            OTHERS[case](folder)
        else:
            dies = dying == rank()
            run(case, folder, number * dies, lambda model: os.kill(os.getpid(), signal.SIGKILL))


if __name__ == "__main__":
    main()
