"""A small run that uses every kind of randomness, and the files that it writes, for the tests of resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import Tensor, nn

from feature_gan_kd import Callback, OnlineAdversarialDistiller
from feature_gan_kd.training.checkpoint_files import list_checkpoints

TIMED = ("seconds", "seconds_left")
TIMED_METRICS = ("train/images_per_second", "train/epoch_images_per_second")

# 130 images in batches of 32: 5 updates an epoch, the last on 2 images. The seed is one with which a later epoch is the
# best, so that its models replace those of the first.
SETTINGS: dict[str, Any] = {
    "image_size": 8,
    "max_train_samples": 130,
    "max_eval_samples": 60,
    "batch_size": 32,
    "epochs": 3,
    "checkpoint_every_steps": 1,
    "keep_checkpoints": 100,
    "log_every_steps": 2,
    "lr": 0.05,
    "seed": 2,
    "adversarial_lr": 1e-3,
    "mixup": 0.4,
    "cutmix": 1.0,
}


class RandomModel(nn.Module):
    """Batch normalisation, stochastic depth and dropout: state in buffers, and randomness in the step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), DropPath(0.3))
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        x = self.features(x)
        logits: Tensor = self.head((x + self.block(x)).mean((2, 3)))
        return logits


def build(**changes: Any) -> OnlineAdversarialDistiller:
    """Two models of different widths; the bundled digits, augmented by crops."""
    torch.manual_seed(3)
    return OnlineAdversarialDistiller([RandomModel(4), RandomModel(6)], **{**SETTINGS, **changes})


class AtStep(Callback):
    """Calls a function right after an update.

    Args:
        step: number of the update.
        act: the function.
    """

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step = step
        self.act = act

    def on_step(self, step: int) -> None:
        """Calls the function at its step."""
        if step == self.step:
            self.act()


def at_forward(model: nn.Module, number: int, act: Callable[[], object], *, training: bool) -> None:
    """Calls a function when a model is called for the `number`-th time in training, or in evaluation."""
    calls = iter(range(1, number + 1))

    def hook(module: nn.Module, inputs: object) -> None:
        if module.training == training and next(calls, None) == number:
            act()

    model.register_forward_pre_hook(hook)


def steps_of(folder: Path) -> list[int]:
    """The steps of a run's checkpoints, in rising order."""
    return sorted(int(path.name.removeprefix("step-")) for path in list_checkpoints(folder / "checkpoints"))


def final_state(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint."""
    last = list_checkpoints(folder / "checkpoints")[0]
    return {
        f"{path.name}/{key}": value
        for path in sorted(last.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without times; every line must be whole."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for key in TIMED:
            line.pop(key, None)
        for key in TIMED_METRICS:
            line["metrics"].pop(key, None)
    return lines


def published(folder: Path) -> dict[str, bytes]:
    """Every file below a run's `networks/`."""
    models = folder / "networks"
    return {str(path.relative_to(models)): path.read_bytes() for path in models.rglob("*") if path.is_file()}


def assert_same_run(folder: Path, expected: Path) -> None:
    """Asserts that two runs have the same state, records and published models, bit for bit."""
    mine, other = final_state(folder), final_state(expected)
    assert mine.keys() == other.keys()
    assert [key for key in other if not torch.equal(mine[key], other[key])] == []
    assert records(folder) == records(expected)
    assert published(folder) == published(expected)
    leftovers = [path.name for path in folder.rglob(".*")]
    assert leftovers == []
