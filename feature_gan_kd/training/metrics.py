"""Averages the metrics of the updates between two records."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from feature_gan_kd.distributed.collectives import all_reduce_sum
from feature_gan_kd.method.step import AdversarialStep

_OF_LABELS = ("cross_entropy/", "accuracy/")
"""How the names of the metrics begin that are means over the images with a label."""


class MetricAverager:
    """Sums metrics on the device; nothing is read on the host before `means` is called.

    Args:
        sums: where to go on, from a checkpoint: float64 tensors `(3 + metrics,)` by the names of the metrics, since not
            every update has the same. Each holds this process's number of images, that number without skipped updates,
            those of them that have a label, and every metric times the images that it is the mean of.
        seconds: time that the updates in `sums` took.
    """

    def __init__(self, sums: Mapping[tuple[str, ...], Tensor] | None = None, seconds: float = 0.0) -> None:
        self.sums = dict(sums or {})
        self.began = time.perf_counter() - seconds

    def add(self, metrics: Mapping[str, Tensor], images: int, labelled: Tensor | int | None = None) -> None:
        """Adds the metrics of one update.

        A skipped update (`metrics["skipped"]` is 1) counts for `skipped` alone.

        Args:
            metrics: scalars by name: means over this process's images, or over those of all processes.
            images: number of this process's images.
            labelled: number of them that have a label, on any device; None for all.
        """
        values = torch.stack([value.double() for value in metrics.values()])
        kept = images * (1 - metrics.get("skipped", values.new_zeros(())).double())
        everything = torch.full_like(kept, images)
        known = kept if labelled is None else kept / max(images, 1) * labelled
        counted = torch.stack(
            [everything if name == "skipped" else known if name.startswith(_OF_LABELS) else kept for name in metrics]
        )
        # Not `values * counted` alone: metrics of a skipped update, or of no images, may be NaN, and NaN * 0 is NaN.
        weighted = torch.where(counted > 0, values * counted, 0.0)
        added = torch.cat([torch.stack([everything, kept, known]), weighted])
        names = tuple(metrics)
        self.sums[names] = self.sums[names] + added if names in self.sums else added

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over the images of all processes, and `images_per_second`.

        A metric is NaN where all its updates were skipped, or no image had the label that it needs.

        Raises:
            UserError: where another process is gone.
        """
        seen = 0.0
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for names, (images, kept, known, *values) in self._totals(accelerator).items():
            seen += images
            for name, value in zip(names, values, strict=True):
                count = images if name == "skipped" else known if name.startswith(_OF_LABELS) else kept
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + count
        means = {name: value / counts[name] if counts[name] else math.nan for name, value in sums.items()}
        return {**means, "images_per_second": seen / (time.perf_counter() - self.began)}

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values; the same on every process. Raises as `means`."""
        totals = [[list(names), sums] for names, sums in self._totals(accelerator).items()]
        return {"sums": totals, "seconds": time.perf_counter() - self.began}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], accelerator: Accelerator) -> MetricAverager:
        """The inverse of `state`: each process goes on with an equal share of the sums."""
        shares = {
            tuple(names): torch.tensor(sums, dtype=torch.float64, device=accelerator.device) / accelerator.num_processes
            for names, sums in state["sums"]
        }
        return cls(shares, state["seconds"])

    def _totals(self, accelerator: Accelerator) -> dict[tuple[str, ...], list[float]]:
        """The sums over all processes."""
        return {
            names: all_reduce_sum(sums.to(accelerator.device, copy=True)).tolist() for names, sums in self.sums.items()
        }


def learning_rates(step: AdversarialStep) -> dict[str, float]:
    """The learning rates in force, by loss; those of the logit loss by learner, as `logit/K`, where they differ.

    The rate of a model is the largest of its parameters.

    Args:
        step: with the optimisers.
    """
    found: dict[str, float] = {}
    logit: dict[str, float] = {}
    at_start: set[float] = set()
    for group in step.optimizer_groups.values():
        if group.kind == "logit":
            logit |= group.rates()
            at_start |= set(group.rates("initial_lr").values())
        else:
            found[group.kind] = max(group.rates().values())
    if len(at_start) == 1:
        own = {"logit": next(iter(logit.values()))}
    else:
        own = {f"logit/{k}": logit[step.models[k].name] for k in step.learners}
    return own | found
