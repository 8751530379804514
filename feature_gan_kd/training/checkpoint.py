"""Checkpoints on disk: atomic, verified before anything is loaded, safetensors and JSON only."""

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

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.models.weights import tensor_with_nan
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_folder, remove_leftovers

FORMAT = 1
_MANIFEST = "manifest.json"
_META = "state.json"


class MismatchError(UserError):
    """A good checkpoint, but of other models or settings: an older one would not fit either."""


@dataclass
class Checkpoint:
    """A state in two halves.

    Attributes:
        tensors: per component (`model-0`, `optimizer-logit`, ...) its tensors by name, on CPU.
        meta: everything else, as JSON values.
    """

    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]


def save(checkpoint: Checkpoint, folder: Path, signature: Mapping[str, Any]) -> None:
    """Writes a checkpoint that is either wholly there or not at all.

    Everything goes into a temporary folder beside `folder`, the manifest with a hash per file last, and to the disk;
    then the folder takes its name.

    Args:
        checkpoint: what to write.
        folder: its final place; replaced where it exists.
        signature: what a reader must agree with (models, their order, shapes).

    Raises:
        UserError: where the disk cannot hold it; nothing else is touched then.
    """
    try:
        with atomic_folder(folder) as temporary:
            for name, tensors in checkpoint.tensors.items():
                # save_file refuses views and shared storage: write own, contiguous copies.
                own = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
                save_file(own, temporary / f"{name}.safetensors")
            (temporary / _META).write_text(json.dumps(checkpoint.meta))
            files = {path.name: _hash(path) for path in sorted(temporary.iterdir())}
            manifest = {"format": FORMAT, "signature": signature, "files": files}
            manifest["digest"] = _digest(manifest)
            (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({error}): make room and go on with --resume; those before "
            "it are unharmed"
        ) from None


def load(folder: Path, signature: Mapping[str, Any] | None) -> Checkpoint:
    """Reads a checkpoint after checking all of it: format, files, hashes and signature (None: any), and for NaN.

    Raises:
        UserError: in one line, for anything that is not as it was written or belongs to other models.
    """
    manifest = _read_manifest(folder)
    if signature is not None:
        check_signature(folder, signature)
    for name, expected in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise UserError(f"{path}: is missing from the checkpoint: use an earlier one")
        if _hash(path) != expected:
            raise UserError(f"{path}: differs from what was written (its hash is wrong): use an earlier checkpoint")
    meta = _read_json(folder / _META)
    tensors = {}
    for name in manifest["files"]:
        if name.endswith(".safetensors"):
            try:
                found = load_file(folder / name)
            except SafetensorError as error:
                raise UserError(f"{folder / name}: is no safetensors file ({error}): use an earlier one") from None
            bad = tensor_with_nan(found)
            if bad is not None:
                raise UserError(f"{folder / name}: holds NaN in {bad!r} (the run diverged): use an earlier checkpoint")
            tensors[name.removesuffix(".safetensors")] = found
    return Checkpoint(tensors, meta)


def newest(parent: Path) -> list[Path]:
    """The finished checkpoints `step-N` in a folder, newest first."""
    found = [path for path in parent.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def newest_good(parent: Path, signature: Mapping[str, Any] | None) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint in a folder that is whole, with its place; a broken one is passed over with a warning.

    Args:
        parent: of the checkpoints.
        signature: as for `load`.

    Returns:
        None where there is no checkpoint.

    Raises:
        UserError: where all are broken.
        MismatchError: where the newest whole one is of other models or settings.
    """
    found = newest(parent)
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
    """Removes all checkpoints but the newest `keep` and that of step `spare`, and what broken writes left behind."""
    for path in newest(parent)[keep:]:
        if path.name != f"step-{spare}":
            shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(parent)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as tensors of any shape by name (`position.key`) and its groups' settings as JSON values."""
    state = optimizer.state_dict()
    tensors = {
        f"{position}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for position, values in state["state"].items()
        for key, value in values.items()
        if value is not None
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return tensors, groups


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """The inverse of `optimizer_state`, for an optimiser of parameters of the same shapes in the same order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        position, key = name.split(".", 1)
        parameter = parameters[int(position)]
        if value.shape == parameter.shape:
            # In the parameter's memory order: fused optimisers go by memory and do not look at strides.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(position), {})[key] = value
    own = optimizer.state_dict()["param_groups"]
    merged = [{**mine, **saved, "params": mine["params"]} for mine, saved in zip(own, groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def signature_of(folder: Path) -> dict[str, Any]:
    """What the checkpoint in `folder` was written for.

    Raises:
        UserError: where its manifest cannot be read, or was changed.
    """
    signature: dict[str, Any] = _read_manifest(folder)["signature"]
    return signature


def check_signature(folder: Path, expected: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that was written for something else.

    A setting that the checkpoint's writer did not know yet counts as having its default, the origin of its weights as
    the one expected.

    Args:
        folder: of the checkpoint.
        expected: as for `save`.

    Raises:
        MismatchError: where they differ, naming the first difference.
        UserError: where the manifest cannot be read, or was changed.
    """
    saved, expected = signature_of(folder), json.loads(json.dumps(expected))
    if isinstance(saved.get("config"), dict):
        defaults = DistillConfig().defining()
        known = {name: defaults[name] for name in expected.get("config", {}) if name in defaults}
        saved["config"] = {**known, **saved["config"]}
    for one, own in zip(saved.get("models") or (), expected.get("models") or (), strict=False):
        if isinstance(one, dict) and isinstance(own, dict) and "origin" in own:
            one.setdefault("origin", own["origin"])
    difference = _difference(saved, expected, "")
    if difference is not None:
        where, saved, own = difference
        raise MismatchError(
            f"{folder}: was written with {where} {_short(saved)}, this run has {_short(own)}: resume with what it was "
            "started with"
        )


def _difference(saved: Any, expected: Any, where: str) -> tuple[str, Any, Any] | None:
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
    manifest = _read_json(folder / _MANIFEST)
    parts = manifest if isinstance(manifest, dict) else {}
    if "format" in parts and parts["format"] != FORMAT:  # what else it holds is not known
        raise UserError(f"{folder}: its format is {parts['format']!r}, this version reads {FORMAT}: upgrade")
    if "format" not in parts or not all(isinstance(parts.get(key), dict) for key in ("files", "signature")):
        raise UserError(f"{folder / _MANIFEST}: is no manifest of a checkpoint: use another checkpoint")
    # Checkpoints of the first versions have none.
    stated = parts.pop("digest", None)
    if stated is not None and stated != _digest(parts):
        raise UserError(
            f"{folder / _MANIFEST}: differs from what was written (its digest is wrong): use an earlier one"
        )
    return parts


def _digest(manifest: Mapping[str, Any]) -> str:
    values = json.loads(json.dumps(manifest))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
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
