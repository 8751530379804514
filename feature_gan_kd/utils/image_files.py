"""Image files below a folder, in an order that stays the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from feature_gan_kd.utils.errors import UserError


def walk(folder: str) -> Iterator[str]:
    """Yields the files below a folder, as paths relative to it with `/`, in no order.

    Hidden files and folders are left out, and those whose names begin with `__`, as `datasets` does. Links are
    followed, but never back to one of the folders that they came through.

    Raises:
        OSError: where a folder cannot be read.
    """
    yield from _walk(folder, "", (os.path.realpath(folder),))


def _walk(folder: str, prefix: str, ancestors: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):  # .ipynb_checkpoints, __MACOSX, ...
                continue
            if not entry.is_dir():
                yield prefix + entry.name
                continue
            real = os.path.realpath(entry.path)
            if real not in ancestors:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*ancestors, real))


def extension(name: str) -> str:
    """The ending of a file's name, in small letters."""
    return os.path.splitext(name)[1].lower()


def left_out_note(path: Path, others: Sequence[str]) -> str:
    """Tells the user of files that are left out, as images may be whose names have another ending or none.

    Args:
        path: of the folder.
        others: the files, at least one.
    """
    count = "1 file is" if len(others) == 1 else f"{len(others)} files are"
    first = f"; the first is {others[0]}" if len(others) > 1 else f": {others[0]}"
    return f"{path}: {count} left out, since the ending of the name is none of an image{first}"


def real_paths(files: Iterable[str]) -> list[str]:
    """The files that paths lead to, links followed: two paths of one file give the same; empty for an empty path."""
    folders: dict[str, str] = {}  # `os.path.realpath` asks for every folder of a path
    found = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name) if file else ""
        found.append(os.path.realpath(path) if os.path.islink(path) else path)
    return found


def list_images(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Finds the images that files and folders name.

    Args:
        paths: a file is taken whatever its name; of a folder, the files at any depth whose names end as those of images
            that PIL reads.

    Returns:
        The files in the order of `paths`, those of a folder sorted by their paths, and notes on files left out.

    Raises:
        UserError: for a path that is not there, or a folder that cannot be read or holds no images.
    """
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"image: {path} does not exist: name image files or a folder of them")
            found.append(path)
            continue
        try:
            files = sorted(walk(str(path)))
        except OSError as error:
            raise UserError(f"image: {path} cannot be read ({error.strerror}): name another folder") from None
        kinds = _image_extensions()
        images = [name for name in files if extension(name) in kinds]
        others = [name for name in files if extension(name) not in kinds]
        if not images:
            holds = f"only files with other endings, the first is {others[0]}" if others else "it is empty"
            raise UserError(f"image: the folder {path} holds no images ({holds}): name image files or a folder of them")
        found.extend(path / name for name in images)
        if others:
            notes.append(left_out_note(path, others))
    return found, notes


def _image_extensions() -> frozenset[str]:
    """The endings of files that PIL reads: the rule by which `datasets` knows images."""
    import PIL.Image

    PIL.Image.init()
    return frozenset(ending for ending, kind in PIL.Image.EXTENSION.items() if kind in PIL.Image.OPEN)
