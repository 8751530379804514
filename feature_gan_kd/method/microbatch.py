"""The parts of a batch that go through the models one after the other, on every process alike (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feature_gan_kd.distributed.collectives import all_reduce_sum, rank, world_size
from feature_gan_kd.distributed.sync_batchnorm import with_dummy_batch
from feature_gan_kd.method.losses import NO_LABEL


@dataclass(frozen=True)
class Microbatch:
    """Images that go through all models at once, and what they count in the update.

    Attributes:
        images: (part, channels, height, width).
        labels: (part,) or (part, classes).
        count: number of images; 0 where the images are made up because this process has none.
        global_batch_size: scalar, images of the whole update, over all processes and microbatches.
        per_label: scalar, images of the whole update for each that has a label; 1 where all have one.
        is_last: no microbatch follows in this update.
    """

    images: Tensor
    labels: Tensor
    count: int
    global_batch_size: Tensor
    per_label: Tensor
    is_last: bool

    def weigh(self, mean: Tensor) -> Tensor:
        """Multiplies a mean over this microbatch, a scalar, by its share of the batch: their sum is the whole mean.

        A dummy batch has no share, so its gradients are zero.
        """
        return mean * (self.count / self.global_batch_size.to(mean.dtype))


def split_batch(
    images: Tensor, labels: Tensor, models: Sequence[nn.Module], count: int, *, sync_batchnorm: bool
) -> Iterator[AbstractContextManager[Microbatch]]:
    """Splits this process's share of a batch; every process has as many microbatches, since they exchange in each.

    Args:
        images: (batch, channels, height, width), this process's share, which may be empty.
        labels: (batch,), -1 for an image without a label, or (batch, classes).
        models: whose batch statistics a dummy batch must not change.
        count: number of microbatches.
        sync_batchnorm: batch normalisation takes its statistics over all processes.

    Yields:
        A context for each microbatch. Forward and backward passes must run inside it.

    Raises:
        UserError: where another process is gone.
    """
    # Filled on the device: a copy from the host would wait for it.
    given = torch.full((), float(len(images)), device=images.device)
    labelled = given if labels.ndim == 2 else (labels != NO_LABEL).sum(dtype=given.dtype)
    global_batch_size, global_labels = all_reduce_sum(torch.stack([given, labelled])).unbind()
    per_label = global_batch_size / global_labels.clamp_min(1)
    slices = microbatch_slices(len(images), count, images.device)
    for number, chosen in enumerate(slices, start=1):
        own, own_labels = images[chosen], labels[chosen]
        sizes = global_batch_size, per_label
        yield _shown(own, own_labels, models, sizes, number == len(slices), sync_batchnorm)


@contextmanager
def _shown(
    images: Tensor,
    labels: Tensor,
    models: Sequence[nn.Module],
    sizes: tuple[Tensor, Tensor],
    is_last: bool,
    sync_batchnorm: bool,
) -> Iterator[Microbatch]:
    with with_dummy_batch(images, labels, models, synchronised=sync_batchnorm) as (shown_images, shown_labels):
        yield Microbatch(shown_images, shown_labels, len(images), *sizes, is_last)


def microbatch_slices(images: int, parts: int, device: torch.device) -> list[slice]:
    """Divides a batch into microbatches, and returns which images of this rank's share belong to each.

    Microbatch k holds the images k, k + parts, k + 2 * parts, ... of the whole batch, counted through the shares of all
    ranks. It holds the same images whatever the world size. All ranks return equally many slices, of which some may be
    empty.

    Args:
        images: number of images in this rank's share of the batch.
        parts: number of microbatches; a batch with fewer images is divided into single images.
        device: on which the ranks exchange the sizes of their shares. Waits for the device.

    Raises:
        UserError: if another process is gone.
    """
    if parts == 1:
        return [slice(None)]
    shares = [images]
    if world_size() > 1:
        sizes = torch.zeros(world_size(), dtype=torch.int64, device=device)
        sizes[rank()] = images
        shares = all_reduce_sum(sizes).tolist()
    return share_slices(sum(shares[: rank()]), min(parts, sum(shares)))


def share_slices(before: int, parts: int) -> list[slice]:
    """The microbatches of one rank's share of a batch, see `microbatch_slices`.

    Args:
        before: number of images in the shares of the ranks before it.
        parts: number of microbatches, at most that of all images.
    """
    return [slice((part - before) % parts, None, parts) for part in range(parts)]
