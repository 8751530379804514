"""The file that a command writes in place of what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from feature_gan_kd.utils.errors import UserError


def check_output_file(option: str, file: Path, images: Sequence[Path]) -> None:
    """Checks that a file can be written, before any time is spent on the model.

    Args:
        option: that names the file, for errors.
        file: to be written.
        images: that are read, which it must not replace.

    Raises:
        UserError: where it is a folder or one of the images, or its folder does not exist.
    """
    if file.is_dir() or not file.parent.is_dir():
        problem = "is a folder" if file.is_dir() else f"the folder {file.parent} does not exist"
        raise UserError(f"{option}: {file} cannot be written ({problem}): name a file in a folder that exists")
    if file.exists() and any(file.samefile(image) for image in images):
        raise UserError(f"{option}: {file} is one of the images, which it would replace: name another file")
