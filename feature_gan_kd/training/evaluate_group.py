"""Evaluates the models of a group, their ensemble and their averaged weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from feature_gan_kd.data import ImageSource, evaluation_batches
from feature_gan_kd.distributed.collectives import all_reduce_sum
from feature_gan_kd.distributed.whole_batch import gather_rows
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.training.evaluate import OnFirstBatch, Processes, evaluate
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.training.scores import Evaluation

BATCH_SIZE = 500
"""Images of a process in one batch."""


def evaluate_group(
    group: PeerGroup,
    source: ImageSource,
    after_batch: Callable[[], None] = lambda: None,
    on_first_batch: OnFirstBatch | None = None,
) -> Evaluation:
    """Evaluates all models, and their averaged weights, on every image of a source; the same on every process.

    A model that does not know the learners' classes answers by the nearest neighbours of its features.

    Args:
        group: the models.
        source: of the images.
        after_batch: is called after every batch.
        on_first_batch: is given the images, labels and logits of the first batch of this process.

    Raises:
        UserError: where there are no images, a model gives no logits, or another process is gone.
    """
    group.average_buffers()
    known = group.provenance.class_names if group.provenance is not None else None
    accelerator = group.accelerator
    batches = evaluation_batches(source, BATCH_SIZE, accelerator.device)
    converted = ((images.to(group.dtype), labels) for images, labels in batches)
    models = [_answering(group, k, module) for k, module in enumerate(group.models)]
    averaged = {k: _answering(group, k, module) for k, module in group.averaged_models().items()}
    teams = [models] + ([[averaged.get(k, model) for k, model in enumerate(models)]] if averaged else [])
    live, *ema = evaluate(
        teams,
        converted,
        group.num_classes or len(known or ()),
        encoders=[one for one in (*models, *averaged.values()) if isinstance(one, _Encoder)],
        processes=Processes(all_reduce_sum, gather_rows),
        autocast=group.autocast,
        after_batch=after_batch,
        on_first_batch=on_first_batch,
        device=accelerator.device,
    )
    if not ema:
        return live
    return dataclasses.replace(live, ema=dataclasses.replace(ema[0], averaged=tuple(averaged)))


class _Encoder(nn.Module):
    """Maps images (batch, channels, height, width) to a model's features (batch, features)."""

    def __init__(self, model: TappedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


def _answering(group: PeerGroup, k: int, module: nn.Module) -> nn.Module:
    """What is asked in an evaluation: a module of model k, with its own or averaged weights, or its features."""
    tapped = group.tapped[k]
    if k in group.classifiers:
        return nn.Sequential(tapped.adapter, module)
    return _Encoder(TappedModel(module, tapped.taps, tapped.name, tapped.adapter, classifies=tapped.classifies))
