"""The fit loop: epochs, evaluation, logging, checkpoints, stops, resume. It knows nothing of what a step does."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.data import Data, ImageSource, MixupCutmix
from feature_gan_kd.distributed.collectives import all_ranks_equal, all_reduce_sum, on_main_process
from feature_gan_kd.optim.nonfinite import SkippedSteps
from feature_gan_kd.training import checkpoint
from feature_gan_kd.training.callbacks import Callback
from feature_gan_kd.training.evaluate import Evaluation
from feature_gan_kd.training.history import History, Record
from feature_gan_kd.training.metrics import MetricAverager
from feature_gan_kd.training.signals import Stop
from feature_gan_kd.utils.errors import DivergedError, Interrupted, UserError
from feature_gan_kd.utils.files import remove_leftovers


class Trainee(Protocol):
    """What the loop needs of that which it trains."""

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One whole update on images (n, channels, height, width) and labels (n,); detached scalars."""
        ...

    def faults(self) -> SkippedSteps:
        """The updates so far that changed nothing, because a value was not finite; the same on every process."""
        ...

    def evaluate_source(self, source: ImageSource, between: Callable[[], None]) -> Evaluation:
        """Accuracy on the images of `source`, the same on every process; calls `between` after every batch."""
        ...

    def similarity(self, source: ImageSource, between: Callable[[], None]) -> dict[str, float]:
        """How alike the models' maps are on images of `source`, by name; nothing where it is not recorded."""
        ...

    def state(self) -> checkpoint.Checkpoint:
        """Everything that training changes."""
        ...

    def load_state(self, state: checkpoint.Checkpoint) -> None:
        """The inverse of `state`."""
        ...

    def publish(self, index: int, which: Literal["last", "best"], folder: Path) -> None:
        """Writes model `index` as users get it, unless the folder holds these very weights."""
        ...


@dataclass
class Trainer:
    """One call of fit: what it trains, on what, and how far it has come.

    Attributes:
        trainee: what is trained.
        data: what on.
        config: how.
        schedules: of the learning rates, by kind.
        accelerator: devices and processes.
        callbacks: who hears of it (called on the main process alone).
        output_dir: where checkpoints and models go; None writes nothing.
        signature: what a checkpoint must agree with to be resumed.
        names: of the models.
        mixing: of the images and labels of a batch; None for none.
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
    mixing: MixupCutmix | None = None
    step: int = 0
    history: History = field(default_factory=History)
    window: MetricAverager = field(default_factory=MetricAverager)
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.steps_per_epoch = self.data.train.steps(self.config.batch_size)
        self.total = self.steps_per_epoch * self.config.epochs
        self.started = time.perf_counter()
        self.started_at = 0
        self.evaluated = self.started, 0  # when, and after which step, the last evaluation was
        self.saved: tuple[int, int] | None = None
        if self.total == 0:
            raise UserError("training data: there is no batch of at least 2 images in it")

    def run(self, resume: bool) -> History:
        """Trains from the start, or from the newest good checkpoint, to the end.

        Raises:
            Interrupted: after a checkpoint, where SIGTERM or Ctrl-C asked for it.
            DivergedError: where `max_nonfinite_steps` updates in a row had a loss or a gradient that is not finite.
            UserError: where the disk cannot hold what is to be written; what was written before is unharmed.
        """
        if resume:
            self.resume()
        self._tell("on_start", self.step, self.total, self.history)
        self.started_at = self.step
        self.evaluated = time.perf_counter(), self.step
        try:
            with self.stop:
                self._epochs()
        finally:
            if self.accelerator.is_main_process:
                for callback in self.callbacks:
                    callback.on_end()
        return self.history

    def _epochs(self) -> None:
        try:
            for epoch in range(self._first_epoch(), self.config.epochs):
                if self.ended:
                    break
                self.epoch(epoch)
        except Interrupted as interrupted:
            self.save()
            kept = "nothing was written" if self.output_dir is None else f"its checkpoint is in {self.output_dir}"
            where = f"stopped after step {self.step} of {self.total}, {kept}"
            raise Interrupted(interrupted.signal, where) from None

    @property
    def ended(self) -> bool:
        """Whether all updates are done, or a callback ended the training after the last evaluation."""
        return self.step == self.total or (bool(self.history.epochs) and self.history.last.get("stopped", False))

    def _first_epoch(self) -> int:
        """The epoch to go on in: that of the next update, or one whose updates are done but not its evaluation."""
        done, inside = divmod(self.step, self.steps_per_epoch)
        evaluated = self.history.last["epoch"] if self.history.epochs else 0
        return done - 1 if not inside and done > evaluated and self._evaluates(done - 1) else done

    def _evaluates(self, epoch: int) -> bool:
        return (epoch + 1) % self.config.evaluate_every_epochs == 0 or epoch + 1 == self.config.epochs

    def epoch(self, epoch: int) -> None:
        """The rest of one epoch, its evaluation if it has one, and its checkpoint. Raises as `run`."""
        for images, labels in self._batches(epoch):
            self._update(images, labels)
            inside = self.step % self.steps_per_epoch
            if self.step % self.config.log_every_steps == 0 and (inside or not self._evaluates(epoch)):
                record = self._record(epoch)
                self.window = MetricAverager()
                self._tell("on_metrics", record)
            if inside and self.config.checkpoint_every_steps and self.step % self.config.checkpoint_every_steps == 0:
                self.save()
            self.stop.check()
        if self._evaluates(epoch):
            self._evaluate(epoch)
        self.save()
        if self._evaluates(epoch):
            self._publish()
        self._tell("on_epoch", epoch + 1)

    def _evaluate(self, epoch: int) -> None:
        record = self._record(epoch)
        evaluation = self.trainee.evaluate_source(self.data.evaluation, self.stop.check)
        similarity = self.trainee.similarity(self.data.evaluation, self.stop.check)
        self.window = MetricAverager()
        self._tell("on_metrics", record)
        done = time.perf_counter()
        pace = (done - self.started) / max(self.step - self.started_at, 1)
        seconds, steps = done - self.evaluated[0], self.step - self.evaluated[1]
        self.evaluated = done, self.step
        record |= {
            "metrics": record["metrics"] | similarity,
            "epochs": self.config.epochs,
            "accuracy": evaluation.accuracy,
            "loss": evaluation.loss,
            "ensemble": evaluation.ensemble,
            "images": evaluation.images,
            "seconds": seconds,
            "seconds_left": pace * (self.total - self.step),
            "images_per_second": steps * self.config.batch_size / seconds,
        }
        self.history.add(record)
        self._tell_evaluation(record)

    def _update(self, images: Tensor, labels: Tensor) -> None:
        seed_step(self.config.seed, self.step, self.accelerator.process_index)
        for schedule in self.schedules.values():
            schedule.step_update(self.step)
        if self.mixing is not None:
            images, labels = self.mixing(images, labels, self.step)
        self.window.add(self.trainee.training_step(images, labels), len(images))
        self.step += 1
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                callback.on_step(self.step)

    def save(self) -> None:
        """Writes a checkpoint of this moment, where there is none yet, and prunes the older ones.

        Raises:
            UserError: where the disk cannot hold it; those before it are unharmed.
        """
        moment = self.step, len(self.history.epochs)
        if self.output_dir is None or self.saved == moment:
            return
        state = self.trainee.state()
        state.meta |= {
            "step": self.step,
            "history": {"epochs": self.history.epochs, "best": self.history.best},
            "window": self.window.state(self.accelerator),
        }
        parent = self.output_dir / "checkpoints"

        def write() -> None:
            checkpoint.save(state, parent / f"step-{self.step}", self.signature)
            best = self.history.best_epoch
            checkpoint.prune(parent, self.config.keep_checkpoints, spare=None if best is None else best["step"])

        on_main_process(write)
        self.saved = moment
        self._tell("on_checkpoint", parent / f"step-{self.step}")

    def resume(self) -> None:
        """Loads the newest checkpoint that is whole and belongs to this run; a broken one is passed over.

        Raises:
            UserError: where the processes do not find the same one.
        """
        if self.output_dir is None:
            return
        for name in ("checkpoints", "networks"):
            on_main_process(functools.partial(remove_leftovers, self.output_dir / name))
        found = checkpoint.newest_good(self.output_dir / "checkpoints", self.signature)
        step = -1 if found is None else found[1].meta["step"]
        if not all(all_ranks_equal(torch.tensor([step], device=self.accelerator.device))):
            raise UserError(
                f"{self.output_dir}: not all processes find the same checkpoint there: all hosts must see one folder"
            )
        if found is None:
            return
        _, state = found
        self.trainee.load_state(state)
        self.step = state.meta["step"]
        self.history.epochs, self.history.best = (state.meta["history"][key] for key in ("epochs", "best"))
        self.window = MetricAverager.from_state(state.meta["window"], self.accelerator)
        if self.history.epochs and self.step == self.history.last["step"]:
            self._publish()  # the run may have been killed after the checkpoint and before this

    def _batches(self, epoch: int) -> Any:
        return self.data.train.batches(
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            start=self.step - epoch * self.steps_per_epoch,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            device=self.accelerator.device,
            train=True,
        )

    def _record(self, epoch: int) -> Record:
        self._end_if_diverged()
        metrics, speed = self.window.means(self.accelerator)
        rates = {kind: schedule.optimizer.param_groups[0]["lr"] for kind, schedule in self.schedules.items()}
        return {"step": self.step, "epoch": epoch + 1, "metrics": metrics, "lr": rates, "images_per_second": speed}

    def _end_if_diverged(self) -> None:
        found = self.trainee.faults()
        if found.longest < self.config.max_nonfinite_steps:
            return
        saved = checkpoint.newest(self.output_dir / "checkpoints") if self.output_dir else []
        raise DivergedError(
            f"training: {found.longest} updates in a row up to step {self.step} had a loss or a gradient that is not "
            f"finite ({', '.join(found.where[:2])}), and changed nothing: lower the learning rate, or set clip_grad; "
            + (f"the last good checkpoint is {saved[0]}" if saved else "there is no checkpoint yet")
        )

    def _publish(self) -> None:
        """Writes the models for which the last epoch is the best so far, and at the end all as they are."""
        if self.output_dir is None:
            return
        due: list[tuple[int, Literal["last", "best"]]] = []
        for k, best in enumerate(self.history.best):
            due += [(k, "best")] * (best["epoch"] == self.history.last["epoch"])
            due += [(k, "last")] * self.ended
        models = self.output_dir / "networks"

        def write() -> None:
            for k, which in due:
                self.trainee.publish(k, which, models / f"{k}-{self.names[k]}{'-best' * (which == 'best')}")

        on_main_process(write)

    def _tell(self, event: str, *args: Any) -> None:
        on_main_process(lambda: [getattr(callback, event)(*args) for callback in self.callbacks])

    def _tell_evaluation(self, record: Record) -> None:
        """Tells of an evaluation; the record says so, on every process, where a callback ends the training here."""

        def tell() -> None:
            for callback in self.callbacks:
                if callback.on_evaluate(record):
                    record["stopped"] = True

        on_main_process(tell)
        asked = torch.tensor(float("stopped" in record), device=self.accelerator.device)
        if all_reduce_sum(asked).item():
            record["stopped"] = True


def seed_step(seed: int, step: int, process: int) -> None:
    """Makes dropout and the like a function of (seed, step, process): there is no generator state to save."""
    value = (seed * 1_000_003 + step * 8191 + process) % 2**32
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
