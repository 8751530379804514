"""A disk that is full: one line, exit 2, everything of before unharmed, and the run goes on when there is room."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd import UserError
from feature_gan_kd.cli import main
from feature_gan_kd.export import save_models
from feature_gan_kd.training.callbacks import ProgressLine
from feature_gan_kd.training.checkpoint_files import load_newest
from tests.helpers.runs import AtStep, assert_same_run, build, records, steps_of

# 13 updates an epoch. A checkpoint takes some 11 MB.
OPTIONS = ("train", "--models", "test_resnet", "test_vit", "--image-size", "16", "--max-train-samples", "100")
OPTIONS += ("--max-eval-samples", "20", "--batch-size", "8", "--epochs", "2", "--log-every-steps", "1")
OPTIONS += ("--checkpoint-every-steps", "7")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    main([*OPTIONS, "--output-dir", str(folder)])
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here (that needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # what was loaded may still be mapped


def fill(disk: Path, room: int) -> None:
    """Leaves no more than `room` bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass
    os.truncate(filler, filler.stat().st_size - room)


def before(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, act: Callable[..., object]) -> None:
    """Calls `act` before every call of a function or method."""
    real = getattr(owner, name)

    def method(*args: Any) -> Any:
        act(*args)
        return real(*args)

    monkeypatch.setattr(owner, name, method)


def the_line(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    """The line with which `train` ends on a full disk."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*OPTIONS, "--output-dir", str(folder), *more])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("feature-gan-kd: error: ") == 1
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("feature-gan-kd: error: ")
    assert "No space left on device" in line
    return line


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("metrics.jsonl", []),
        ("checkpoints/step-7", []),
        ("checkpoints/step-13", [7]),
        ("networks/1-test_vit-best", [7, 13]),
    ],
)
def test_a_full_disk(
    written: str,
    kept: list[int],
    disk: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = disk / "run"
    with monkeypatch.context() as patch:
        if written.startswith("networks"):
            owner, name = save_models, "save_if_changed"
            before(patch, owner, name, lambda group, index, *_: fill(disk, room=1 << 16) if index == 1 else None)
        else:
            # Of the metrics some lines still fit into their page of the disk, and one is cut.
            at, room = (3, 0) if written == "metrics.jsonl" else (int(written.split("-")[1]), 1 << 16)
            before(patch, ProgressLine, "on_step", lambda self, step: fill(disk, room) if step == at else None)
        line = the_line(capsys, folder)
    assert str(folder / written) in line
    assert "make room" in line
    unharmed(folder, kept)
    the_line(capsys, folder, "--resume")
    unharmed(folder, kept)
    (disk / "filler").unlink()
    main([*OPTIONS, "--output-dir", str(folder), "--resume"])
    assert_same_run(folder, undisturbed)


def unharmed(folder: Path, kept: list[int]) -> None:
    """The checkpoints of these steps are there, the newest loads, the metrics up to it are whole; nothing else is."""
    assert steps_of(folder) == kept
    found = load_newest(folder / "checkpoints", None)
    assert (found[0].name if found else None) == (f"step-{kept[-1]}" if kept else None)
    steps = [record["step"] for record in records(folder) if record["event"] == "step"]
    assert steps == [*range(steps[0], steps[-1] + 1, steps[0])]
    assert steps[-1] >= (kept[-1] if kept else 1)
    assert (folder / "metrics.jsonl").read_text().endswith("\n")
    assert [path.name for path in folder.rglob(".*")] == []


def test_a_disk_that_is_full_from_the_start(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, room=0)
    assert str(disk / "run") in the_line(capsys, disk / "run")
    assert list((disk / "run").iterdir()) == []


def test_a_full_disk_under_the_curves(
    disk: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training is over; the figure is all that is missing."""
    folder = disk / "run"
    with monkeypatch.context() as patch:
        before(patch, ProgressLine, "on_end", lambda self: fill(disk, room=0))
        assert "curves.png" in the_line(capsys, folder)
    (disk / "filler").unlink()
    assert_same_run(folder, undisturbed)


def test_a_stop_on_a_full_disk(disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A signal whose checkpoint finds no room ends as a full disk does: the checkpoint before is the last."""
    folder = disk / "run"

    def stop(line: ProgressLine, step: int) -> None:
        if step == 9:
            fill(disk, room=1 << 16)
            os.kill(os.getpid(), signal.SIGTERM)

    before(monkeypatch, ProgressLine, "on_step", stop)
    assert "step-9" in the_line(capsys, folder)
    unharmed(folder, [7])


def test_what_no_disk_takes(tmp_path: Path) -> None:
    """The same without a disk of one's own: files beyond a limit cannot be written."""
    distiller = build(epochs=1, checkpoint_every_steps=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError, match=r"step-4: the checkpoint cannot be written \(.*File too large"):
            distiller.fit(output_dir=tmp_path / "run", callbacks=[AtStep(3, lambda: limit((3000, hard)))])
    finally:
        limit((soft, hard))
    unharmed(tmp_path / "run", [2])
