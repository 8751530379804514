"""Discriminators that have stopped teaching: said once, with what to change."""

from __future__ import annotations

import warnings
from typing import Literal

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record

# Mean answers from which on a discriminator teaches hardly anything. Apart, its sigmoid is saturated and the gradient
# nearly gone; alike, there is no gradient that tells the maps apart. Ours: the paper reports no answers.
APART = (0.9, 0.1)
ALIKE = 0.02
Verdict = Literal["apart", "alike"]


class DiscriminatorMonitor(Callback):
    """Warns, once for each discriminator, when it has been of no use for long.

    For long means without a break for 500 updates, or a twentieth of the run if that is more.

    Args:
        bounded: answers go through a sigmoid, whose gradient vanishes where they are wholly apart.
    """

    def __init__(self, *, bounded: bool = True) -> None:
        self.bounded = bounded
        self.patience = 500
        self.since: dict[str, tuple[Verdict, int]] = {}
        self.said: set[str] = set()
        self.last = 0

    def on_start(self, step: int, total: int, history: History) -> None:
        """Takes note of how long the run is."""
        self.patience, self.last = max(500, total // 20), step

    def on_metrics(self, record: Record) -> None:
        """Looks at the mean answers since the last record."""
        metrics = record["metrics"]
        for edge in (key.removeprefix("real/") for key in metrics if key.startswith("real/")):
            real, fake = metrics[f"real/{edge}"], metrics[f"fake/{edge}"]
            verdict = _verdict(real, fake, self.bounded)
            if verdict is None:
                self.since.pop(edge, None)
                continue
            before, since = self.since.get(edge, (verdict, self.last))
            self.since[edge] = (verdict, since if before == verdict else self.last)
            lasted = record["step"] - self.since[edge][1]
            if lasted >= self.patience and edge not in self.said:
                self.said.add(edge)
                warnings.warn(_words(edge, verdict, real, fake, lasted), stacklevel=2)
        self.last = record["step"]


def _verdict(real: float, fake: float, bounded: bool) -> Verdict | None:
    if bounded and real > APART[0] and fake < APART[1]:
        return "apart"
    return "alike" if abs(real - fake) < ALIKE else None


def _words(edge: str, verdict: Verdict, real: float, fake: float, lasted: int) -> str:
    if verdict == "apart":
        return (
            f"discriminator {edge}: for {lasted} updates it told both kinds of map wholly apart (answers {real:.2f} "
            f"and {fake:.2f}), so its gradient is nearly gone: lower discriminator_lr or discriminator_width"
        )
    return (
        f"discriminator {edge}: for {lasted} updates it has answered alike to source and learner ({real:.2f} and "
        f"{fake:.2f}), so it teaches nothing: raise discriminator_lr, or set scale_adversarial_lr for a short run"
    )
