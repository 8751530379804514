"""What a model returns: logits, features, or other tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from feature_gan_kd.utils.errors import UserError


def logits_of(output: Any, name: str) -> Tensor:
    """Returns the logits in a model's output: the output itself, its `logits`, or its first element.

    Args:
        output: a tensor (batch, classes), an object or mapping with `logits`, or a tuple or list of tensors.
        name: of the model, for errors.

    Raises:
        UserError: where none of these is a tensor (batch, classes).
    """
    found = _output_in_place_of_logits(output)
    if not has_logits(output):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{name}: its output is {shape}, expected logits (batch, classes): it cannot classify")
    logits: Tensor = found
    return logits


def has_logits(output: Any) -> bool:
    """Whether `logits_of` finds a tensor (batch, classes) in a model's output."""
    found = _output_in_place_of_logits(output)
    return isinstance(found, Tensor) and found.ndim == 2


def _output_in_place_of_logits(output: Any) -> Any:
    if isinstance(output, Mapping):
        output = output.get("logits")
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, (tuple, list)) and output else output


def output_of(output: Any, name: str) -> Tensor:
    """Returns the logits (batch, classes) in a model's output, else the first tensor in it, of any shape.

    Of several maps (batch, channels, height, width), as of a pyramid, it is the last, the deepest.

    Raises:
        UserError: where there is none.
    """
    if has_logits(output):
        return logits_of(output, name)
    found = tensors_of(output)
    if found and all(tensor.ndim == 4 for tensor in found):
        return found[-1]
    if not found:
        raise UserError(f"{name}: returns {type(output).__name__}, expected a tensor")
    return found[0]


def tensors_of(output: Any) -> list[Tensor]:
    """Lists the tensors of any shape in a module's output, in order, out of nested tuples, lists and mappings."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [tensor for one in output for tensor in tensors_of(one)] if isinstance(output, (tuple, list)) else []
