"""Files and folders that appear whole or not at all, even if the power fails in the middle of a write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_remedy(folder: Path) -> str:
    """What to do where a file in `folder` cannot be written: the folder is gone, or the disk is full or read-only."""
    return "make room" if folder.is_dir() else f"the folder {folder} was removed during the run: leave it alone"


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Replaces a file by a new one once the new one is complete.

    Args:
        path: the file; an existing one keeps its content until then.

    Yields:
        Where to write the new content: a path beside `path`. It becomes `path` when the block ends, and is removed
        if the block raises.

    Raises:
        OSError: where the disk cannot hold it.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        # To the disk before the rename: after a power cut the new name could otherwise belong to an empty file.
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Replaces a folder of files by a new one once the new one is complete.

    Args:
        folder: the folder; an existing one stays until then. Parents are made.

    Yields:
        Where to write the new files: an empty folder beside `folder`. It becomes `folder` when the block ends, and is
        removed if the block raises.

    Raises:
        OSError: where that cannot be done; the existing folder keeps its name.
    """
    temporary = _temporary(folder)
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left one
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            fsync(path)
        fsync(temporary)
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Where the new content of `path` is written: in the same folder, since a rename works within one disk only."""
    return path.with_name(f".{path.name}.writing")


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`. No system call replaces a folder with files in it, so two renames do."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Removes what a killed process left in `parent`; restores a folder if it was killed between the two renames."""
    for path in parent.glob(".*.old"):
        name = path.with_name(path.name[1 : -len(".old")])
        if name.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(name)
    for path in parent.glob(".*.writing"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
