"""The folder of a run: checks whether it can be used, and writes its `config.json`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from feature_gan_kd.training.checkpoint_files import list_checkpoints
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file
from feature_gan_kd.utils.version import __version__

# What a run writes into its folder, and whether that is a folder itself.
_CONTENTS = {
    "config.json": False,
    "metrics.jsonl": False,
    "curves.png": False,
    "checkpoints": True,
    "networks": True,
    "trackers": True,
}
_PACKAGES = ("torch", "timm", "accelerate", "datasets", "safetensors")


def check_run_folder(folder: Path, resume: bool) -> Path:
    """Checks that a run can be kept in a folder, before any time is spent on models and data.

    Args:
        folder: of the run; it need not exist.
        resume: whether a run that it holds goes on.

    Returns:
        The folder.

    Raises:
        UserError: where it holds a run and `resume` is not set, or where it cannot be written.
    """
    try:
        holds_run = (folder / "config.json").exists()
        existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        reason = None if os.access(existing, os.W_OK | os.X_OK) else f"no permission for {existing}"
        reason = reason if existing.is_dir() else f"{existing} is no folder"
        for name, is_folder in _CONTENTS.items():
            if os.path.lexists(folder / name) and (folder / name).is_dir() != is_folder:
                reason = f"{folder / name} is {'no' if is_folder else 'a'} folder"
    except OSError as error:
        holds_run, reason = False, str(error.strerror)
    if holds_run and not resume:
        raise UserError(f"output_dir: {folder} already holds a run: resume it (--resume) or choose another folder")
    if reason is not None:
        raise UserError(f"output_dir: {folder} cannot be written ({reason}): choose another folder")
    return folder


def write_run_config(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes `config.json`; a resumed run keeps the one it was started with.

    Args:
        folder: of the run; it is made.
        about: models, settings and data; the command and the versions are added.

    Raises:
        UserError: where it cannot be written.
    """
    if list_checkpoints(folder / "checkpoints") and _is_valid_json(folder / "config.json"):
        return
    versions = {"feature-gan-kd": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    described = {**about, "command": _command(), "versions": versions}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"output_dir: {folder} cannot be written ({error.strerror}): make room or choose another folder"
        ) from None


def device_name(device: torch.device) -> str:
    """The name of a device for the reader of a run: of a GPU its model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _command() -> str:
    """The command line of this process, without paths of this machine before the program's name."""
    program, *arguments = sys.argv
    path = Path(program)
    if path.name == "__main__.py" and path.parent.name == "feature_gan_kd":
        start = ["python", "-m", "feature_gan_kd"]
    else:
        start = [path.name] if path.name == "feature-gan-kd" else ["python", program]
    return shlex.join([*start, *arguments])


def _is_valid_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False
