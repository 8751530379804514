"""Accuracy per model and of the ensemble."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd.models.taps import evaluating, logits_of
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set gave.

    Attributes:
        accuracy: top-1 in percent, per model.
        loss: mean cross-entropy in nats, per model.
        ensemble: top-1 in percent of the mean of the logits (paper, section 4).
        images: number of images counted.
    """

    accuracy: list[float]
    loss: list[float]
    ensemble: float
    images: int


def evaluate(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    add_up: Callable[[Tensor], Tensor] = lambda sums: sums,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates models side by side, each image through each model once.

    Args:
        models: modules that map images (batch, channels, height, width) to logits.
        batches: images and labels (batch,), this process's share, which may be empty.
        add_up: adds a tensor over the processes.
        autocast: makes the context in which forward passes run.
        between: is called after every batch.

    Returns:
        The same figures on every process.

    Raises:
        UserError: where there is not one image, or a model gives no logits.
    """
    totals: Tensor | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models:
            stack.enter_context(evaluating(model))
        for images, labels in batches:
            if totals is None:
                totals = torch.zeros(1 + 2 * (len(models) + 1), dtype=torch.float64, device=labels.device)
            if len(labels):  # models in general fail on an empty batch
                with autocast():
                    logits = [logits_of(model(images), f"model {k}").float() for k, model in enumerate(models)]
                counted = [labels.new_tensor(len(labels)), *_sums([*logits, torch.stack(logits).mean(0)], labels)]
                totals = totals + torch.stack(counted)
            between()
    if totals is None:
        totals = torch.zeros(1 + 2 * (len(models) + 1), dtype=torch.float64)
    values: list[float] = add_up(totals).tolist()
    count = values[0]
    if count == 0:
        raise UserError("evaluation data: there is not one image in it")
    correct, loss = values[1 : len(models) + 2], values[len(models) + 2 :]
    accuracy = [100 * value / count for value in correct]
    return Evaluation(accuracy[:-1], [value / count for value in loss[:-1]], accuracy[-1], int(count))


def _sums(logits: list[Tensor], labels: Tensor) -> list[Tensor]:
    correct = [(one.argmax(1) == labels).sum() for one in logits]
    return correct + [F.cross_entropy(one, labels, reduction="sum") for one in logits]
