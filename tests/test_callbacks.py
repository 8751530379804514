"""The progress line and the metrics file."""

from __future__ import annotations

import io
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd import UserError
from feature_gan_kd.callbacks import JsonLines, ProgressLine, read_records

RECORD: dict[str, Any] = {
    "step": 5,
    "epoch": 1,
    "metrics": {
        "cross_entropy/0": 1.234,
        "cross_entropy/1": 2.0,
        "logit/0": 0.5,
        "adversarial/0": 0.25,
        "discriminator/0": 0.75,
        "real/1->0": 0.9,
        "fake/1->0": 0.1,
    },
    "lr": {"logit": 0.1},
    "images_per_second": 1234.5,
}
EPOCH = {**RECORD, "epochs": 3, "accuracy": [50.0, 25.5], "ensemble": 60.0, "seconds": 2.0, "seconds_left": 3725.0}


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_plain_lines_where_nobody_watches() -> None:
    stream = io.StringIO()
    line = ProgressLine(["two label columns"], stream)
    line.on_start(2, 15)
    line.on_step(3)
    line.on_metrics(RECORD)
    line.on_epoch(EPOCH)
    line.on_end()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["two label columns", "going on at step 2 of 15"]
    assert lines[2] == (
        "epoch 1/3  top-1 % 50.00  25.50  ensemble 60.00  1234 img/s  CE 1.23/2.00  KL 0.50  G 0.25  D 0.75  "
        "real 0.90  fake 0.10  left 1:02:05"
    )
    assert len(lines) == 3


def test_a_live_line_on_a_terminal() -> None:
    stream = Terminal()
    line = ProgressLine(stream=stream)
    line.on_start(0, 2)
    line.on_metrics(RECORD)
    for step in (1, 2):
        line.on_step(step)
    line.on_epoch(EPOCH)
    line.on_end()
    text = stream.getvalue()
    assert "2/2" in text
    assert "real 0.90  fake 0.10" in text
    assert "epoch 1/3  top-1 % 50.00" in text


def test_records_are_lines_and_a_resumed_run_drops_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    file.on_start(0, 9)
    for step in (5, 6, 9):
        file.on_metrics({**RECORD, "step": step})
    file.on_epoch({**EPOCH, "step": 9})
    with path.open("a") as handle:
        handle.write('{"event": "step", "st')  # the power went off
    assert [(record["event"], record["step"]) for record in read_records(path)] == [
        ("step", 5),
        ("step", 6),
        ("step", 9),
        ("epoch", 9),
    ]
    JsonLines(path).on_start(6, 9)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 6]
    assert json.loads(lines[0])["metrics"]["real/1->0"] == 0.9


def test_a_line_that_finds_no_room_is_not_begun(tmp_path: Path) -> None:
    """The lines before stay whole, and more can follow when there is room."""
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    file.on_metrics(RECORD)
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, hard))
    try:
        with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(File too large\): make room"):
            file.on_metrics(RECORD)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
        with pytest.raises(UserError, match="lines before are unharmed"):
            JsonLines(path).on_start(5, 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]
    file.on_metrics(RECORD)
    assert path.read_bytes() == whole + whole
