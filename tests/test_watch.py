"""Discriminators of no use are reported once."""

from __future__ import annotations

import warnings

import pytest

from feature_gan_kd.callbacks.watch import DiscriminatorWatch
from feature_gan_kd.history import History


def told(
    watch: DiscriminatorWatch, answers: list[tuple[float, float]], edge: str = "0->1", every: int = 100
) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, (real, fake) in enumerate(answers, start=1):
            metrics = {f"real/{edge}": real, f"fake/{edge}": fake, "cross_entropy/0": 1.0}
            watch.on_metrics({"step": number * every, "metrics": metrics})
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("answers", "words"), [((0.97, 0.03), "wholly apart (answers 0.97 and 0.03)"), ((0.5, 0.49), "answered alike")]
)
def test_said_once_after_long(answers: tuple[float, float], words: str) -> None:
    watch = DiscriminatorWatch()
    watch.on_start(0, 1000, History())
    assert told(watch, [answers] * 4) == []
    watch = DiscriminatorWatch()
    watch.on_start(0, 1000, History())
    (line,) = told(watch, [answers] * 9)
    assert line.startswith("discriminator 0->1: for 500 updates")
    assert words in line
    assert "\n" not in line


def test_without_a_sigmoid_answers_may_lie_apart() -> None:
    watch = DiscriminatorWatch(bounded=False)
    watch.on_start(0, 1000, History())
    assert told(watch, [(1.2, -1.3)] * 9) == []


def test_a_break_begins_anew() -> None:
    watch = DiscriminatorWatch()
    watch.on_start(0, 1000, History())
    assert told(watch, [(0.97, 0.03)] * 4 + [(0.7, 0.3)] + [(0.97, 0.03)] * 4) == []
    watch = DiscriminatorWatch()
    watch.on_start(0, 1000, History())
    assert told(watch, [(0.97, 0.03)] * 4 + [(0.5, 0.5)] * 4) == []


def test_long_runs_need_longer() -> None:
    watch = DiscriminatorWatch()
    watch.on_start(0, 100_000, History())
    assert told(watch, [(0.97, 0.03)] * 40) == []
    assert len(told(watch, [(0.97, 0.03)] * 60)) == 1


def test_good_answers_and_other_methods_say_nothing() -> None:
    watch = DiscriminatorWatch()
    watch.on_start(0, 1000, History())
    assert told(watch, [(0.7, 0.3)] * 20) == []
    watch.on_metrics({"step": 5000, "metrics": {"cross_entropy/0": 1.0}})
