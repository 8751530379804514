"""Records as lines of JSON: the metrics file of a run, and what a program reads that started it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from feature_gan_kd.training.callbacks.callback import Callback
from feature_gan_kd.training.history import History, Record
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file, fsync


class JsonLines(Callback):
    """Writes every record as one line of JSON, each on the disk before the next.

    Args:
        path: of the file; lines are added at its end.

    Raises:
        UserError: where the disk cannot hold a line, by the method that was to write it; those before it stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, step: int, total: int, history: History) -> None:
        """Drops what an interrupted run wrote after the checkpoint at `step`."""
        if self.path.exists():
            kept = [line for line in read_records(self.path) if line["step"] <= step]
            with self._refusing(), atomic_file(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def on_metrics(self, record: Record) -> None:
        """Writes a step's record."""
        self._write({"event": "step", **record})

    def on_evaluate(self, record: Record) -> bool:
        """Writes an evaluated epoch's record."""
        self._write({"event": "epoch", **record})
        return False

    def _write(self, record: Record) -> None:
        with self._refusing():
            whole = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                fsync(self.path)
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


class JsonPrinter(Callback):
    """Prints every record as one line of JSON as soon as it is there, for a program that reads along; NaN is null.

    Args:
        stream: where to [standard output].
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    def on_start(self, step: int, total: int, history: History) -> None:
        """Prints where the run begins and how long it is, in updates."""
        self._print({"event": "start", "step": step, "total": total})

    def on_metrics(self, record: Record) -> None:
        """Prints a step's record."""
        self._print({"event": "step", **record})

    def on_evaluate(self, record: Record) -> bool:
        """Prints an evaluated epoch's record."""
        self._print({"event": "epoch", **record})
        return False

    def on_checkpoint(self, folder: Path) -> None:
        """Prints where a checkpoint is."""
        self._print({"event": "checkpoint", "folder": str(folder)})

    def _print(self, record: Record) -> None:
        # JSON knows no NaN, which Python writes all the same and others do not read.
        strict = json.loads(json.dumps(record), parse_constant=lambda name: None)
        print(json.dumps(strict), file=self.stream, flush=True)


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
