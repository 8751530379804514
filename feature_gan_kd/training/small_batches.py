"""Batches of which a process, or a microbatch, gets one image, found before the training begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from feature_gan_kd.data import ImageSource
from feature_gan_kd.data.batches import rank_slice
from feature_gan_kd.distributed.sync_batchnorm import check_batchnorm_batches
from feature_gan_kd.method.discriminator import BatchStatisticsNorm
from feature_gan_kd.method.microbatch import share_slices
from feature_gan_kd.models.tapped_model import evaluating
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.utils.errors import UserError


def check_batches(group: PeerGroup, images: ImageSource) -> None:
    """Checks that no batch of an epoch leaves a batch normalisation too few images.

    A normal batch must leave each process two images. The last batch of an epoch may be smaller: it may leave one,
    where no norm sees a single value of it. Batches whose size is not known beforehand are not checked.

    Args:
        group: the models.
        images: to train on.

    Raises:
        UserError: for batches of one image, and for too small a share of the normal or the last batch.
    """
    config, processes, accum = group.config, group.accelerator.num_processes, group.step.grad_accum_steps
    sizes = images.batch_sizes(config.batch_size)
    if not sizes:
        return
    if 1 in sizes:
        raise UserError(
            "data: the DataLoader gives single images, on which batch norm cannot train: give larger batches"
        )
    learners = [model for k, model in enumerate(group.models) if k not in group.frozen]
    smallest = sizes[0] // (processes * accum)
    check_batchnorm_batches(learners, smallest, synchronised=config.sync_batchnorm)
    for size in sizes:
        shares = microbatch_sizes(size, accum, processes)
        alone = any(1 in share for share in shares)
        alone_together = any(sum(parts) == 1 for parts in zip(*shares, strict=True))
        if not (alone or alone_together):
            continue
        for kind, applies in (
            (_BatchNorm, alone_together if config.sync_batchnorm and processes > 1 else alone),
            (BatchStatisticsNorm, alone_together),
        ):
            name = _module_with_single_values(group, kind) if applies else None
            if name is not None:
                raise UserError(
                    f"batch_size: a batch of an epoch has {size} images, which leaves one at a time, and a batch "
                    f"normalisation in {name} cannot train on one: take another size, fewer grad_accum_steps, or leave "
                    "images out"
                )


def microbatch_sizes(images: int, parts: int, processes: int) -> list[list[int]]:
    """Returns how many images each process has in each microbatch of a batch, see `microbatch_slices`."""
    parts = min(parts, images)
    sizes = []
    for rank in range(processes):
        share = range(images)[rank_slice(images, rank, processes)]
        sizes.append([len(share[one]) for one in share_slices(share.start, parts)])
    return sizes


def _module_with_single_values(group: PeerGroup, kind: type[nn.Module]) -> str | None:
    """Returns the name of a trained module in which a norm of this kind sees one value per channel of an image."""
    size, device = group.image_size, group.accelerator.device
    for k, model in enumerate(group.modules.tapped):
        if k not in group.frozen:
            images = torch.zeros((2, group.in_chans, size, size), device=device, dtype=group.dtype)
            with _values_seen(model, kind) as seen:
                model.module(model.adapter(images))
            if 1 in seen:
                return model.name
    for connection in group.modules.connections:
        dtype = next((parameter.dtype for parameter in connection.parameters()), torch.float32)
        shapes = connection.learner_shape, connection.source_shape
        own, other = (torch.zeros((2, *shape), device=device, dtype=dtype) for shape in shapes)
        with _values_seen(connection, kind) as seen:
            _, real = connection.maps(own, other)
            if connection.discriminator is not None:
                connection.discriminator(real)
        if 1 in seen:
            return f"the connection {connection.edge}"
    return None


@contextmanager
def _values_seen(module: nn.Module, kind: type[nn.Module]) -> Iterator[list[int]]:
    """Yields a list that gets, at each call of such a norm inside the block, the values per channel and image.

    The module is in evaluation mode inside the block, and the random numbers after it are as if it had not run.
    """
    seen: list[int] = []
    norms = [norm for norm in module.modules() if isinstance(norm, kind)]
    handles = [norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, 0].numel())) for norm in norms]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(module):
            yield seen
    finally:
        for handle in handles:
            handle.remove()
