"""Means of the metrics between two records."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from feature_gan_kd.distributed.collectives import all_reduce_sum


class MetricAverager:
    """Sums of the metrics since the last record; they stay on the device until they are asked for.

    Args:
        sums: where sums go on that a checkpoint holds: by the names of an update's metrics (not every update need have
            the same) float64 `(2 + metrics,)`: number of images, those of updates that were not skipped, then every
            metric times the images it is a mean of; this process's share.
        seconds: already gone.
    """

    def __init__(self, sums: Mapping[tuple[str, ...], Tensor] | None = None, seconds: float = 0.0) -> None:
        self.sums = dict(sums or {})
        self.began = time.perf_counter() - seconds

    def add(self, metrics: Mapping[str, Tensor], images: int) -> None:
        """Adds one step's metrics, scalars: means over this process's `images`, or over those of all processes.

        Those of an update that was skipped (`metrics["skipped"]` is 1) are not counted, besides that it was.
        """
        values = torch.stack([value.double() for value in metrics.values()])
        kept = images * (1 - metrics.get("skipped", values.new_zeros(())).double())
        everything = torch.full_like(kept, images)
        counted = torch.stack([everything if name == "skipped" else kept for name in metrics])
        # A mean over no images, or one of a skipped update, may be no number, but counts nothing.
        weighted = torch.where(counted > 0, values * counted, 0.0)
        added = torch.cat([torch.stack([everything, kept]), weighted])
        names = tuple(metrics)
        self.sums[names] = self.sums[names] + added if names in self.sums else added

    def totals(self, accelerator: Accelerator) -> dict[tuple[str, ...], list[float]]:
        """The sums over all processes.

        Raises:
            UserError: where another process is gone.
        """
        return {
            names: all_reduce_sum(sums.to(accelerator.device, copy=True)).tolist() for names, sums in self.sums.items()
        }

    def means(self, accelerator: Accelerator) -> tuple[dict[str, float], float]:
        """The means over the images of all processes (NaN where all updates were skipped), and images a second.

        Raises as `totals`.
        """
        seen = 0.0
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for names, (images, kept, *values) in self.totals(accelerator).items():
            seen += images
            for name, value in zip(names, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + (images if name == "skipped" else kept)
        means = {name: value / counts[name] if counts[name] else math.nan for name, value in sums.items()}
        return means, seen / (time.perf_counter() - self.began)

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON values; the same on every process. Raises as `totals`."""
        totals = [[list(names), sums] for names, sums in self.totals(accelerator).items()]
        return {"sums": totals, "seconds": time.perf_counter() - self.began}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], accelerator: Accelerator) -> MetricAverager:
        """The inverse of `state`: every process goes on with an equal part of the sums."""
        parts = {
            tuple(names): torch.tensor(sums, dtype=torch.float64, device=accelerator.device) / accelerator.num_processes
            for names, sums in state["sums"]
        }
        return cls(parts, state["seconds"])
