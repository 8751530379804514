"""The settings of a run as a JSON schema, for editors and validators; made from `DistillConfig`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import docstring_parser

from feature_gan_kd.config.settings import DistillConfig

_TYPES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}
_BOUNDS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum"}


def config_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of what `DistillConfig.to_dict` gives and `from_dict` takes, as JSON values.

    It holds names, types, bounds, defaults and descriptions. What depends on several settings at once, such as
    milestones that rise, `DistillConfig` alone checks.
    """
    hints = typing.get_type_hints(DistillConfig)
    described = {one.arg_name: one.description for one in docstring_parser.parse_from_object(DistillConfig).params}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of a run of feature_gan_kd",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            spec.name: {
                "description": " ".join((described[spec.name] or "").split()),
                **_allowed(hints[spec.name], spec.metadata),
                "default": spec.default,
            }
            for spec in dataclasses.fields(DistillConfig)
        },
    }


def _allowed(hint: Any, bounds: Mapping[str, float]) -> dict[str, Any]:
    """What a value of the type `hint` may be."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return {"anyOf": [_allowed(one, bounds) for one in typing.get_args(hint)]}
    if typing.get_origin(hint) is typing.Literal:
        return {"enum": list(typing.get_args(hint))}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": _allowed(typing.get_args(hint)[0], bounds)}
    limits = {_BOUNDS[key]: bound for key, bound in bounds.items()} if hint in (int, float) else {}
    return {"type": _TYPES[hint], **limits}
