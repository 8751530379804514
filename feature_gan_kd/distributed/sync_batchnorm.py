"""Batch normalisation with the statistics of the whole batch, whose images are divided among the processes.

`nn.SyncBatchNorm` does the same, but runs on GPUs only and takes the place of modules in the user's models. It would
also lose what modules derived from `BatchNorm2d` do besides, such as timm's with an activation. Here the modules stay
as they are, and only their call of `F.batch_norm` is replaced while they run.
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

# Whether this process has no images of the present microbatch and runs its models on a dummy batch. A global, because
# the function that replaces `F.batch_norm` is called from inside the user's modules and has no other way to know.
_is_dummy_batch = False


@contextmanager
def with_dummy_batch(
    images: Tensor, labels: Tensor, models: Sequence[nn.Module], *, synchronised: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the images that a process runs its models on, forward and backward: its own, or a dummy batch.

    A process without images in this microbatch must still run its models, because synchronised norms and the reduction
    of gradients are exchanges that every process has to take part in. Most models fail on an empty batch, so it runs
    them on two dummy images. These do not count in any statistics, and the models' buffers are restored afterwards. The
    caller must give their losses zero weight.

    Args:
        images: (microbatch, channels, height, width), this process's share, which may be empty.
        labels: (microbatch,) or (microbatch, classes).
        models: the models that run on the images inside the block.
        synchronised: compute the statistics of the models' batch normalisations over all processes, also when gradient
            checkpointing repeats a forward pass in the backward pass. The modules' `forward` is overridden inside the
            block only.

    Yields:
        The images and labels to use.

    Raises:
        UserError: if a model cannot train on a single image.
    """
    global _is_dummy_batch
    synchronised = synchronised and world_size() > 1
    with ExitStack() as stack:
        if synchronised:
            for norm in _training_norms(models):
                stack.enter_context(_override_forward(norm))
        if len(images):
            with _explain_single_image() if len(images) == 1 else nullcontext():
                yield images, labels
            return
        kept = [(buffer, buffer.clone()) for buffer in _buffers_changed_by_dummy(models, synchronised)]
        # Two images, since norms need two values; not constant, since dividing by a deviation of 0 gives NaN gradients.
        shape = (2, *images.shape[1:])
        dummy = torch.linspace(-1, 1, math.prod(shape)).to(images).view(shape)
        _is_dummy_batch = True
        try:
            yield dummy, labels.new_zeros((2, *labels.shape[1:]))
        finally:
            _is_dummy_batch = False
            for buffer, value in kept:
                # Through .data: autograd may have saved the buffer, and would refuse a backward pass after the change.
                buffer.data.copy_(value)


def runs_dummy_batch() -> bool:
    """Whether this process has no images of the present microbatch, and runs its models on dummy ones."""
    return _is_dummy_batch


def check_batchnorm_batches(models: Sequence[nn.Module], images: int, *, synchronised: bool) -> None:
    """Checks before training that batch normalisation gets more than one image.

    Args:
        models: that will be trained.
        images: number of images that a process runs through them at a time.
        synchronised: statistics are computed over all processes.

    Raises:
        UserError: where a batch normalisation would normalise a single image.
    """
    synchronised = synchronised and world_size() > 1
    if images < 2 and not synchronised and any(isinstance(m, _BatchNorm) for one in models for m in one.modules()):
        raise UserError(
            "batch_size: it leaves one image at a time for a process, and batch normalisation cannot train on one: "
            "take a larger size, fewer grad_accum_steps, or sync_batchnorm on several processes"
        )


@contextmanager
def _explain_single_image() -> Iterator[None]:
    """Turns torch's error about a single value per channel into one line with remedies."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:  # from torch's batch normalisation, for a map of 1x1
        raise UserError(
            f"batch_size: a process has one image of this batch or microbatch, which is too few ({error}): "
            "take another size, fewer grad_accum_steps, or sync_batchnorm"
        ) from error


def synchronised_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """Normalises like `F.batch_norm` in training, with the statistics of the batch of all processes.

    Gradients flow through the statistics to the images of all processes.

    Args:
        x: (share, channels, ...), this process's share of the batch.
        weight: (channels,) or None.
        bias: (channels,) or None.
        eps: added to the variance.
        running_mean: (channels,), moved in place by `momentum` towards the mean of the whole batch.
        running_var: likewise, towards the unbiased variance.
        momentum: in [0, 1].

    Returns:
        The normalised share, of the shape of `x`.
    """
    mean, variance, count = _batch_statistics(x.detach())
    # Before the output is computed: gradient checkpointing stops its second forward pass once it has what it needs, and
    # must move the running statistics again, as it does with torch's own batch normalisation.
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        unbiased = variance * (count / (count - 1).clamp(min=1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    output: Tensor = _SynchronisedBatchNorm.apply(x, weight, bias, mean, torch.rsqrt(variance + eps), count)
    return output


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (channels,) of the whole batch, and its number of values per channel (a scalar).

    Every rank sends its count, mean and variance; all combine them (Chan et al. 1979). Adding up squares instead
    would lose a small variance to rounding where the mean is large.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, _reduced_dimensions(x), correction=0)
    count = mean.new_full((1,), 0 if _is_dummy_batch else x.numel() // x.shape[1])
    # Sum of a table in which each rank fills its own row: an all-gather by one all-reduce.
    table = mean.new_zeros(world_size(), 1 + 2 * len(mean))
    table[rank()] = torch.cat([count, mean, variance])
    counts, means, variances = torch.split(all_reduce_sum(table), [1, len(mean), len(mean)], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean).square())).sum(0) / total, total


class _SynchronisedBatchNorm(torch.autograd.Function):
    """The normalisation, and its gradient through mean and variance.

    An output depends on all images of the batch through mean and variance, so the gradient of an image needs two sums
    over the whole batch: that of the output's gradient, and that of its product with the normalised values. One
    all-reduce in the backward pass adds both up over all processes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, count: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.has_bias, ctx.is_dummy_batch = bias is not None, _is_dummy_batch
        normal = (x - _per_channel(mean, x)) * _per_channel(inverse if weight is None else inverse * weight, x)
        return (normal if bias is None else normal + _per_channel(bias, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)
        normal = (x - _per_channel(mean, x)) * _per_channel(inverse, x)
        axes = _reduced_dimensions(x)
        # Of this process alone they are the gradients of bias and weight, which the caller adds up with all others.
        own = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        shift, scale = all_reduce_sum(own.clone()) / count
        if not ctx.is_dummy_batch:  # dummy images had no part in mean and variance
            gradient = gradient - _per_channel(shift, x) - normal * _per_channel(scale, x)
        gradient = gradient * _per_channel(inverse if weight is None else inverse * weight, x)
        own_weight = None if weight is None else own[1].to(weight.dtype)
        return gradient.to(x.dtype), own_weight, own[0] if ctx.has_bias else None, None, None, None


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshapes values per channel to broadcast over x."""
    return values.view(1, -1, *(1,) * (x.ndim - 2))


def _reduced_dimensions(x: Tensor) -> list[int]:
    """All dimensions of x but that of the channels."""
    return [0, *range(2, x.ndim)]


@contextmanager
def _override_forward(norm: nn.Module) -> Iterator[None]:
    """Makes the norm's `forward` use `synchronised_batch_norm` inside the block; keeps an override of the user's."""
    overridden = norm.__dict__.get("forward")
    forward: Callable[[Tensor], Tensor] = norm.forward

    def synchronised_forward(x: Tensor) -> Tensor:
        with _BatchNormReplaced():
            return forward(x)

    norm.__dict__["forward"] = synchronised_forward
    try:
        yield
    finally:
        del norm.__dict__["forward"]
        if overridden is not None:
            norm.__dict__["forward"] = overridden


class _BatchNormReplaced(TorchFunctionMode):
    """Replaces the call of `F.batch_norm` inside a module's own `forward`.

    A `TorchFunctionMode` intercepts this one call. All else that `forward` does stays the module's own code: momentum,
    counters, and in derived classes activation and dropout. A replaced `forward` would have to copy that code.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if function is F.batch_norm and named.get("training"):
            x, running_mean, running_var = args  # positional and named as `F.batch_norm` passes them on
            running = running_mean, running_var, named["momentum"]
            return synchronised_batch_norm(x, named["weight"], named["bias"], named["eps"], *running)
        return function(*args, **named)


def _training_norms(models: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yields the batch normalisations that use the statistics of the batch."""
    for model in models:
        for module in model.modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                yield module


def _buffers_changed_by_dummy(models: Sequence[nn.Module], synchronised: bool) -> Iterator[Tensor]:
    """Yields the buffers that a dummy batch would change: all but those of synchronised norms, which ignore it."""
    for model in models:
        for module in model.modules():
            if not (synchronised and isinstance(module, _BatchNorm)):
                yield from module.buffers(recurse=False)
