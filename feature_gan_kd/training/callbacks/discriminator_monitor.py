"""Warns, once, of a discriminator that no longer gives the learner a useful gradient."""

from __future__ import annotations

import warnings
from typing import Literal

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record

SATURATED = (0.9, 0.1)
"""Mean answers to real and fake maps beyond which a sigmoid is saturated, so that hardly any gradient passes."""

UNDECIDED = 0.02
"""Difference of the mean answers below which no gradient tells the maps apart.

Both are ours: the paper does not report the answers of its discriminators.
"""

Verdict = Literal["saturated", "undecided"]


class DiscriminatorMonitor(Callback):
    """Warns once for each discriminator that was saturated or undecided for long.

    For long means in every record over 500 updates: over a twentieth of the run if that is more, and in a shorter run
    over three quarters of it, but at least 50 updates.

    Args:
        bounded: whether answers pass a sigmoid. Only its gradient vanishes where they are far apart.
    """

    def __init__(self, *, bounded: bool = True) -> None:
        self.bounded = bounded
        self.patience = 500
        # By edge: the verdict that holds now, and the update since which it does.
        self.since: dict[str, tuple[Verdict, int]] = {}
        self.warned: set[str] = set()
        self.last_step = 0

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`."""
        self.patience, self.last_step = max(min(500, max(50, total * 3 // 4)), total // 20), step

    def on_metrics(self, record: Record) -> None:
        """See `Callback`; looks at the mean answers since the last record."""
        metrics, step = record["metrics"], record["step"]
        for name in metrics:
            if not name.startswith("train/real/"):
                continue
            edge = name.removeprefix("train/real/")
            real, fake = metrics[name], metrics[f"train/fake/{edge}"]
            verdict = _judge(real, fake, self.bounded)
            if verdict is None:
                self.since.pop(edge, None)
                continue
            before, since = self.since.get(edge, (verdict, self.last_step))
            self.since[edge] = (verdict, since if before == verdict else self.last_step)
            updates = step - self.since[edge][1]
            if updates >= self.patience and edge not in self.warned:
                self.warned.add(edge)
                warnings.warn(_message(edge, verdict, real, fake, updates), stacklevel=2)
        self.last_step = step


def _judge(real: float, fake: float, bounded: bool) -> Verdict | None:
    if bounded and real > SATURATED[0] and fake < SATURATED[1]:
        return "saturated"
    return "undecided" if abs(real - fake) < UNDECIDED else None


def _message(edge: str, verdict: Verdict, real: float, fake: float, updates: int) -> str:
    if verdict == "saturated":
        return (
            f"discriminator {edge}: for {updates} updates it told source and learner apart almost surely (mean answers "
            f"{real:.2f} and {fake:.2f}), so hardly any gradient reaches the learner: lower discriminator_lr or "
            "discriminator_width"
        )
    return (
        f"discriminator {edge}: for {updates} updates it gave source and learner the same mean answers ({real:.2f} and "
        f"{fake:.2f}), so it teaches nothing: raise discriminator_lr, or set scale_adversarial_lr for a short run"
    )
