"""Records as lines of JSON: in the metrics file of a run, and on a stream for other programs."""

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
from feature_gan_kd.utils.files import atomic_file, fsync, write_remedy


class JsonLines(Callback):
    """Appends every record to a file as one line of JSON, and flushes it to the disk.

    Args:
        path: of the file.

    Raises:
        UserError: by each method, where the disk cannot hold a line; earlier lines stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`; drops records after the checkpoint at `step`, whose updates a resumed run repeats."""
        if self.path.exists():
            kept = [line for line in read_records(self.path) if line["step"] <= step]
            with self._explain_write_error(), atomic_file(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def on_metrics(self, record: Record) -> None:
        """See `Callback`."""
        self._write({"event": "step", **record})

    def on_evaluate(self, record: Record) -> bool:
        """See `Callback`."""
        self._write({"event": "epoch", **record})
        return False

    def _write(self, record: Record) -> None:
        with self._explain_write_error():
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                fsync(self.path)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, size)  # no part of a line is left, so that later lines stay readable
                raise

    @contextlib.contextmanager
    def _explain_write_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}): {write_remedy(self.path.parent)} and resume with "
                "--resume; earlier lines are unharmed"
            ) from None


class JsonPrinter(Callback):
    """Prints every event as one line of JSON, for a program that started the run. NaN becomes null.

    Args:
        stream: where to print [standard output].
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    def on_start(self, step: int, total: int, history: History) -> None:
        """See `Callback`."""
        self._print({"event": "start", "step": step, "total": total})

    def on_metrics(self, record: Record) -> None:
        """See `Callback`."""
        self._print({"event": "step", **record})

    def on_evaluate(self, record: Record) -> bool:
        """See `Callback`."""
        self._print({"event": "epoch", **record})
        return False

    def on_checkpoint(self, folder: Path) -> None:
        """See `Callback`."""
        self._print({"event": "checkpoint", "folder": str(folder)})

    def _print(self, record: Record) -> None:
        # Python writes NaN, which JSON does not allow and other parsers reject.
        strict = json.loads(json.dumps(record), parse_constant=lambda name: None)
        print(json.dumps(strict), file=self.stream, flush=True)


def read_records(path: Path) -> list[Record]:
    """Reads the records of a metrics file; skips lines that are none, such as one that a crash cut short."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("event") in ("step", "epoch") and type(record.get("step")) is int:
            records.append(record)
    return records
