"""A run's folder: whether it may be used, and what it says of the run."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_gan_kd.checkpoint import newest
from feature_gan_kd.errors import UserError

_PACKAGES = ("torch", "timm", "accelerate", "datasets", "safetensors")


def usable_folder(folder: Path, resume: bool) -> Path:
    """The folder, if a run may be kept there; to be asked before anything is read or built.

    Raises:
        UserError: where it holds a run that is not to be resumed, or cannot be written.
    """
    try:
        holds_run = (folder / "config.json").exists()
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        reason = None if os.access(existing, os.W_OK | os.X_OK) else f"no permission for {existing}"
        reason = reason if existing.is_dir() else f"{existing} is no folder"
    except OSError as error:
        holds_run, reason = False, str(error.strerror)
    if holds_run and not resume:
        raise UserError(f"output_dir: {folder} already holds a run: resume it (--resume) or choose another folder")
    if reason is not None:
        raise UserError(f"output_dir: {folder} cannot be written ({reason}): choose another folder")
    return folder


def describe_run(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes `config.json`, unless the run is going on from a checkpoint.

    Args:
        folder: of the run; made where it is not there.
        about: wiring, settings and data; the versions of the libraries are added.

    Raises:
        UserError: where it cannot be written.
    """
    if newest(folder / "checkpoints"):
        return
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**about, "versions": versions}, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written ({error.strerror}): choose another") from None
