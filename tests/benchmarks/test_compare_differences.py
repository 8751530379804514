"""The statistics of the comparison, against figures computed by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.compare.differences import estimate, paired_difference


def test_mean_deviation_and_interval() -> None:
    three = estimate([70.0, 72.0, 74.0])
    assert (three.mean, three.deviation, three.count) == (72.0, 2.0, 3)
    # The table of Student's t for 2 degrees of freedom, two-sided 95 %: 4.303.
    assert three.half_width == pytest.approx(4.303 * 2 / math.sqrt(3), rel=1e-3)
    # For 1 degree of freedom 12.706; the deviation of two values is their distance over the root of 2.
    assert estimate([1.0, 3.0]).half_width == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2), rel=1e-4)


def test_one_value_has_no_interval() -> None:
    one = estimate([70.0])
    assert (one.mean, one.deviation, one.half_width) == (70.0, None, None)


def test_differences_are_paired_by_seed() -> None:
    # The seeds differ by 10, the methods by 0.9, 1.0 and 1.1 only: mean 1, deviation 0.1.
    ours, theirs = {0: 50.9, 1: 61.0, 2: 71.1, 5: 99.0}, {2: 70.0, 1: 60.0, 0: 50.0, 7: 0.0}
    difference = paired_difference(ours, theirs)
    assert difference is not None
    assert difference.count == 3
    assert difference.mean == pytest.approx(1.0)
    assert difference.deviation == pytest.approx(0.1)
    assert difference.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)


def test_without_a_shared_seed_there_is_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
