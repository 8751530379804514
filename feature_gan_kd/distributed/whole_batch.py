"""What a loss needs of the images of all processes: their vectors, and statistics with their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.distributed.collectives import all_reduce_sum, rank, world_size
from feature_gan_kd.distributed.sync_batchnorm import runs_dummy_batch


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, in their order, without gradient; dummy images are left out.

    Args:
        rows: (share, values), of this process.

    Returns:
        All rows (batch, values), and the position of this process's first one.

    Raises:
        UserError: where another process is gone.
    """
    rows = rows.detach()
    if world_size() == 1:
        return rows, 0
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = 0 if runs_dummy_batch() else len(rows)
    shares: list[int] = all_reduce_sum(counts).tolist()
    before = sum(shares[: rank()])
    # Sum of a table in which each process fills its own rows: an all-gather of unequal shares by one all-reduce.
    table = rows.new_zeros(sum(shares), rows.shape[1])
    table[before : before + shares[rank()]] = rows[: shares[rank()]]
    return all_reduce_sum(table), before


def channel_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel over the images of all processes and all positions.

    The gradient reaches the maps of this process from the losses of all processes.

    Args:
        maps: (share, channels, height, width).

    Returns:
        Mean and biased variance, (channels,) each.

    Raises:
        UserError: where another process is gone.
    """
    if world_size() == 1:
        return maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)
    weight = 0.0 if runs_dummy_batch() else 1.0
    count = all_reduce_sum(torch.full((), weight * maps.numel() / maps.shape[1], device=maps.device, dtype=maps.dtype))
    mean = _sum_over_processes(weight * maps.sum((0, 2, 3))) / count
    # Not by the mean of the squares: that would lose a small variance to rounding where the mean is large.
    squares = (maps - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3))
    return mean, _sum_over_processes(weight * squares) / count


def _sum_over_processes(value: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(value)
    return total


class _SumOverProcesses(torch.autograd.Function):
    """A sum over the processes, each of which gets the gradients of all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return all_reduce_sum(value.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduce_sum(gradients[0].clone())
