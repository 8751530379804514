"""Means over seeds, and differences between methods paired by seed, with Student's interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean of the values.
        deviation: their standard deviation (n - 1); None for one value.
        count: the number of values.
    """

    mean: float
    deviation: float | None
    count: int

    @property
    def half_width(self) -> float | None:
        """Half the width of the mean's 95 % interval: Student's t, n - 1 degrees of freedom; None for one value."""
        if self.deviation is None:
            return None
        quantile = float(student.ppf((1 + CONFIDENCE) / 2, self.count - 1))
        return quantile * self.deviation / math.sqrt(self.count)


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of at least one value, with its deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), deviation, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Returns the mean difference over the seeds that both have; None where they share none."""
    shared = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in shared]) if shared else None
