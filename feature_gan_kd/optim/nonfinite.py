"""Losses and gradients that are not finite: found without waiting for the device, counted, and made harmless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class SkippedSteps:
    """What was found so far.

    Attributes:
        skipped: updates that changed nothing.
        longest: the most of them in a row.
        where: the losses and gradients concerned, those concerned most often first.
    """

    skipped: int
    longest: int
    where: list[str]


class NonFiniteGuard:
    """Counts, on the device, the updates in which a loss or a gradient was not finite.

    All processes see the same losses and gradients, those of the whole batch, and so come to the same answer.
    """

    def __init__(self) -> None:
        # Updates skipped, those in a row now, and the most in a row.
        self.rows: Tensor | None = None
        # By the names that were looked at, which differ where not every update compares maps.
        self.counts: dict[tuple[str, ...], Tensor] = {}
        # By the kind of update and the places of the gradients that there are.
        self._owners: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def look(
        self,
        losses: Mapping[str, Tensor],
        gradients: Mapping[str, Gradients],
        owners: Mapping[str, Sequence[str]],
    ) -> Tensor:
        """Whether anything is not finite, as a scalar 0 or 1 (float32) on the device.

        Args:
            losses: scalars by name.
            gradients: by kind of update.
            owners: by kind of update the name of the part that each gradient belongs to.
        """
        flags = [~torch.stack(list(losses.values())).isfinite()]
        names = list(losses)
        for kind, values in gradients.items():
            present = {i: value for i, value in enumerate(values) if value is not None}
            bad = ~_largest(list(present.values())).isfinite()
            parts = list(dict.fromkeys(owners[kind]))
            key = kind, tuple(present)
            if key not in self._owners:
                places = [parts.index(owners[kind][i]) for i in present]
                self._owners[key] = torch.tensor(places, device=bad.device)
            count = torch.zeros(len(parts), dtype=torch.float32, device=bad.device).index_add_(
                0, self._owners[key], bad.float()
            )
            flags.append(count > 0)
            names += [f"gradient of the {kind} loss in {part}" for part in parts]
        found = torch.cat(flags)
        skipped = found.any()
        self._count(tuple(names), found, skipped)
        return skipped.float()

    def report(self) -> SkippedSteps:
        """What was found so far; waits for the device."""
        if self.rows is None:
            return SkippedSteps(0, 0, [])
        total, _, longest = self.rows.tolist()
        by_name: Counter[str] = Counter()
        for names, counts in self.counts.items():
            by_name.update(dict(zip(names, counts.tolist(), strict=True)))
        return SkippedSteps(total, longest, [name for name, count in by_name.most_common() if count])

    def tensors(self) -> list[Tensor]:
        """What is counted in, each (numbers,), on the device; they stay where they are."""
        return [*([] if self.rows is None else [self.rows]), *self.counts.values()]

    def _count(self, names: tuple[str, ...], found: Tensor, skipped: Tensor) -> None:
        if self.rows is None:
            self.rows = torch.zeros(3, dtype=torch.int64, device=found.device)
        if names not in self.counts:
            self.counts[names] = torch.zeros(len(names), dtype=torch.int64, device=found.device)
        total, in_row, longest = self.rows.unbind()
        in_row = (in_row + 1) * skipped
        # In place: a recorded update finds them where they were.
        self.rows.copy_(torch.stack([total + skipped, in_row, torch.maximum(longest, in_row)]))
        self.counts[names].add_(found)


class BufferSnapshot:
    """The buffers of modules as they are before an update, to be put back if it is skipped.

    Those of models are running statistics, those of discriminators the singular vectors of a spectral norm.

    Args:
        modules: whose buffers.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for module in modules:
            for buffer in module.buffers():
                self.groups.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self.before = {key: _flat(buffers) for key, buffers in self.groups.items()}

    @torch.no_grad()
    def restore(self, skipped: Tensor) -> None:
        """Puts them back where `skipped`, a scalar on the device, is not zero."""
        for key, buffers in self.groups.items():
            kept = torch.where(skipped.to(key[0]) > 0, self.before[key], _flat(buffers))
            pieces = torch.split(kept, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(
                [buffer.data for buffer in buffers],
                [piece.view(buffer.shape) for piece, buffer in zip(pieces, buffers, strict=True)],
            )


def step_if_finite(skipped: Tensor, optimizer: Optimizer) -> None:
    """Steps an optimiser unless `skipped`, a scalar 0 or 1, is 1.

    Fused optimisers read it on the device, as under a gradient scaler; for others it is fetched, and for the first
    step, since fused SGD would leave its momentum unwritten.
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if fused and has_state(optimizer):
        reader: Any = optimizer
        reader.grad_scale, reader.found_inf = None, skipped
        try:
            optimizer.step()
        finally:
            del reader.grad_scale, reader.found_inf
    elif not skipped:
        optimizer.step()


def has_state(optimizer: Optimizer) -> bool:
    """Whether an optimiser has all the state that it keeps; SGD without momentum keeps none."""
    return bool(optimizer.state) or all(group.get("momentum") == 0 for group in optimizer.param_groups)


def _largest(values: list[Tensor]) -> Tensor:
    """The largest magnitude in each tensor, float32: it does not overflow, as a sum of squares would."""
    if values[0].is_cuda:
        return torch.stack([size.float() for size in torch._foreach_norm(values, float("inf"))])
    # That norm takes a CPU 17 times as long as the two ends, which are found in the order of memory.
    ends = [value.permute(sorted(range(value.ndim), key=value.stride, reverse=True)).aminmax() for value in values]
    low, high = (torch.stack([end[side].float() for end in ends]) for side in (0, 1))
    return torch.maximum(-low, high)


def _flat(buffers: Sequence[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])
