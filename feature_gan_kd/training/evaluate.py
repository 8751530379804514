"""Evaluates models side by side, in one pass over the images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from feature_gan_kd.models.tapped_model import evaluating, logits_of
from feature_gan_kd.training.scores import Evaluation, ScoreCounts
from feature_gan_kd.utils.errors import UserError

OnBatch = Callable[[Tensor, Tensor, list[Tensor]], None]
"""Is given the images, the labels and the logits of all models, of each batch that has images."""


def evaluate(
    teams: Sequence[Sequence[nn.Module]],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    after_batch: Callable[[], None] = lambda: None,
    on_batch: OnBatch | None = None,
    device: torch.device | None = None,
) -> list[Evaluation]:
    """Evaluates teams of models.

    Args:
        teams: of modules that map images (batch, channels, height, width) to logits; each team has its own ensemble. A
            module of several teams is asked once.
        batches: images and labels (batch,), this process's share, which may be empty.
        num_classes: size of the logits.
        all_reduce: sums a tensor over the processes.
        autocast: makes the context in which forward passes run.
        after_batch: is called after every batch.
        on_batch: is given every batch with the logits (batch, classes) of the first team.
        device: of the models.

    Returns:
        The result of each team, the same on every process.

    Raises:
        UserError: where there are no images, or a model gives no logits.
    """
    models = list(dict.fromkeys(model for team in teams for model in team))
    positions = [[models.index(model) for model in team] for team in teams]
    counts = ScoreCounts(len(models) + len(teams), num_classes, device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models:
            stack.enter_context(evaluating(model))
        for images, labels in batches:
            if len(labels):  # most models fail on an empty batch
                with autocast():
                    # float32: a sum of cross-entropies in bfloat16 would have three digits.
                    logits = [logits_of(model(images), f"model {k}").float() for k, model in enumerate(models)]
                ensembles = [torch.stack([logits[k] for k in team]).mean(0) for team in positions]
                counts.add([*logits, *ensembles], labels)
                if on_batch is not None:
                    on_batch(images, labels, [logits[k] for k in positions[0]])
            after_batch()
    # A process without a share waits here with zeros, for the sums of the others.
    counts.sums, counts.counts = all_reduce(counts.sums), all_reduce(counts.counts)
    if not counts.counts[0].any():
        raise UserError("evaluation data: it holds no images: give others, or another eval_split")
    scores, class_images = counts.scores()
    return [
        Evaluation([scores[k] for k in team], scores[len(models) + i], sum(class_images), class_images)
        for i, team in enumerate(positions)
    ]
