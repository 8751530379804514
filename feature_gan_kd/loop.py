"""The fit loop: epochs, evaluation, logging, checkpoints, resume. It knows nothing of what a step does."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from feature_gan_kd import checkpoint
from feature_gan_kd.callbacks import Callback
from feature_gan_kd.config import DistillConfig
from feature_gan_kd.data import Data, ImageSource
from feature_gan_kd.errors import UserError
from feature_gan_kd.evaluate import Evaluation
from feature_gan_kd.history import History, Record


class Trainee(Protocol):
    """What the loop needs of that which it trains."""

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One whole update; detached metrics."""
        ...

    def evaluate_source(self, source: ImageSource) -> Evaluation:
        """Accuracy on the images of `source`, the same on every process."""
        ...

    def state(self) -> checkpoint.Checkpoint:
        """Everything that training changes."""
        ...

    def load_state(self, state: checkpoint.Checkpoint) -> None:
        """The inverse of `state`."""
        ...

    def publish(self, index: int, which: Literal["last", "best"], folder: Path) -> None:
        """Writes network `index` as users get it."""
        ...


@dataclass
class Fit:
    """One call of fit: what it trains, on what, and how far it has come.

    Attributes:
        trainee: what is trained.
        data: what on.
        config: how.
        schedules: of the learning rates, by kind.
        accelerator: devices and processes.
        callbacks: who hears of it (called on the main process alone).
        output_dir: where checkpoints and networks go; None writes nothing.
        signature: what a checkpoint must agree with to be resumed.
        names: of the networks.
    """

    trainee: Trainee
    data: Data
    config: DistillConfig
    schedules: Mapping[str, Scheduler]
    accelerator: Accelerator
    callbacks: Sequence[Callback]
    output_dir: Path | None
    signature: Mapping[str, Any]
    names: Sequence[str]
    step: int = 0
    history: History = field(default_factory=History)
    window: Window = field(init=False)

    def __post_init__(self) -> None:
        self.steps_per_epoch = self.data.train.steps(self.config.batch_size)
        self.total = self.steps_per_epoch * self.config.epochs
        self.started = time.perf_counter()
        self.window = Window()
        if self.total == 0:
            raise UserError("training data: there is no batch of at least 2 images in it")

    def run(self, resume: bool) -> History:
        """Trains from the start, or from the newest good checkpoint, to the end."""
        if resume:
            self.resume()
        self._tell("on_start", self.step, self.total)
        started_at = self.step
        try:
            for epoch in range(self.step // self.steps_per_epoch, self.config.epochs):
                self.epoch(epoch, started_at)
        finally:
            self._tell("on_end")
        return self.history

    def epoch(self, epoch: int, started_at: int) -> None:
        """The rest of one epoch, its evaluation and its checkpoint."""
        begin = time.perf_counter()
        first = self.step
        for images, labels in self._batches(epoch):
            seed_step(self.config.seed, self.step, self.accelerator.process_index)
            for schedule in self.schedules.values():
                schedule.step_update(self.step)
            self.window.add(self.trainee.training_step(images, labels), len(images))
            self.step += 1
            self._tell("on_step", self.step)
            inside = self.step % self.steps_per_epoch
            if inside and self.step % self.config.log_every == 0:
                self._tell("on_metrics", self._record(epoch))
            if inside and self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0:
                self.save()
        record = self._record(epoch)
        self._tell("on_metrics", record)
        evaluation = self.trainee.evaluate_source(self.data.evaluation)
        done = time.perf_counter()
        left = (done - self.started) / (self.step - started_at) * (self.total - self.step)
        record |= {
            "epochs": self.config.epochs,
            "accuracy": evaluation.accuracy,
            "loss": evaluation.loss,
            "ensemble": evaluation.ensemble,
            "images": evaluation.images,
            "seconds": done - begin,
            "seconds_left": left,
            "images_per_second": min(self.step - first, self.steps_per_epoch) * self.config.batch_size / (done - begin),
        }
        self._finish(record)

    def _finish(self, record: Record) -> None:
        improved = self.history.add(record)
        self._tell("on_epoch", record)
        for k in improved:
            self._publish(k, "best")
        if self.step == self.total:
            for k in range(len(self.names)):
                self._publish(k, "last")
        self.save()

    def save(self) -> None:
        """Writes a checkpoint of this moment and prunes the older ones."""
        if self.output_dir is None:
            return
        state = self.trainee.state()
        state.meta |= {
            "step": self.step,
            "history": {"epochs": self.history.epochs, "best": self.history.best},
            "window": [self.window.steps, self.window.images],
        }
        if self.window.sums:
            state.tensors["window"] = dict(self.window.sums)
        if self.accelerator.is_main_process:
            parent = self.output_dir / "checkpoints"
            checkpoint.save(state, parent / f"step-{self.step}", self.signature)
            checkpoint.prune(parent, self.config.keep_last)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Loads the newest checkpoint that is whole and belongs to this run; a broken one is passed over."""
        found = checkpoint.newest_good(self.output_dir / "checkpoints", self.signature) if self.output_dir else None
        if found is None:
            return
        _, state = found
        window = state.tensors.pop("window", {})
        self.trainee.load_state(state)
        self.step = state.meta["step"]
        self.history.epochs, self.history.best = (state.meta["history"][key] for key in ("epochs", "best"))
        self.window.sums = {key: value.to(self.accelerator.device) for key, value in window.items()}
        self.window.steps, self.window.images = state.meta["window"]

    def _batches(self, epoch: int) -> Any:
        return self.data.train.batches(
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            start=self.step - epoch * self.steps_per_epoch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
            train=True,
        )

    def _record(self, epoch: int) -> Record:
        metrics, speed = self.window.close(self.accelerator)
        rates = {kind: schedule.optimizer.param_groups[0]["lr"] for kind, schedule in self.schedules.items()}
        return {"step": self.step, "epoch": epoch + 1, "metrics": metrics, "lr": rates, "images_per_second": speed}

    def _publish(self, index: int, which: Literal["last", "best"]) -> None:
        if self.output_dir is not None and self.accelerator.is_main_process:
            suffix = "" if which == "last" else "-best"
            folder = self.output_dir / "networks" / f"{index}-{self.names[index]}{suffix}"
            self.trainee.publish(index, which, folder)

    def _tell(self, event: str, *args: Any) -> None:
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                getattr(callback, event)(*args)


class Window:
    """Sums of the metrics since the last record; they stay on the device until it is closed."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.images = 0
        self.began = time.perf_counter()

    def add(self, metrics: Mapping[str, Tensor], images: int) -> None:
        """Adds one step's metrics."""
        for key, value in metrics.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.steps += 1
        self.images += images

    def close(self, accelerator: Accelerator) -> tuple[dict[str, float], float]:
        """The means over steps and processes, and images a second; begins a new window."""
        values = torch.stack([value.double() for value in self.sums.values()]).to(accelerator.device)
        means = (accelerator.reduce(values, "mean") / self.steps).tolist()
        speed = self.images * accelerator.num_processes / (time.perf_counter() - self.began)
        metrics = dict(zip(self.sums, means, strict=True))
        self.sums, self.steps, self.images, self.began = {}, 0, 0, time.perf_counter()
        return metrics, speed


def seed_step(seed: int, step: int, process: int) -> None:
    """Makes dropout and the like a function of (seed, step, process): there is no generator state to save."""
    value = (seed * 1_000_003 + step * 8191 + process) % 2**32
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
