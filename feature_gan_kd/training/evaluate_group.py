"""Evaluates the models of a group, their ensemble and their averaged weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from feature_gan_kd.data import ImageSource, evaluation_batches
from feature_gan_kd.distributed.collectives import all_reduce_sum
from feature_gan_kd.training.evaluate import OnBatch, evaluate
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.training.scores import Evaluation

BATCH_SIZE = 500
"""Images of a process in one batch."""


def evaluate_group(
    group: PeerGroup,
    source: ImageSource,
    after_batch: Callable[[], None] = lambda: None,
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Evaluates all models, and their averaged weights, on every image of a source; the same on every process.

    Args:
        group: the models.
        source: of the images.
        after_batch: is called after every batch.
        on_batch: is given the images, labels and logits of every batch of this process.

    Raises:
        UserError: where there are no images, a model gives no logits, or another process is gone.
    """
    group.average_buffers()
    accelerator = group.accelerator
    batches = evaluation_batches(source, BATCH_SIZE, accelerator.device)
    converted = ((images.to(group.dtype), labels) for images, labels in batches)
    adapters = [model.adapter for model in group.tapped]
    models = [nn.Sequential(adapter, module) for adapter, module in zip(adapters, group.models, strict=True)]
    averaged = {k: nn.Sequential(adapters[k], module) for k, module in group.averaged_models().items()}
    teams = [models] + ([[averaged.get(k, model) for k, model in enumerate(models)]] if averaged else [])
    live, *ema = evaluate(
        teams,
        converted,
        group.num_classes,
        all_reduce=all_reduce_sum,
        autocast=group.autocast,
        after_batch=after_batch,
        on_batch=on_batch,
        device=accelerator.device,
    )
    if not ema:
        return live
    return dataclasses.replace(live, ema=dataclasses.replace(ema[0], averaged=tuple(averaged)))
