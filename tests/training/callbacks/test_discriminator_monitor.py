"""Discriminators of no use are reported once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.training.callbacks.discriminator_monitor import DiscriminatorMonitor
from feature_gan_kd.training.history import History
from tests.helpers.small_models import GroupNormModel


def told(
    watch: DiscriminatorMonitor, answers: list[tuple[float, float]], edge: str = "0->1", every: int = 100
) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, (real, fake) in enumerate(answers, start=1):
            metrics = {f"train/real/{edge}": real, f"train/fake/{edge}": fake, "train/cross_entropy/0": 1.0}
            watch.on_metrics({"step": number * every, "metrics": metrics})
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((0.97, 0.03), "apart almost surely (mean answers 0.97 and 0.03)"),
        ((0.5, 0.49), "the same mean answers (0.50 and 0.49)"),
    ],
)
def test_said_once_after_long(answers: tuple[float, float], words: str) -> None:
    watch = DiscriminatorMonitor()
    watch.on_start(0, 2000, History())
    assert told(watch, [answers] * 4) == []
    watch = DiscriminatorMonitor()
    watch.on_start(0, 2000, History())
    (line,) = told(watch, [answers] * 9)
    assert line.startswith("discriminator 0->1: for 500 updates")
    assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(("total", "patience"), [(20, 50), (400, 300), (1000, 500), (2000, 500), (40_000, 2000)])
def test_a_short_run_is_watched_too(total: int, patience: int) -> None:
    watch = DiscriminatorMonitor()
    watch.on_start(0, total, History())
    assert watch.patience == patience


def test_without_a_sigmoid_answers_may_lie_apart() -> None:
    watch = DiscriminatorMonitor(bounded=False)
    watch.on_start(0, 1000, History())
    assert told(watch, [(1.2, -1.3)] * 9) == []


class Undecided(nn.Module):
    """A discriminator that begins with the same answer to every map."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.line = nn.Linear(shape[0], 1)
        nn.init.zeros_(self.line.weight)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Answers (batch,)."""
        return torch.sigmoid(self.line(feature_map.mean((2, 3)))[:, 0])


def test_a_training_says_it_once_for_each_discriminator(monkeypatch: pytest.MonkeyPatch) -> None:
    on_start = DiscriminatorMonitor.on_start

    def sooner(monitor: DiscriminatorMonitor, *args: Any) -> None:
        on_start(monitor, *args)
        monitor.patience = 40

    monkeypatch.setattr(DiscriminatorMonitor, "on_start", sooner)
    distiller = OnlineAdversarialDistiller(
        [GroupNormModel(4, classes=10), GroupNormModel(6, classes=10)],
        image_size=8,
        discriminator=Undecided,
        discriminator_lr=1e-12,
        max_train_samples=40,
        max_eval_samples=10,
        batch_size=2,
        epochs=5,
        evaluate_every_epochs=5,
        log_every_steps=5,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distiller.fit()
    lines = sorted(str(one.message) for one in caught if "discriminator" in str(one.message))
    assert [line.split(":")[0] for line in lines] == ["discriminator 0->1", "discriminator 1->0"]
    assert all("the same mean answers" in line and "raise discriminator_lr" in line for line in lines)


def test_a_break_begins_anew() -> None:
    watch = DiscriminatorMonitor()
    watch.on_start(0, 2000, History())
    assert told(watch, [(0.97, 0.03)] * 4 + [(0.7, 0.3)] + [(0.97, 0.03)] * 4) == []
    watch = DiscriminatorMonitor()
    watch.on_start(0, 2000, History())
    assert told(watch, [(0.97, 0.03)] * 4 + [(0.5, 0.5)] * 4) == []


def test_long_runs_need_longer() -> None:
    watch = DiscriminatorMonitor()
    watch.on_start(0, 100_000, History())
    assert told(watch, [(0.97, 0.03)] * 40) == []
    assert len(told(watch, [(0.97, 0.03)] * 60)) == 1


def test_good_answers_and_other_methods_say_nothing() -> None:
    watch = DiscriminatorMonitor()
    watch.on_start(0, 2000, History())
    assert told(watch, [(0.7, 0.3)] * 20) == []
    watch.on_metrics({"step": 5000, "metrics": {"train/cross_entropy/0": 1.0}})
