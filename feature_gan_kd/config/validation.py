"""The type of a setting's value: which values it takes, and the line that refuses any other."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from feature_gan_kd.utils.errors import UserError

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "name", Path: "path"}


@dataclass(frozen=True)
class ValueType:
    """The type of a setting's value.

    Attributes:
        scalar: bool, int, float, str or Path; in a list, the type of its items.
        choices: the allowed values; empty where the bounds alone decide.
        is_list: whether the value is a list, which is kept as a tuple.
        is_optional: whether the value may be None.
    """

    scalar: type
    choices: tuple[Any, ...] = ()
    is_list: bool = False
    is_optional: bool = False

    @classmethod
    def from_hint(cls, hint: Any) -> ValueType:
        """Reads an annotation: a scalar type, a `Literal`, `tuple[scalar, ...]`, or one of these or None."""
        is_optional = types.NoneType in typing.get_args(hint)
        if is_optional:
            (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
        is_list = typing.get_origin(hint) is tuple
        if is_list:
            hint = typing.get_args(hint)[0]
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        return cls(type(choices[0]) if choices else hint, choices, is_list, is_optional)

    def describe_item(self) -> str:
        """What a single value should be, in words."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        return _WORDS[self.scalar] if self.scalar is bool else f"a {_WORDS[self.scalar]}"

    def describe(self) -> str:
        """What the whole value should be, in words."""
        words = f"a list of {_WORDS[self.scalar]}s" if self.is_list else self.describe_item()
        return f"{words} or None" if self.is_optional else words

    def accepts_item(self, item: Any) -> bool:
        """Whether a single value has the right type and is one of the choices."""
        # A path is of a type of its system's own, and True is no number.
        right = isinstance(item, Path) if self.scalar is Path else type(item) is self.scalar
        return right and (not self.choices or item in self.choices)

    def convert_item(self, item: Any) -> Any:
        """A whole number as a float where a float is expected; anything else as it is."""
        if self.scalar is not float or type(item) is not int:
            return item
        try:
            return float(item)
        except OverflowError:
            return math.inf if item > 0 else -math.inf


def check_value(name: str, value: Any, expected: ValueType, bounds: Mapping[str, float]) -> Any:
    """Checks one setting, and returns its value with lists as tuples and whole numbers as floats where expected.

    Args:
        name: of the setting; the error line starts with it.
        value: from Python or from JSON.
        expected: the type of the setting.
        bounds: of its number or numbers, by `at_least`, `above`, `at_most` and `below`.

    Raises:
        UserError: for a value of another type or outside the bounds.
    """
    if value is None and expected.is_optional:
        return None
    is_list = isinstance(value, (list, tuple))
    items = tuple(map(expected.convert_item, value if is_list else (value,)))
    value = items if is_list else items[0]
    if is_list != expected.is_list or not all(map(expected.accepts_item, items)):
        raise UserError(f"{name}: {show(value)} is not allowed, expected {expected.describe()}")
    if expected.scalar in (int, float) and not all(_is_within(item, bounds) for item in items):
        raise UserError(f"{name}: {show(value)} is not allowed, expected {_describe_bounds(bounds)}")
    return value


def _is_within(number: float, bounds: Mapping[str, float]) -> bool:
    return (
        # Whole numbers are always finite, and those beyond the largest float would overflow `isfinite`.
        (isinstance(number, int) or math.isfinite(number))
        and number >= bounds.get("at_least", -math.inf)
        and number > bounds.get("above", -math.inf)
        and number <= bounds.get("at_most", math.inf)
        and number < bounds.get("below", math.inf)
    )


def _describe_bounds(bounds: Mapping[str, float]) -> str:
    words = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}
    return "a finite number " + " and ".join(f"{words[key]} {bounds[key]}" for key in words if key in bounds)


def show(value: Any) -> str:
    """The value on one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
