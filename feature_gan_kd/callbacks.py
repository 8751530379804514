"""What happens beside the training: the progress line, the metrics file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from feature_gan_kd.errors import UserError
from feature_gan_kd.files import to_disk, write_text
from feature_gan_kd.history import Record


class Callback(Protocol):
    """Hears of a run's events; only the main process calls it."""

    def on_start(self, step: int, total: int) -> None:
        """The run begins, or goes on, at update `step` of `total`."""

    def on_step(self, step: int) -> None:
        """Update number `step` (from 1) is done. No metrics: they stay on the device."""

    def on_metrics(self, record: Record) -> None:
        """Means of the metrics since the last record, rates and speed."""

    def on_epoch(self, record: Record) -> None:
        """An epoch is done and evaluated."""

    def on_end(self) -> None:
        """The run is over or interrupted."""


class ProgressLine:
    """One live line on a terminal; a plain line per epoch elsewhere.

    Args:
        notes: lines to print first.
        stream: where to write.
    """

    def __init__(self, notes: Sequence[str] = (), stream: TextIO | None = None) -> None:
        self.notes = notes
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.bar: tqdm[Any] | None = None

    def on_start(self, step: int, total: int) -> None:
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

    def on_epoch(self, record: Record) -> None:
        """Prints the epoch's line."""
        accuracy = "  ".join(f"{value:.2f}" for value in record["accuracy"])
        line = (
            f"epoch {record['epoch']}/{record['epochs']}  top-1 % {accuracy}  ensemble {record['ensemble']:.2f}  "
            f"{_short(record)}  left {_clock(record['seconds_left'])}"
        )
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)

    def on_end(self) -> None:
        """Closes the line."""
        if self.bar is not None:
            self.bar.close()


class JsonLines:
    """Writes every record as one line of JSON, each on the disk before the next.

    Args:
        path: of the file; lines are added at its end.

    Raises:
        UserError: where the disk cannot hold a line, by the method that was to write it; those before it stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, step: int, total: int) -> None:
        """Drops what an interrupted run wrote after the checkpoint at `step`."""
        if self.path.exists():
            kept = [line for line in read_records(self.path) if line["step"] <= step]
            with self._refusing():
                write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def on_step(self, step: int) -> None:
        """Nothing: metrics come with `on_metrics`."""

    def on_metrics(self, record: Record) -> None:
        """Writes a step's record."""
        self._write({"event": "step", **record})

    def on_epoch(self, record: Record) -> None:
        """Writes an epoch's record."""
        self._write({"event": "epoch", **record})

    def on_end(self) -> None:
        """Nothing: every line is on its way to the disk."""

    def _write(self, record: Record) -> None:
        with self._refusing():
            whole = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                to_disk(self.path)
            except OSError:
                os.truncate(self.path, whole)
                raise

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}): make room and go on with --resume; the lines "
                "before are unharmed"
            ) from None


def read_records(path: Path) -> list[Record]:
    """The records of a metrics file; a line that is none, such as a last one cut short by a crash, is left out."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("event") in ("step", "epoch") and type(record.get("step")) is int:
            records.append(record)
    return records


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
