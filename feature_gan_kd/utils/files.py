"""Files and folders that are whole or not there, whenever the power goes off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def fsync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there with all of its text, or is as it was before.

    Raises:
        OSError: where the disk cannot hold it.
    """
    temporary = writing(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def writing(path: Path) -> Path:
    """The place beside `path` where its new content is written."""
    return path.with_name(f".{path.name}.writing")


def move_into_place(temporary: Path, folder: Path) -> None:
    """Gives a finished folder its name, in the place of one that has it; its files are on the disk before.

    Raises:
        OSError: where that cannot be done; the one before keeps the name.
    """
    for path in temporary.iterdir():
        fsync(path)
    fsync(temporary)
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
    """Removes what a process that was killed left behind; a folder killed while it was replaced is put back."""
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
