"""What is wrong with a command's arguments, in one line: tyro's own words are made for a box on a terminal."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from feature_gan_kd.utils.errors import closest


def explain_parse_error(command: str, function: Callable[..., None], args: Sequence[str]) -> str:
    """One line on the first mistake in arguments that tyro refused.

    Args:
        command: its name.
        function: whose parameters tyro made the options from: positional-only ones, dataclasses, single settings.
        args: that follow the command's name.
    """
    options, required, positions = _options(function)
    tokens, loose = list(args), []
    while tokens:
        name, equals, value = tokens.pop(0).partition("=")
        if not name.startswith("--"):
            loose.append(f"{name}{equals}{value}")
            continue
        name = name.replace("_", "-")
        if name not in options:
            near = closest(name, list(options))
            return f"{name}: {command} has no such option{near and f', the closest are {near}'}"
        hint, values = options[name], [value] if equals else []
        most = 0 if equals or hint is bool else len(tokens) if _is_list(hint) else 1
        while len(values) < most and tokens and not tokens[0].startswith("--"):
            values.append(tokens.pop(0))
        wrong = [one for one in values if not _fits(one, hint)]
        if wrong:
            return f"{name}: {wrong[0]!r} is not allowed, expected {_expected(hint)}"
        if not values and most and not _is_list(hint):
            return f"{name}: its value is missing, expected {_expected(hint)}"
        required.pop(name, None)
    usage = " ".join(["feature-gan-kd", command, *positions, *required.values(), "[--option value ...]"])
    needed = [one for one in positions if not one.startswith("[")]
    if len(loose) > len(positions) == len(needed):
        return f"{command}: {loose[len(positions)]!r} is one argument too many, expected {usage}"
    missing = " and ".join([*needed[len(loose) :], *required])
    return f"{command}: missing {missing or 'an argument'}, expected {usage}"


def _options(function: Callable[..., None]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """A command's options with their types, those that must be given with their use, and its positional arguments."""
    hints = typing.get_type_hints(function)
    settings: dict[str, Any] = {}
    required: dict[str, str] = {}
    positions = []
    for name, parameter in signature(function).parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positions.append(f"[{name.upper()} ...]" if _is_list(hints[name]) else name.upper())
        elif dataclasses.is_dataclass(hints[name]):
            settings |= typing.get_type_hints(hints[name])
            fields = [field.name for field in dataclasses.fields(hints[name]) if field.default is dataclasses.MISSING]
            required |= {option(one): f"{option(one)} {one.split('_')[-1].upper()}" for one in fields}
        else:
            settings[name] = hints[name]
    settings |= {f"no_{name}": bool for name, hint in settings.items() if hint is bool}
    return {option(name): hint for name, hint in settings.items()}, required, positions


def option(setting: str) -> str:
    """A setting's option."""
    return f"--{setting.replace('_', '-')}"


def _alternatives(hint: Any) -> list[Any]:
    """The types that a value may have, without None: for that, the option is left out."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return [one for one in typing.get_args(hint) if one is not type(None)] if union else [hint]


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(one) is tuple for one in _alternatives(hint))


def _fits(value: str, hint: Any) -> bool:
    """Whether tyro takes a value for an option of that type."""
    (kind,) = _alternatives(hint)
    if value == "None" and kind is not hint:
        return True
    if typing.get_origin(kind) is Literal:
        return value in map(str, typing.get_args(kind))
    try:
        (typing.get_args(kind)[0] if _is_list(kind) else kind)(value)
    except ValueError:
        return False
    return True


def _expected(hint: Any) -> str:
    (kind,) = _alternatives(hint)
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    words = {int: "a whole number", float: "a number", Path: "a path", str: "a name"}
    return f"{words[typing.get_args(kind)[0]]}, or several" if _is_list(kind) else words[kind]
