"""Files and folders that are replaced whole: after an error, and after a process was killed at any point."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from feature_gan_kd.utils.files import atomic_file, atomic_folder, remove_leftovers


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert content(tmp_path) == {"a.txt": "new"}


def test_a_folder_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "a"
    for number in ("1", "2"):
        with atomic_folder(folder) as temporary:
            (temporary / number).write_text(number)
            assert content(folder) == ({} if number == "1" else {"1": "1"})
    assert content(tmp_path) == {"parent/a/2": "2"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_in_the_block_keeps_the_old_ones(error: type[BaseException], tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("old")
    (tmp_path / "b").write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(error), atomic_folder(tmp_path / "a") as temporary:
        write(temporary / "x")
    with pytest.raises(error), atomic_file(tmp_path / "b") as temporary:
        write(temporary)
    assert content(tmp_path) == {"a/x": "old", "b": "old"}


def test_a_rename_that_fails_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("old")
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == ".a.writing":
            raise OSError(28, "No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space"), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("new")
    assert content(tmp_path) == {"a/x": "old"}


def test_the_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def move(path: Path, target: Path) -> Path:
        events.append(f"{path.name} to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", move)
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert events == [".a.writing", ".a.writing to a", tmp_path.name]


@pytest.mark.parametrize("renamed", [True, False])
def test_what_a_killed_process_leaves_is_removed_or_restored(renamed: bool, tmp_path: Path) -> None:
    """Killed after both renames of a folder, or between them."""
    (tmp_path / ".a.old").mkdir()
    (tmp_path / ".a.old" / "x").write_text("old")
    if renamed:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("new")
    (tmp_path / ".a.writing").mkdir()
    (tmp_path / ".a.writing" / "x").write_text("half")
    (tmp_path / ".b.writing").write_text("half")
    remove_leftovers(tmp_path)
    assert content(tmp_path) == {"a/x": "new" if renamed else "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_leftovers_do_not_end_in_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / ".a.writing").mkdir()
    (tmp_path / ".a.writing" / "foreign").write_text("half")
    with atomic_folder(tmp_path / "a") as temporary:
        assert content(temporary) == {}
        (temporary / "x").write_text("new")
    assert content(tmp_path) == {"a/x": "new"}
