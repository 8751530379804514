"""Batch normalisation by the statistics of a whole batch that is spread over processes.

`nn.SyncBatchNorm` does the same on GPUs alone, and would take the place of modules in the user's models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from feature_gan_kd.distributed.collectives import all_reduce_sum, rank, world_size
from feature_gan_kd.utils.errors import UserError

# Whether the images that this process shows its models only stand in for those it has not.
_dummy_batch = False


@contextmanager
def with_dummy_batch(
    images: Tensor, labels: Tensor, models: Sequence[nn.Module], *, synchronised: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a process shows its models, forward and backward, so that they exchange what all processes exchange.

    That are its images. A process that has none shows two made-up ones, since models in general fail on an empty
    batch: they count in no statistics and leave the models' buffers as they were; the caller must weigh their
    losses with zero.

    Args:
        images: (part, channels, height, width), this process's share, which may be empty.
        labels: (part,) or (part, classes).
        models: that they are shown to.
        synchronised: the batch normalisations of the models take their statistics over all processes; it holds for
            what a gradient checkpoint repeats in the backward pass, too. The modules are not edited: their `forward`
            is overridden inside alone.

    Yields:
        Images and labels to show.

    Raises:
        UserError: where a model cannot train on one image alone.
    """
    global _dummy_batch
    together = synchronised and world_size() > 1
    with ExitStack() as stack:
        if together:
            for norm in _norms(models):
                stack.enter_context(_synchronised(norm))
        if len(images):
            with _alone() if len(images) == 1 else nullcontext():
                yield images, labels
            return
        kept = [(buffer, buffer.clone()) for buffer in _own_buffers(models, together)]
        size = (2, *images.shape[1:])
        shown = torch.linspace(-1, 1, math.prod(size))  # not constant: norms of constants have no gradient
        _dummy_batch = True
        try:
            yield shown.to(images).view(size), labels.new_zeros((2, *labels.shape[1:]))
        finally:
            _dummy_batch = False
            for buffer, value in kept:
                buffer.data.copy_(value)  # through .data: the backward pass may have saved it


def check_batchnorm_batches(models: Sequence[nn.Module], images: int, *, synchronised: bool) -> None:
    """Looks before training whether batch normalisation will have a batch.

    Args:
        models: that are to be trained.
        images: that a process shows them at a time.
        synchronised: the statistics are taken over all processes.

    Raises:
        UserError: where it would normalise one image by itself.
    """
    together = synchronised and world_size() > 1
    if images < 2 and not together and any(isinstance(m, _BatchNorm) for one in models for m in one.modules()):
        raise UserError(
            "batch_size: it leaves one image at a time for a process, and batch normalisation cannot train on one: "
            "take a larger size, fewer grad_accum_steps, or sync_batchnorm on several processes"
        )


@contextmanager
def _alone() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except ValueError as error:  # torch's batch normalisation, of a map of 1x1
        raise UserError(
            f"batch_size: a process has one image of this batch or of this part of it, which is too few ({error}): "
            "take another size, fewer grad_accum_steps, or sync_batchnorm"
        ) from error


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """Batch normalisation in training, over all processes; gradients flow through the statistics to all of them.

    Args:
        x: (batch, channels, ...), this process's share.
        weight: (channels,) or None.
        bias: (channels,) or None.
        eps: added to the variance.
        running_mean: (channels,), moved by `momentum` towards the mean of the whole batch, in place.
        running_var: likewise, towards the unbiased variance.
        momentum: in [0, 1].

    Returns:
        The normalised share.
    """
    mean, variance, count = _statistics(x.detach())
    # Before the answer: where a gradient checkpoint repeats this it ends there, and torch's own moves twice, too.
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        unbiased = variance * (count / (count - 1).clamp(min=1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    answer: Tensor = _Normalise.apply(x, weight, bias, mean, torch.rsqrt(variance + eps), count)
    return answer


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (channels,) of the whole batch, and its number of values per channel (a scalar)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, _all_but_channels(x), correction=0)
    count = mean.new_full((1,), 0 if _dummy_batch else x.numel() // x.shape[1])
    every = mean.new_zeros(world_size(), 1 + 2 * len(mean))
    every[rank()] = torch.cat([count, mean, variance])
    counts, means, variances = torch.split(all_reduce_sum(every), [1, len(mean), len(mean)], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean).square())).sum(0) / total, total


class _Normalise(torch.autograd.Function):
    """One all-reduce in the backward pass: every process's answers depend on every process's images."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, count: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.has_bias, ctx.dummy_batch = bias is not None, _dummy_batch
        normal = (x - _along(mean, x)) * _along(inverse if weight is None else inverse * weight, x)
        return (normal if bias is None else normal + _along(bias, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)
        normal = (x - _along(mean, x)) * _along(inverse, x)
        axes = _all_but_channels(x)
        own = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        shift, scale = all_reduce_sum(own.clone()) / count
        if not ctx.dummy_batch:
            gradient = gradient - _along(shift, x) - normal * _along(scale, x)
        gradient = gradient * _along(inverse if weight is None else inverse * weight, x)
        own_weight = None if weight is None else own[1].to(weight.dtype)
        return gradient.to(x.dtype), own_weight, own[0] if ctx.has_bias else None, None, None, None


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Values per channel in a shape that spreads over x."""
    return values.view(1, -1, *(1,) * (x.ndim - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


@contextmanager
def _synchronised(norm: nn.Module) -> Iterator[None]:
    overridden = norm.__dict__.get("forward")
    forward: Callable[[Tensor], Tensor] = norm.forward

    def over_processes(x: Tensor) -> Tensor:
        with _OverProcesses():
            return forward(x)

    norm.__dict__["forward"] = over_processes
    try:
        yield
    finally:
        del norm.__dict__["forward"]
        if overridden is not None:
            norm.__dict__["forward"] = overridden


class _OverProcesses(TorchFunctionMode):
    """Replaces `F.batch_norm` alone: a module's momentum, counters, activation and drop-out stay its own."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if function is F.batch_norm and named.get("training"):
            x, running_mean, running_var = args  # as `F.batch_norm` passes them on
            moving = running_mean, running_var, named["momentum"]
            return normalise(x, named["weight"], named["bias"], named["eps"], *moving)
        return function(*args, **named)


def _norms(models: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The batch normalisations that take the statistics of the batch."""
    for model in models:
        for module in model.modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                yield module


def _own_buffers(models: Sequence[nn.Module], together: bool) -> Iterator[Tensor]:
    """Buffers that made-up images would change: all but those of synchronised norms, which do not count them."""
    for model in models:
        for module in model.modules():
            if not (together and isinstance(module, _BatchNorm)):
                yield from module.buffers(recurse=False)
