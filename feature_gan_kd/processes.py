"""What several processes share: sums of gradients, averages of buffers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from feature_gan_kd.errors import UserError


def process_count() -> int:
    """The number of processes that train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The value added up over all processes, in place."""
    if process_count() > 1:
        torch.distributed.all_reduce(value)
    return value


class _Sum(torch.autograd.Function):
    """All-reduce whose backward is one too: every process's loss depends on every process's value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


def sum_with_gradient(value: Tensor) -> Tensor:
    """The value added up over all processes; gradients flow back to all of them."""
    total: Tensor = _Sum.apply(value)
    return total


def reduce_gradients(gradients: Sequence[Tensor | None]) -> None:
    """Adds gradients up over all processes, in place, as one flat bucket per type.

    The project reduces by itself because `DistributedDataParallel` is silent and wrong about a second gradient of
    one forward pass: it leaves it unequal across processes.
    """
    if process_count() == 1:
        return
    present = [gradient for gradient in gradients if gradient is not None]
    for dtype in sorted({gradient.dtype for gradient in present}, key=str):
        bucket = [gradient for gradient in present if gradient.dtype is dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        for gradient, summed in zip(bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(summed.view(gradient.shape))


def average_buffers(networks: Iterable[nn.Module]) -> None:
    """Makes floating-point buffers (batch normalisation's running statistics) equal: their mean over processes."""
    if process_count() == 1:
        return
    for network in networks:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                torch.distributed.all_reduce(buffer)
                buffer /= process_count()


def copy_from_first(modules: Iterable[nn.Module]) -> None:
    """Gives every process the first one's parameters and buffers."""
    if process_count() == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(tensor.data, src=0)


def checked(accelerator: Accelerator) -> Accelerator:
    """The accelerator, if the method can be trained with it.

    Raises:
        UserError: for DeepSpeed, FSDP and the like, and for fp16.
    """
    unfit = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM, DistributedType.XLA)
    if accelerator.distributed_type in unfit:
        raise UserError(
            f"accelerate: {accelerator.distributed_type.value} takes one model and one gradient per step, the method "
            "needs several of both: launch with plain multi-GPU or multi-CPU"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"accelerate: mixed precision {accelerator.mixed_precision} is not supported, allowed are no and bf16: "
            "fp16 would need a loss scale per gradient"
        )
    return accelerator
