"""Weights in files: loaded completely or not at all, and searched for NaN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from feature_gan_kd.utils.errors import UserError, reason


def load_weights(module: nn.Module, folder: Path) -> None:
    """Loads `folder/model.safetensors` into a module, all of it or nothing.

    Raises:
        UserError: where the file is missing or damaged, or holds other tensors or NaN.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}): use the last weights") from None
    expected = {key: value.shape for key, value in module.state_dict().items()}
    if expected != {key: value.shape for key, value in tensors.items()}:
        raise UserError(f"{path}: holds other tensors than the model: use the last weights")
    bad = tensor_with_nan(tensors)
    if bad is not None:
        raise UserError(f"{path}: holds NaN in {bad!r}: use the last weights")
    module.load_state_dict(tensors)


def read_class_names(folder: Path) -> list[str] | None:
    """The names of the classes that a published folder states, by index; None where it states none, or is none."""
    try:
        names = json.loads((folder / "config.json").read_text()).get("label_names")
    except (OSError, ValueError, AttributeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def tensor_with_nan(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor, of any shape, that holds NaN; None where none does."""
    return next((name for name, value in tensors.items() if bool(value.isnan().any())), None)
