"""Trains for epochs: updates, records, evaluations, checkpoints, stops and resumes. Updates are computed elsewhere."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from feature_gan_kd.data import Data, ImageSource, MixupCutmix
from feature_gan_kd.distributed.collectives import all_ranks_equal, all_reduce_sum, on_main_process
from feature_gan_kd.method.losses import NO_LABEL
from feature_gan_kd.training import checkpoint_files
from feature_gan_kd.training.callbacks import Callback
from feature_gan_kd.training.evaluate_group import evaluate_group
from feature_gan_kd.training.evaluation_file import SampleCollector, write_evaluation
from feature_gan_kd.training.history import History, Record, Which
from feature_gan_kd.training.metrics import MetricAverager, learning_rates
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.training.scores import Evaluation
from feature_gan_kd.training.signals import StopSignals
from feature_gan_kd.training.small_batches import check_batches
from feature_gan_kd.utils.errors import DivergedError, Interrupted, UserError
from feature_gan_kd.utils.files import remove_leftovers, write_remedy

Publish = Callable[[int, Which, Path], None]
MeasureSimilarity = Callable[[ImageSource, Callable[[], None]], dict[str, float]]


@dataclass
class Trainer:
    """One call of `fit`: what is trained, on what, and how far it has come.

    Attributes:
        group: the models.
        data: training and evaluation images.
        schedules: of the learning rates, by the name of the optimiser group.
        callbacks: called on the main process alone.
        output_dir: for checkpoints and published models; None writes nothing.
        history: filled by the training.
        publish: writes model `index`, as its users get it, into a folder.
        similarity: measures how similar the models' feature maps are; calls its second argument after every batch.
        mixing: mixes the images and labels of a batch; None for no mixing.
        step: number of updates done.
        averager: of the metrics since the last record.
    """

    group: PeerGroup
    data: Data
    schedules: Mapping[str, Scheduler]
    callbacks: Sequence[Callback]
    output_dir: Path | None
    history: History
    publish: Publish
    similarity: MeasureSimilarity
    mixing: MixupCutmix | None = None
    step: int = 0
    averager: MetricAverager = field(default_factory=MetricAverager)

    def __post_init__(self) -> None:
        self.config, self.accelerator = self.group.config, self.group.accelerator
        self.signature = self.group.signature(self.data.fingerprint, self.data.class_names)
        self.signals = StopSignals()
        self.steps_per_epoch = self.data.train.steps(self.config.batch_size)
        self.total_steps = self.steps_per_epoch * self.config.epochs
        # Time and step at the start of this process's part of the run; the time of the last evaluation, and the images
        # that this process has trained on since.
        self.start = time.perf_counter(), 0
        self.last_evaluation, self.images = time.perf_counter(), 0
        # Step and number of evaluated epochs in the newest checkpoint: what would be written again is not.
        self.saved: tuple[int, int] | None = None
        if self.total_steps == 0:
            raise UserError("training data: it holds no batch of at least 2 images: give more images")

    def run(self, resume: bool) -> History:
        """Trains to the end, from the start or from the newest checkpoint that is whole.

        Args:
            resume: go on from a checkpoint, if there is one.

        Raises:
            Interrupted: after a checkpoint, where SIGTERM or Ctrl-C asked for it.
            DivergedError: where `max_nonfinite_steps` updates in a row had a loss or a gradient that is not finite.
            UserError: where the disk cannot hold what is written; what was written before is unharmed.
        """
        if resume:
            self.load_newest_checkpoint()
        # The group may have been trained before this run.
        before = self.group.step.number - self.step
        self.group.step.kl_start = before + round(self.config.kl_start_fraction * self.total_steps)
        self._notify("on_start", self.step, self.total_steps, self.history)
        self.start = time.perf_counter(), self.step
        self.last_evaluation = self.start[0]
        try:
            with self.signals:
                self._run_epochs()
        finally:
            # Without the exchange of `_notify`: after an error the other processes may be gone.
            if self.accelerator.is_main_process:
                for callback in self.callbacks:
                    callback.on_end()
        return self.history

    @property
    def is_finished(self) -> bool:
        """Whether all updates are done, or a callback ended the training after the last evaluation."""
        return self.step == self.total_steps or (bool(self.history.epochs) and self.history.last.get("stopped", False))

    def _run_epochs(self) -> None:
        try:
            for epoch in range(self._first_epoch(), self.config.epochs):
                if self.is_finished:
                    break
                self._run_epoch(epoch)
        except Interrupted as interrupted:
            self.save_checkpoint()
            kept = "nothing was written" if self.output_dir is None else f"its checkpoint is in {self.output_dir}"
            where = f"stopped after step {self.step} of {self.total_steps}, {kept}"
            raise Interrupted(interrupted.signal, where) from None

    def _first_epoch(self) -> int:
        """The epoch, from 0, to go on in: that of the next update, or one that was stopped before its evaluation."""
        done, inside = divmod(self.step, self.steps_per_epoch)
        evaluated = self.history.last["epoch"] if self.history.epochs else 0
        return done - 1 if not inside and done > evaluated and self._is_evaluated(done - 1) else done

    def _is_evaluated(self, epoch: int) -> bool:
        return (epoch + 1) % self.config.evaluate_every_epochs == 0 or epoch + 1 == self.config.epochs

    def _run_epoch(self, epoch: int) -> None:
        """Does the remaining updates of one epoch, its evaluation, if it has one, and its checkpoint."""
        for images, labels in self._batches(epoch):
            self._update(images, labels)
            inside = self.step % self.steps_per_epoch
            # The last update of an epoch that is evaluated gets its record there.
            if self.step % self.config.log_every_steps == 0 and (inside or not self._is_evaluated(epoch)):
                self._record_updates(epoch)
            if inside and self.config.checkpoint_every_steps and self.step % self.config.checkpoint_every_steps == 0:
                self.save_checkpoint()
            self.signals.check()
        if self._is_evaluated(epoch):
            self._evaluate(epoch)
        self.save_checkpoint()
        if self._is_evaluated(epoch):
            self._publish()
        self._notify("on_epoch", epoch + 1)

    def _update(self, images: Tensor, labels: Tensor) -> None:
        seed_step(self.config.seed, self.step, self.accelerator.process_index)
        for schedule in self.schedules.values():
            schedule.step_update(self.step)
        if self.mixing is not None:
            images, labels = self.mixing(images, labels, self.step)
        parts = self.group.step.grad_accum_steps
        labelled = (labels != NO_LABEL).sum() if labels.ndim == 1 else None
        self.averager.add(self.group.training_step(images, labels), len(images), labelled)
        if parts != self.group.step.grad_accum_steps:  # memory ran out, and a smaller batch is to come
            check_batches(self.group, self.data.train)
        self.images += len(images)
        self.step += 1
        if self.accelerator.is_main_process:  # without `_notify`, whose exchange would wait for all processes
            for callback in self.callbacks:
                callback.on_step(self.step)

    def _record_updates(self, epoch: int) -> None:
        record = self._make_record(epoch)
        self.averager = MetricAverager()
        self._notify("on_metrics", record)

    def _make_record(self, epoch: int) -> Record:
        """A record of the updates since the last one."""
        self._raise_if_diverged()
        means = self.averager.means(self.accelerator)
        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics |= {f"lr/{name}": rate for name, rate in learning_rates(self.group.step).items()}
        return {"step": self.step, "epoch": epoch + 1, "metrics": metrics}

    def _evaluate(self, epoch: int) -> None:
        record = self._make_record(epoch)
        # A signal may stop the evaluation. The averager is cleared after it, so that the checkpoint still has its sums.
        samples, evaluation, similarity = SampleCollector(), None, {}
        if self.data.evaluation is not None:
            evaluation = evaluate_group(self.group, self.data.evaluation, self.signals.check, samples)
            similarity = self.similarity(self.data.evaluation, self.signals.check)
        self.averager = MetricAverager()
        self._notify("on_metrics", record)
        now = time.perf_counter()
        seconds_per_step = (now - self.start[0]) / max(self.step - self.start[1], 1)
        seconds = now - self.last_evaluation
        images = float(all_reduce_sum(torch.tensor(float(self.images), device=self.accelerator.device)))
        self.last_evaluation, self.images = now, 0
        metrics = {
            **record["metrics"],
            "train/epoch_images_per_second": images / seconds,
            **({} if evaluation is None else evaluation.metrics()),
            **{f"eval/{name}": value for name, value in similarity.items()},
        }
        evaluated = {
            **record,
            "metrics": metrics,
            "epochs": self.config.epochs,
            "seconds": seconds,
            "seconds_left": seconds_per_step * (self.total_steps - self.step),
        }
        self.history.add(evaluated)
        if evaluation is not None:
            on_main_process(functools.partial(self._write_evaluation, evaluation, samples))
        self._notify_evaluated(evaluated)

    def _write_evaluation(self, evaluation: Evaluation, samples: SampleCollector) -> None:
        """Writes the confusions and samples of the last evaluation into the run's folder."""
        if self.output_dir is None:
            return
        self._check_folder()
        try:
            write_evaluation(
                self.output_dir / "evaluation.json",
                evaluation,
                samples,
                epoch=self.history.last["epoch"],
                class_names=self.data.class_names,
                normalisation=self.group.shared,
            )
        except OSError as error:
            raise UserError(
                f"{self.output_dir}: evaluation.json cannot be written ({error.strerror}): "
                f"{write_remedy(self.output_dir)}"
            ) from None

    def save_checkpoint(self) -> None:
        """Writes a checkpoint, unless the newest one is of this moment, and removes the oldest.

        Raises:
            UserError: where the disk cannot hold it; earlier checkpoints are unharmed.
        """
        moment = self.step, len(self.history.epochs)
        if self.output_dir is None or self.saved == moment:
            return
        state = self.group.state()
        state.meta |= {
            "step": self.step,
            "history": {"epochs": self.history.epochs, "best": self.history.best},
            "averager": self.averager.state(self.accelerator),
        }
        parent = self.output_dir / "checkpoints"

        def write() -> None:
            self._check_folder()
            checkpoint_files.save(state, parent / f"step-{self.step}", self.signature)
            best = self.history.best_epoch
            checkpoint_files.prune(parent, self.config.keep_checkpoints, spare=None if best is None else best["step"])

        on_main_process(write)
        self.saved = moment
        self._notify("on_checkpoint", parent / f"step-{self.step}")

    def load_newest_checkpoint(self) -> None:
        """Loads the newest checkpoint that is whole and belongs to this run, if there is one.

        Raises:
            UserError: where the processes do not find the same one, or it is of other models or settings.
        """
        if self.output_dir is None:
            return
        for name in ("checkpoints", "networks"):
            on_main_process(functools.partial(remove_leftovers, self.output_dir / name))
        found = checkpoint_files.load_newest(self.output_dir / "checkpoints", self.signature)
        step = -1 if found is None else found[1].meta["step"]
        if not all(all_ranks_equal(torch.tensor([step], device=self.accelerator.device))):
            raise UserError(
                f"{self.output_dir}: not all processes find the same checkpoint there: all hosts must see one folder"
            )
        if found is None:
            return
        _, state = found
        self.group.load_state(state)
        self.step = state.meta["step"]
        self.history.epochs, self.history.best = (state.meta["history"][key] for key in ("epochs", "best"))
        self.averager = MetricAverager.from_state(state.meta["averager"], self.accelerator)
        if self.history.epochs and self.step == self.history.last["step"]:
            self._publish()  # the run may have been killed between the checkpoint and this

    def _batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's shares of the batches of an epoch that are not done yet."""
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

    def _raise_if_diverged(self) -> None:
        found = self.group.skipped_steps()
        if found.longest < self.config.max_nonfinite_steps:
            return
        saved = checkpoint_files.list_checkpoints(self.output_dir / "checkpoints") if self.output_dir else []
        raise DivergedError(
            f"training: {found.longest} updates in a row up to step {self.step} had a loss or a gradient that is not "
            f"finite ({', '.join(found.where[:2])}), and changed nothing: lower the learning rate, or set clip_grad; "
            + (f"the last good checkpoint is {saved[0]}" if saved else "there is no checkpoint yet")
        )

    def _check_folder(self) -> None:
        """Raises UserError where the run's folder is gone: a new one would lack the records so far."""
        if self.output_dir is not None and not self.output_dir.is_dir():
            raise UserError(f"{self.output_dir}: {write_remedy(self.output_dir)} and start again")

    def _publish(self) -> None:
        """Publishes the models whose best epoch is the last evaluated one, and at the end of the run all of them."""
        if self.output_dir is None:
            return
        folder, names = self.output_dir / "networks", self.group.names
        due: list[tuple[int, Which]] = []
        for k, best in enumerate(self.history.best or [{}] * len(names)):
            due += [(k, "best")] * (best.get("epoch") == self.history.last["epoch"])
            due += [(k, "last")] * self.is_finished
        due += [(k, "ema") for k in self.group.averaged_models() if self.is_finished]
        endings = {"last": "", "best": "-best", "ema": "-ema"}

        def write() -> None:
            self._check_folder()
            for k, which in due:
                self.publish(k, which, folder / f"{k}-{names[k]}{endings[which]}")

        on_main_process(write)

    def _notify(self, event: str, *args: Any) -> None:
        """Calls a method of every callback; an error of one ends all processes."""
        on_main_process(lambda: [getattr(callback, event)(*args) for callback in self.callbacks])

    def _notify_evaluated(self, record: Record) -> None:
        """Calls `on_evaluate` of every callback; where one ends the training, the record says so on every process."""

        def notify() -> None:
            for callback in self.callbacks:
                if callback.on_evaluate(record):
                    record["stopped"] = True

        on_main_process(notify)
        stopped = torch.tensor(float("stopped" in record), device=self.accelerator.device)
        if all_reduce_sum(stopped).item():
            record["stopped"] = True


def seed_step(seed: int, step: int, process: int) -> None:
    """Makes dropout and the like a function of (seed, step, process): no generator state needs saving."""
    value = (seed * 1_000_003 + step * 8191 + process) % 2**32
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
