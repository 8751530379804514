"""The progress line and the metrics file."""

from __future__ import annotations

import io
import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd import Callback, UserError
from feature_gan_kd.training.callbacks import JsonLines, JsonPrinter, ProgressLine, read_records
from feature_gan_kd.training.history import History
from tests.helpers.runs import build

RECORD: dict[str, Any] = {
    "step": 5,
    "epoch": 1,
    "metrics": {
        "train/cross_entropy/0": 1.234,
        "train/cross_entropy/1": 2.0,
        "train/kl/0": 0.5,
        "train/adversarial/0": 0.25,
        "train/discriminator/0": 0.75,
        "train/real/1->0": 0.9,
        "train/fake/1->0": 0.1,
        "train/images_per_second": 1234.5,
        "lr/logit": 0.1,
    },
}
EVALUATED = {"eval/accuracy/0": 50.0, "eval/accuracy/1": 25.5, "eval/accuracy/ensemble": 60.0}
EPOCH = {**RECORD, "metrics": RECORD["metrics"] | EVALUATED, "epochs": 3, "seconds": 2.0, "seconds_left": 3725.0}


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_plain_lines_where_nobody_watches() -> None:
    stream = io.StringIO()
    line = ProgressLine(["two label columns"], stream)
    line.on_start(2, 15, History())
    line.on_step(3)
    line.on_metrics(RECORD)
    line.on_evaluate(EPOCH)
    line.on_end()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["two label columns", "resuming after step 2 of 15"]
    assert lines[2] == (
        "epoch 1/3  top-1 % 50.00  25.50  ensemble 60.00  1234 img/s  CE 1.23/2.00  KL 0.50  G 0.25  D 0.75  "
        "real 0.90  fake 0.10  left 1:02:05"
    )
    assert len(lines) == 3


def test_a_training_that_a_callback_ended_says_so() -> None:
    stream = io.StringIO()
    skipped = {**EPOCH, "metrics": {**EPOCH["metrics"], "train/skipped": 0.25}, "stopped": True}
    ProgressLine(stream=stream).on_evaluate(skipped)
    line, reason = stream.getvalue().splitlines()
    assert "25% of the updates skipped" in line
    assert reason.startswith("stopped early")


def test_a_live_line_on_a_terminal() -> None:
    stream = Terminal()
    line = ProgressLine(stream=stream)
    line.on_start(0, 2, History())
    line.on_metrics(RECORD)
    for step in (1, 2):
        line.on_step(step)
    line.on_evaluate(EPOCH)
    line.on_end()
    text = stream.getvalue()
    assert "2/2" in text
    assert re.search(r"1/2 \[\d\d:\d\d<\d\d:\d\d", text) or re.search(r"2/2 \[\d\d:\d\d<00:00", text)  # gone < left
    assert "real 0.90  fake 0.10" in text
    assert "epoch 1/3  top-1 % 50.00" in text


def test_records_are_lines_and_a_resumed_run_drops_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    file.on_start(0, 9, History())
    for step in (5, 6, 9):
        file.on_metrics({**RECORD, "step": step})
    file.on_evaluate({**EPOCH, "step": 9})
    with path.open("a") as handle:
        handle.write('{"event": "step", "st')  # the power went off
    assert [(record["event"], record["step"]) for record in read_records(path)] == [
        ("step", 5),
        ("step", 6),
        ("step", 9),
        ("epoch", 9),
    ]
    JsonLines(path).on_start(6, 9, History())
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 6]
    assert json.loads(lines[0])["metrics"]["train/real/1->0"] == 0.9


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
        with pytest.raises(UserError, match="earlier lines are unharmed"):
            JsonLines(path).on_start(5, 9, History())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]
    file.on_metrics(RECORD)
    assert path.read_bytes() == whole + whole


def test_records_on_a_stream() -> None:
    stream = io.StringIO()
    printer = JsonPrinter(stream)
    printer.on_start(2, 9, History())
    printer.on_metrics({**RECORD, "metrics": {**RECORD["metrics"], "train/kl/0": float("nan")}})
    printer.on_evaluate(EPOCH)
    printer.on_checkpoint(Path("run/checkpoints/step-5"))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "start", "step": 2, "total": 9},
        {"event": "step", **RECORD, "metrics": {**RECORD["metrics"], "train/kl/0": None}},
        {"event": "epoch", **EPOCH},
        {"event": "checkpoint", "folder": "run/checkpoints/step-5"},
    ]


class Diary(Callback):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_start(self, step: int, total: int, history: History) -> None:
        """Notes how much was there."""
        self.heard.append(f"start {step} of {total}, {len(history.epochs)} epochs")

    def on_step(self, step: int) -> None:
        """Notes it."""
        self.heard.append(f"step {step}")

    def on_metrics(self, record: dict[str, Any]) -> None:
        """Notes it."""
        self.heard.append(f"metrics {record['step']}")

    def on_evaluate(self, record: dict[str, Any]) -> bool:
        """Notes it."""
        self.heard.append(f"evaluated {record['epoch']}")
        return False

    def on_checkpoint(self, folder: Path) -> None:
        """Notes that it is whole."""
        self.heard.append(f"checkpoint {folder.name} {(folder / 'manifest.json').is_file()}")

    def on_epoch(self, epoch: int) -> None:
        """Notes it."""
        self.heard.append(f"epoch {epoch}")

    def on_end(self) -> None:
        """Notes it."""
        self.heard.append("end")


def test_what_a_callback_hears_and_in_which_order(tmp_path: Path) -> None:
    """Of an epoch without an evaluation, too, and of a run that goes on what it gave before."""
    settings: dict[str, Any] = {
        "max_train_samples": 64,
        "epochs": 2,
        "evaluate_every_epochs": 2,
        "checkpoint_every_steps": None,
    }
    diary = Diary()
    build(**settings).fit(output_dir=tmp_path / "run", callbacks=[diary])
    assert diary.heard == [
        "start 0 of 4, 0 epochs",
        "step 1",
        "step 2",
        "metrics 2",
        "checkpoint step-2 True",
        "epoch 1",
        "step 3",
        "step 4",
        "metrics 4",
        "evaluated 2",
        "checkpoint step-4 True",
        "epoch 2",
        "end",
    ]
    again = Diary()
    build(**settings).fit(output_dir=tmp_path / "run", resume=True, callbacks=[again])
    assert again.heard == ["start 4 of 4, 1 epochs", "end"]


def test_one_that_defines_little_hears_the_rest_without_harm() -> None:
    class Counter(Callback):
        count = 0

        def on_step(self, step: int) -> None:
            self.count += 1

    counter = Counter()
    build(epochs=1).fit(callbacks=[counter])
    assert counter.count == 5


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (print, "callbacks: builtin_function_or_method is no callback: derive it from feature_gan_kd.Callback"),
        (Diary, "callbacks: Diary is no callback: give an object: Diary(...)"),
    ],
)
def test_what_is_no_callback(given: Any, line: str) -> None:
    with pytest.raises(UserError) as caught:
        build().fit(callbacks=[given])
    assert str(caught.value) == line
