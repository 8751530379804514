"""Evaluates models: accuracy and cross-entropy of each, and accuracy of their ensemble."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd.models.tapped_model import evaluating, logits_of
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a data set.

    Attributes:
        accuracy: top-1 in percent, for each model.
        cross_entropy: mean in nats, for each model.
        ensemble: top-1 in percent of the mean of the logits (paper, section 4).
        images: number of images.
        ema: the same of the models' averaged weights, a model without them as it is; None where no model has them.
    """

    accuracy: list[float]
    cross_entropy: list[float]
    ensemble: float
    images: int
    ema: Evaluation | None = None

    def metrics(self) -> dict[str, float]:
        """The figures of a record, under their full names."""
        averaged = {} if self.ema is None else self.ema._named("eval/ema_")
        return {**self._named("eval/"), **averaged, "eval/images": self.images}

    def _named(self, prefix: str) -> dict[str, float]:
        accuracies = {f"{prefix}accuracy/{k}": value for k, value in enumerate(self.accuracy)}
        losses = {f"{prefix}cross_entropy/{k}": value for k, value in enumerate(self.cross_entropy)}
        return {**accuracies, f"{prefix}accuracy/ensemble": self.ensemble, **losses}


def evaluate(
    teams: Sequence[Sequence[nn.Module]],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    after_batch: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """Evaluates teams of models side by side, in one pass over the images.

    Args:
        teams: of modules that map images (batch, channels, height, width) to logits; each team has its own ensemble. A
            module of several teams is asked once.
        batches: images and labels (batch,), this process's share, which may be empty.
        all_reduce: sums a tensor over the processes.
        autocast: makes the context in which forward passes run.
        after_batch: is called after every batch.

    Returns:
        The result of each team, the same on every process.

    Raises:
        UserError: where there are no images, or a model gives no logits.
    """
    models = list(dict.fromkeys(model for team in teams for model in team))
    positions = [[models.index(model) for model in team] for team in teams]
    columns = len(models) + len(teams)
    totals: Tensor | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models:
            stack.enter_context(evaluating(model))
        for images, labels in batches:
            if totals is None:
                totals = _zeros(columns, labels.device)
            if len(labels):  # most models fail on an empty batch
                with autocast():
                    # float32: a sum of cross-entropies in bfloat16 would have three digits.
                    logits = [logits_of(model(images), f"model {k}").float() for k, model in enumerate(models)]
                ensembles = [torch.stack([logits[k] for k in team]).mean(0) for team in positions]
                counted = [labels.new_tensor(len(labels)), *_sums([*logits, *ensembles], labels)]
                totals = totals + torch.stack(counted)
            after_batch()
    if totals is None:  # this process has no share, but the others wait for its sums
        totals = _zeros(columns, None)
    count, *values = all_reduce(totals).tolist()
    if count == 0:
        raise UserError("evaluation data: it holds no images: give others, or another eval_split")
    accuracy = [100 * value / count for value in values[:columns]]
    losses = [value / count for value in values[columns:]]
    return [
        Evaluation([accuracy[k] for k in team], [losses[k] for k in team], accuracy[len(models) + i], int(count))
        for i, team in enumerate(positions)
    ]


def _zeros(columns: int, device: torch.device | None) -> Tensor:
    """Number of images, then correct answers and summed cross-entropies of each model and each ensemble.

    Sums, not means, so that shares of different sizes count right; float64 counts images exactly.
    """
    return torch.zeros(1 + 2 * columns, dtype=torch.float64, device=device)


def _sums(logits: list[Tensor], labels: Tensor) -> list[Tensor]:
    correct = [(one.argmax(1) == labels).sum() for one in logits]
    return correct + [F.cross_entropy(one, labels, reduction="sum") for one in logits]
