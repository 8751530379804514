"""Progress: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from tqdm import tqdm

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record


class ProgressLine(Callback):
    """One live line on a terminal, with the time that is left; a plain line per evaluation elsewhere.

    Args:
        notes: lines to print first.
        stream: where to write.
    """

    def __init__(self, notes: Sequence[str] = (), stream: TextIO | None = None) -> None:
        self.notes = notes
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.bar: tqdm[Any] | None = None

    def on_start(self, step: int, total: int, history: History) -> None:
        """Prints the notes and opens the line."""
        for note in self.notes:
            print(note, file=self.stream)
        if step:
            print(f"going on at step {step} of {total}", file=self.stream)
        if self.live:
            self.bar = tqdm(total=total, initial=step, file=self.stream, unit="step", dynamic_ncols=True)

    def on_step(self, step: int) -> None:
        """Moves the line on."""
        if self.bar is not None:
            self.bar.update()

    def on_metrics(self, record: Record) -> None:
        """Shows speed, losses and the discriminators' answers."""
        if self.bar is not None:
            self.bar.set_postfix_str(_short(record), refresh=False)

    def on_evaluate(self, record: Record) -> bool:
        """Prints the line of an evaluated epoch."""
        accuracy = "  ".join(f"{value:.2f}" for value in record["accuracy"])
        line = (
            f"epoch {record['epoch']}/{record['epochs']}  top-1 % {accuracy}  ensemble {record['ensemble']:.2f}  "
            f"{_short(record)}  left {_clock(record['seconds_left'])}"
        )
        if record.get("stopped"):
            line += "\nended early: nothing got better for as long as was to be waited for"
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)
        return False

    def on_end(self) -> None:
        """Closes the line."""
        if self.bar is not None:
            self.bar.close()


def _short(record: Record) -> str:
    words = [f"{record['images_per_second']:.0f} img/s"]
    for name, label in (("cross_entropy", "CE"), ("logit", "KL"), ("adversarial", "G"), ("discriminator", "D")):
        values = [value for key, value in record["metrics"].items() if key.split("/")[0] == name]
        if values:
            words.append(f"{label} " + "/".join(f"{value:.2f}" for value in values))
    for name in ("real", "fake"):
        values = [value for key, value in record["metrics"].items() if key.split("/")[0] == name]
        if values:
            words.append(f"{name} " + "/".join(f"{value:.2f}" for value in values))
    if record["metrics"].get("skipped"):
        words.append(f"{record['metrics']['skipped']:.0%} of the updates skipped: not finite")
    return "  ".join(words)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
