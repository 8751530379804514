"""Checkpoints on disk: written atomically, verified before anything is loaded; safetensors and JSON only."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from feature_gan_kd.models.weights import tensor_with_nan
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_folder, remove_leftovers

FORMAT = 1
"""Changes when a reader of today would misread what is written; other formats are refused."""

_MANIFEST = "manifest.json"
_META = "state.json"


class MismatchError(UserError):
    """The checkpoint is whole, but of other models or settings: an earlier one would not fit either."""


@dataclass
class Checkpoint:
    """The state of a training.

    Attributes:
        tensors: tensors of any shape by component (`model-0`, `optimizer-logit`, ...) and name.
        meta: everything else, as JSON values.
    """

    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]


def save(checkpoint: Checkpoint, folder: Path, signature: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically: after a crash at any moment it is whole or not there.

    The files are written into a temporary folder beside `folder` and flushed to the disk, with the manifest of their
    hashes last; then the folder is renamed.

    Args:
        checkpoint: what to write.
        folder: where; an existing folder is replaced.
        signature: what a run that loads it must agree with (models, their order, settings).

    Raises:
        UserError: where the disk cannot hold it; earlier checkpoints are not touched.
    """
    try:
        with atomic_folder(folder) as temporary:
            for name, tensors in checkpoint.tensors.items():
                # save_file refuses views and shared storage, so it gets contiguous copies.
                copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
                save_file(copies, temporary / f"{name}.safetensors")
            (temporary / _META).write_text(json.dumps(checkpoint.meta))
            files = {path.name: _hash(path) for path in sorted(temporary.iterdir())}
            manifest = {"format": FORMAT, "signature": signature, "files": files}
            manifest["digest"] = _digest(manifest)
            (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({error}): make room and resume with --resume; earlier "
            "checkpoints are unharmed"
        ) from None


def load(folder: Path, signature: Mapping[str, Any] | None) -> Checkpoint:
    """Reads a checkpoint after verifying all of it.

    Args:
        folder: of the checkpoint.
        signature: what it must agree with; None accepts any.

    Raises:
        UserError: where a file is missing or was changed, or tensors hold NaN.
        MismatchError: where the signature differs.
    """
    manifest = _read_manifest(folder)
    if signature is not None:
        check_signature(folder, signature)
    for name, expected in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise UserError(f"{path}: is missing from the checkpoint: use an earlier checkpoint")
        if _hash(path) != expected:
            raise UserError(f"{path}: differs from what was written (its hash is wrong): use an earlier checkpoint")
    meta = _read_json(folder / _META)
    tensors = {}
    for name in manifest["files"]:
        if name.endswith(".safetensors"):
            try:
                found = load_file(folder / name)
            except SafetensorError as error:
                raise UserError(
                    f"{folder / name}: is no safetensors file ({error}): use an earlier checkpoint"
                ) from None
            bad = tensor_with_nan(found)
            if bad is not None:
                raise UserError(f"{folder / name}: holds NaN in {bad!r} (the run diverged): use an earlier checkpoint")
            tensors[name.removesuffix(".safetensors")] = found
    return Checkpoint(tensors, meta)


def list_checkpoints(parent: Path) -> list[Path]:
    """Lists the checkpoints `step-N` in a folder, newest first."""
    found = [path for path in parent.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def load_newest(parent: Path, signature: Mapping[str, Any] | None) -> tuple[Path, Checkpoint] | None:
    """Loads the newest checkpoint in a folder that is whole; a broken one is skipped with a warning.

    Args:
        parent: of the checkpoints.
        signature: as for `load`.

    Returns:
        Its folder and state; None where there is no checkpoint.

    Raises:
        UserError: where all are broken.
        MismatchError: where the newest whole one is of other models or settings.
    """
    found = list_checkpoints(parent)
    for position, folder in enumerate(found):
        try:
            return folder, load(folder, signature)
        except MismatchError:
            raise
        except UserError as error:
            if position + 1 == len(found):
                raise
            warnings.warn(f"{error}; trying {found[position + 1].name}", stacklevel=2)
    return None


def prune(parent: Path, keep: int, spare: int | None = None) -> None:
    """Removes all checkpoints but the newest `keep` and that of step `spare`, and the remains of broken writes."""
    for path in list_checkpoints(parent)[keep:]:
        if path.name != f"step-{spare}":
            shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(parent)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns an optimiser's state, without objects of this process.

    Parameters are known by their position: names and objects differ in the process that resumes. Numbers of Python stay
    what they are: as float32 tensors they would be rounded, and a resumed run would differ in the last bits.

    Args:
        optimizer: any of torch or timm.

    Returns:
        Tensors of any shape by `position.key`; and as JSON values the `groups` with their settings, and the `numbers`
        in the state by `position.key`.

    Raises:
        UserError: for an optimiser that keeps anything else.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for position, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{position}.{key}"] = value
            elif isinstance(value, (int, float)):
                numbers[f"{position}.{key}"] = value
            elif value is not None:
                kind = type(optimizer).__name__
                raise UserError(f"optimizer: a checkpoint cannot hold {key!r} of {kind}'s state: choose another")
    return tensors, {"groups": [_settings_of(group) for group in state["param_groups"]], "numbers": numbers}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """The inverse of `optimizer_state`, for an optimiser of parameters of the same shapes in the same order.

    Args:
        optimizer: changed in place.
        tensors: of any shape, by `position.key`.
        rest: the settings of its groups, and numbers.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor | float]] = {}
    for name, value in {**tensors, **rest["numbers"]}.items():
        position, key = name.split(".", 1)
        parameter = parameters[int(position)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # In the parameter's memory order: fused optimisers read memory in order and ignore strides.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(position), {})[key] = value
    own = optimizer.state_dict()["param_groups"]
    merged = [{**mine, **saved, "params": mine["params"]} for mine, saved in zip(own, rest["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def _settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group as JSON values.

    timm's LAMB counts its steps there in a tensor, and takes a number back. Types are arguments of the optimiser, which
    the resumed run gives again.
    """
    return {
        key: value.item() if isinstance(value, Tensor) else value
        for key, value in group.items()
        if key != "params" and not isinstance(value, torch.dtype)
    }


def read_signature(folder: Path) -> dict[str, Any]:
    """Reads which models and settings a checkpoint belongs to.

    Raises:
        UserError: where its manifest cannot be read, or was changed.
    """
    signature: dict[str, Any] = _read_manifest(folder)["signature"]
    return signature


def check_signature(folder: Path, expected: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of other models or settings.

    Args:
        folder: of the checkpoint.
        expected: the signature of this run.

    Raises:
        MismatchError: where they differ, naming the first difference.
        UserError: where the manifest cannot be read, or was changed.
    """
    saved, expected = read_signature(folder), json.loads(json.dumps(expected))
    difference = _difference(saved, expected, "")
    if difference is not None:
        where, saved, own = difference
        raise MismatchError(
            f"{folder}: was written with {where} {_shorten(saved)}, this run has {_shorten(own)}: resume with what it "
            "was started with"
        )


def _difference(saved: Any, expected: Any, where: str) -> tuple[str, Any, Any] | None:
    """The first difference between two JSON values: the keys that lead to it, and both values there."""
    if saved == expected:
        return None
    if isinstance(saved, dict) and isinstance(expected, dict):
        for key in [*expected, *saved]:
            inner = _difference(saved.get(key), expected.get(key), f"{where} {key}".strip())
            if inner is not None:
                return inner
    if isinstance(saved, list) and isinstance(expected, list) and len(saved) == len(expected):
        return _difference(dict(enumerate(saved)), dict(enumerate(expected)), where)
    return where, saved, expected


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    manifest = _read_json(path)
    parts = manifest if isinstance(manifest, dict) else {}
    if "format" in parts and parts["format"] != FORMAT:  # nothing else can be expected of another format
        raise UserError(f"{folder}: its format is {parts['format']!r}, this version reads {FORMAT}: upgrade")
    if "format" not in parts or not all(isinstance(parts.get(key), dict) for key in ("files", "signature")):
        raise UserError(f"{path}: is no manifest of a checkpoint: use another checkpoint")
    if parts.pop("digest", None) != _digest(parts):
        raise UserError(f"{path}: differs from what was written (its digest is wrong): use an earlier checkpoint")
    return parts


def _digest(manifest: Mapping[str, Any]) -> str:
    """A hash of the manifest, which lists the hashes of all other files: no byte of a checkpoint can change unseen."""
    values = json.loads(json.dumps(manifest))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}): use an earlier checkpoint") from None


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
