"""Weights in files: read whole or not at all, and looked through for NaN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from feature_gan_kd.utils.errors import UserError, reason


def load_weights(module: nn.Module, folder: Path) -> None:
    """Gives a module the weights in `folder/model.safetensors`, all of them or none.

    Raises:
        UserError: where the file is not there, is damaged, or holds other tensors or NaN.
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


def tensor_with_nan(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor, of any shape, that holds NaN."""
    return next((name for name, value in tensors.items() if bool(value.isnan().any())), None)
