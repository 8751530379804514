"""Shows the progress of a run: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from tqdm import tqdm

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record, ensemble_figure, model_accuracies, model_figures

_LABELS = {
    "cross_entropy": "CE",
    "kl": "KL",
    "aligned": "aligned",
    "statistics": "statistics",
    "relation": "relation",
    "l1": "L1",
    "l2": "L2",
    "adversarial": "G",
    "discriminator": "D",
    "real": "real",
    "fake": "fake",
}


class ProgressLine(Callback):
    """Shows one live line on a terminal, with the time left, and elsewhere prints a line per evaluation.

    Args:
        notes: lines to print first.
        stream: where to print [standard error].
    """

    def __init__(self, notes: Sequence[str] = (), stream: TextIO | None = None) -> None:
        self.notes = notes
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.bar: tqdm[Any] | None = None

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`; prints the notes and opens the line."""
        for note in self.notes:
            print(note, file=self.stream)
        if step:
            print(f"resuming after step {step} of {total}", file=self.stream)
        if self.live:
            self.bar = tqdm(total=total, initial=step, file=self.stream, unit="step", dynamic_ncols=True)

    def on_step(self, step: int) -> None:
        """See `Callback`."""
        if self.bar is not None:
            self.bar.update()

    def on_metrics(self, record: Record) -> None:
        """See `Callback`; shows speed, losses and the discriminators' answers."""
        if self.bar is not None:
            self.bar.set_postfix_str(_figures(record), refresh=False)

    def on_evaluate(self, record: Record) -> bool:
        """See `Callback`; prints the line of an evaluated epoch."""
        ensemble, words = ensemble_figure(record, "accuracy"), [f"epoch {record['epoch']}/{record['epochs']}"]
        if ensemble is not None:
            accuracy = "  ".join(f"{value:.2f}" for value in model_accuracies(record))
            words += [f"top-1 % {accuracy}", f"ensemble {ensemble:.2f}"]
        line = "  ".join([*words, _figures(record), f"left {_clock(record['seconds_left'])}"])
        averaged = model_figures(record, "ema_accuracy")
        if averaged:
            line += f"  averaged weights {'  '.join(f'{value:.2f}' for value in averaged)}"
        if record.get("stopped"):
            line += "\nstopped early: a callback ended the training after this epoch"
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)
        return False

    def on_end(self) -> None:
        """See `Callback`; closes the line."""
        if self.bar is not None:
            self.bar.close()


def _figures(record: Record) -> str:
    """Speed, losses and answers of a record on one line: of each metric the values of all learners or edges."""
    metrics = record["metrics"]
    words = [f"{metrics['train/images_per_second']:.0f} img/s"]
    for name, label in _LABELS.items():
        values = [value for key, value in metrics.items() if key.startswith(f"train/{name}/")]
        if values:
            words.append(f"{label} " + "/".join(f"{value:.2f}" for value in values))
    if metrics.get("train/skipped"):
        words.append(f"{metrics['train/skipped']:.0%} of the updates skipped: not finite")
    return "  ".join(words)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
