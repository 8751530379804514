"""Skips updates whose losses or gradients are not finite, and counts them, without waiting for the device (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feature_gan_kd.optim.gradients import OptimizerGroup


@dataclass(frozen=True)
class SkippedSteps:
    """The updates so far that changed nothing.

    Attributes:
        skipped: how many.
        longest: the longest series of them in a row; what merely overflowed under a large loss scale does not count.
        where: the losses and gradients that were not finite, the most frequent first.
    """

    skipped: int
    longest: int
    where: list[str]


class NonFiniteGuard:
    """Finds the updates in which a loss or a gradient is not finite, and counts them on the device.

    All processes see the same losses and gradients, those of the whole batch, and so they skip the same updates.

    Under fp16 a gradient overflows where the scale of its loss is too large. Such an update is skipped like any other,
    and its scale halved after it; but it does not count in a row while the scale is above 1, since it says nothing of
    the training.
    """

    def __init__(self) -> None:
        # int64 (3,): updates skipped, those in a row now, and the longest such row.
        self.totals: Tensor | None = None
        # By the names that were checked: not every update compares feature maps.
        self.counts: dict[tuple[str, ...], Tensor] = {}
        # Which owner each gradient belongs to, as a tensor: made once, since a copy from the host would wait.
        self._owner_indices: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def check(self, losses: Mapping[str, Tensor], groups: Sequence[OptimizerGroup]) -> Tensor:
        """Checks one update before any optimiser steps.

        Args:
            losses: scalars by name, of the whole batch.
            groups: with gradients of the whole batch, unscaled.

        Returns:
            1 where anything is not finite, else 0: a scalar (float32) on the device.
        """
        flags = [~torch.stack(list(losses.values())).isfinite()]
        lasting = []
        names = list(losses)
        for group in groups:
            present = {i: value for i, value in enumerate(group.gradients) if value is not None}
            bad = ~_largest(list(present.values())).isfinite()
            owners = list(dict.fromkeys(group.owners))
            key = group.name, tuple(present)
            if key not in self._owner_indices:
                indices = [owners.index(group.owners[i]) for i in present]
                self._owner_indices[key] = torch.tensor(indices, device=bad.device)
            count = torch.zeros(len(owners), dtype=torch.float32, device=bad.device)
            flags.append(count.index_add_(0, self._owner_indices[key], bad.float()) > 0)
            if group.scaler.is_enabled():
                lasting.append(bad.any() & (group.scaler.scale(torch.ones_like(count[0])) <= 1))
            names += [f"gradient of the {group.kind} loss in {owner}" for owner in owners]
        found = torch.cat(flags)
        nonfinite = found.any()
        counted = torch.stack([flags[0].any(), *lasting]).any() if lasting else nonfinite
        self._count(tuple(names), found, nonfinite, counted)
        return nonfinite.float()

    def report(self) -> SkippedSteps:
        """Reports the updates skipped so far; waits for the device."""
        if self.totals is None:
            return SkippedSteps(0, 0, [])
        total, _, longest = self.totals.tolist()
        by_name: Counter[str] = Counter()
        for names, counts in self.counts.items():
            by_name.update(dict(zip(names, counts.tolist(), strict=True)))
        return SkippedSteps(total, longest, [name for name, count in by_name.most_common() if count])

    def tensors(self) -> list[Tensor]:
        """The counters (n,) on the device. They keep their addresses, as a recorded CUDA graph requires."""
        return [*([] if self.totals is None else [self.totals]), *self.counts.values()]

    def _count(self, names: tuple[str, ...], found: Tensor, nonfinite: Tensor, counted: Tensor) -> None:
        if self.totals is None:
            self.totals = torch.zeros(3, dtype=torch.int64, device=found.device)
        if names not in self.counts:
            self.counts[names] = torch.zeros(len(names), dtype=torch.int64, device=found.device)
        total, in_row, longest = self.totals.unbind()
        in_row = (in_row + counted) * nonfinite
        # In place: a recorded CUDA graph writes to the addresses that it was recorded with.
        self.totals.copy_(torch.stack([total + nonfinite, in_row, torch.maximum(longest, in_row)]))
        self.counts[names].add_(found)


class BufferSnapshot:
    """The buffers of modules before an update, to restore them if the update is skipped.

    The buffers of models are running statistics, which the forward pass has changed by the time a loss is found not to
    be finite. Discriminators of your own may have buffers, too.

    Args:
        modules: whose buffers.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        # One flat tensor per device and type: one kernel in place of one per buffer.
        self.groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for module in modules:
            for buffer in module.buffers():
                self.groups.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self.before = {key: _flat(buffers) for key, buffers in self.groups.items()}

    @torch.no_grad()
    def restore(self, condition: Tensor) -> None:
        """Restores the buffers where `condition`, a scalar 0 or 1 on the device, is 1; nothing is read on the host."""
        for key, buffers in self.groups.items():
            kept = torch.where(condition.to(key[0]) > 0, self.before[key], _flat(buffers))
            pieces = torch.split(kept, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(
                [buffer.data for buffer in buffers],
                [piece.view(buffer.shape) for piece, buffer in zip(pieces, buffers, strict=True)],
            )


def _largest(values: list[Tensor]) -> Tensor:
    """The largest magnitude in each tensor, as float32. Unlike a sum of squares it does not overflow."""
    if values[0].is_cuda:
        return torch.stack([size.float() for size in torch._foreach_norm(values, float("inf"))])
    # On a CPU that norm takes 17 times as long as minimum and maximum in the order of memory.
    ends = [value.permute(sorted(range(value.ndim), key=value.stride, reverse=True)).aminmax() for value in values]
    low, high = (torch.stack([end[side].float() for end in ends]) for side in (0, 1))
    return torch.maximum(-low, high)


def _flat(buffers: Sequence[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
