"""Whether a value is one of those that a setting may have, and how to say that it is not."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from feature_gan_kd.utils.errors import UserError


def coerce(value: Any, hint: Any) -> Any:
    """Lists become tuples (JSON has none) and whole numbers become floats where a float is expected."""
    allowed = _alternatives(hint)
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple):
        return tuple(_as_float(item) if type(item) is int else item for item in value)
    return _as_float(value) if type(value) is int and float in allowed and int not in allowed else value


def _as_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or _is_union(hint) else (hint,)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union


def _matches(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(type(item) is float for item in value)
    return type(value) is hint


def check(name: str, value: Any, hint: Any, bounds: Mapping[str, float]) -> None:
    """Looks at one setting.

    Args:
        name: said first in the error.
        value: of the setting.
        hint: its type.
        bounds: of its number or numbers, by `at_least`, `above` and `at_most`.

    Raises:
        UserError: for a value of another type or outside the bounds.
    """
    if not any(_matches(value, one) for one in _alternatives(hint)):
        raise UserError(f"{name}: {show(value)} is not allowed, expected {_describe(hint)}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        low, above, high = bounds.get("at_least"), bounds.get("above"), bounds.get("at_most")
        if (
            not math.isfinite(_as_float(number))
            or (low is not None and number < low)
            or (above is not None and number <= above)
            or (high is not None and number > high)
        ):
            raise UserError(f"{name}: {show(value)} is not allowed, expected {_describe_bounds(bounds)}")


def show(value: Any) -> str:
    """The value on one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _describe(hint: Any) -> str:
    words: list[str] = []
    for one in _alternatives(hint):
        if typing.get_origin(one) is Literal:
            words.extend(str(choice) for choice in typing.get_args(one))
        elif typing.get_origin(one) is tuple:
            words.append("a list of numbers")
        else:
            names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
            words.append(names.get(one, "nothing (None)"))
    return " or ".join(words)


def _describe_bounds(bounds: Mapping[str, float]) -> str:
    words = {"at_least": "at least", "above": "above", "at_most": "at most"}
    return "a finite number " + " and ".join(f"{words[key]} {bound}" for key, bound in bounds.items())
