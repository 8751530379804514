"""Evaluates models side by side, in one pass over the images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feature_gan_kd.models.outputs import logits_of
from feature_gan_kd.models.tapped_model import evaluating
from feature_gan_kd.training.neighbours import classify_among
from feature_gan_kd.training.scores import Evaluation, ScoreCounts
from feature_gan_kd.utils.errors import UserError

OnFirstBatch = Callable[[Tensor, Tensor, list[Tensor]], None]
"""Is given the images, the labels and the logits of all models, of the first batch that has images."""


@dataclass(frozen=True)
class Processes:
    """How the processes put their parts together; one process alone has everything.

    Attributes:
        all_reduce: sums a tensor over the processes.
        gather_rows: the rows of all processes, and the position of the first of this one.
    """

    all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums
    gather_rows: Callable[[Tensor], tuple[Tensor, int]] = lambda rows: (rows, 0)


def evaluate(
    teams: Sequence[Sequence[nn.Module]],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    encoders: Collection[nn.Module] = (),
    processes: Processes | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    after_batch: Callable[[], None] = lambda: None,
    on_first_batch: OnFirstBatch | None = None,
    device: torch.device | None = None,
) -> list[Evaluation]:
    """Evaluates teams of models.

    Args:
        teams: of modules that map images (batch, channels, height, width) to logits; each team has its own ensemble. A
            module of several teams is asked once.
        batches: images and labels (batch,), this process's share, which may be empty.
        num_classes: size of the logits; 0 where there are encoders alone: then the labels tell.
        encoders: those of the modules that give features (batch, features) in place of logits. They answer by the
            nearest neighbours of each image among all the others, see `classify_among`. An ensemble is one of
            classifiers, if there are any.
        processes: how several processes put their parts together; None for one.
        autocast: makes the context in which forward passes run.
        after_batch: is called after every batch.
        on_first_batch: is given the first batch with the logits (batch, classes) of the first team.
        device: of the models.

    Returns:
        The result of each team, the same on every process.

    Raises:
        UserError: where there are no images, or a model gives no logits.
    """
    run = _Run(teams, num_classes, encoders, processes or Processes(), device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in run.models:
            stack.enter_context(evaluating(model))
        for images, labels in batches:
            if len(labels):  # most models fail on an empty batch
                with autocast():
                    run.add(images, labels)
            after_batch()
        if run.features:
            run.add_neighbours()
    if run.first is not None and on_first_batch is not None:
        images, labels, logits = run.first
        on_first_batch(images, labels, [logits[k] for k in run.teams[0]])
    return run.evaluations()


class _Run:
    """One pass: the answers that were counted, and the features of the encoders that wait for those of all images."""

    def __init__(
        self,
        teams: Sequence[Sequence[nn.Module]],
        num_classes: int,
        encoders: Collection[nn.Module],
        processes: Processes,
        device: torch.device | None,
    ) -> None:
        self.models = list(dict.fromkeys(model for team in teams for model in team))
        self.teams = [[self.models.index(model) for model in team] for team in teams]
        self.num_classes = num_classes
        self.processes = processes
        self.device = device
        self.features: dict[int, list[Tensor]] = {k: [] for k, one in enumerate(self.models) if one in encoders}
        self.labels: list[Tensor] = []
        self.first: tuple[Tensor, Tensor, dict[int, Tensor]] | None = None
        self.counts = self._counts(num_classes)

    def _counts(self, classes: int) -> ScoreCounts:
        return ScoreCounts(len(self.models) + len(self.teams), classes, self.device)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Counts the classifiers' answers to one batch, and keeps the encoders' features of it."""
        logits: dict[int, Tensor] = {}
        for k, model in enumerate(self.models):
            # float32: a sum of cross-entropies in bfloat16 would have three digits.
            if k in self.features:
                self.features[k].append(model(images).float())
            else:
                logits[k] = logits_of(model(images), f"model {k}").float()
        self.labels.append(labels)
        self.first = self.first or (images, labels, logits)
        self._count(logits, labels, has_ensemble=True)

    def add_neighbours(self) -> None:
        """Counts the encoders' answers to all images of this process."""
        own_labels = torch.cat(self.labels) if self.labels else torch.zeros(0, dtype=torch.int64, device=self.device)
        gathered, begin = self.processes.gather_rows(own_labels.double()[:, None])
        labels = gathered[:, 0].long()
        if not len(labels):
            return
        if not self.num_classes:
            self.num_classes = int(labels.max()) + 1
            self.counts = self._counts(self.num_classes)
        answers = {}
        for k, parts in self.features.items():
            # A process without images learns the number of features from the others.
            size = torch.tensor([parts[0].shape[1] if parts else 0, bool(parts)], device=self.device).double()
            total, having = self.processes.all_reduce(size).tolist()
            own = torch.cat(parts) if parts else torch.zeros(0, int(total / having), device=self.device)
            everyone, _ = self.processes.gather_rows(own)
            answers[k] = classify_among(everyone, labels, range(begin, begin + len(own)), self.num_classes)
        self._count(answers, own_labels, has_ensemble=len(answers) == len(self.models))
        if self.first is not None:
            images, batch, logits = self.first
            self.first = images, batch, logits | {k: one[: len(batch)] for k, one in answers.items()}

    def _count(self, logits: dict[int, Tensor], labels: Tensor, *, has_ensemble: bool) -> None:
        for k, own in logits.items():
            self.counts.add(k, own, labels)
        for i, team in enumerate(self.teams if has_ensemble else ()):
            members = [logits[k] for k in team if k in logits]
            if members:
                self.counts.add(len(self.models) + i, torch.stack(members).mean(0), labels)

    def evaluations(self) -> list[Evaluation]:
        """The result of each team.

        Raises:
            UserError: where there are no images.
        """
        counts, all_reduce = self.counts, self.processes.all_reduce
        # A process without a share waits here with zeros, for the sums of the others.
        counts.sums, counts.counts = all_reduce(counts.sums), all_reduce(counts.counts)
        if not counts.counts.any():
            raise UserError("evaluation data: it holds no images: give others, or another eval_split")
        scores, class_images = counts.scores()
        return [
            Evaluation([scores[k] for k in team], scores[len(self.models) + i], sum(class_images), class_images)
            for i, team in enumerate(self.teams)
        ]
