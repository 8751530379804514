"""The settings of a run as a JSON schema, for editors and validators; made from the sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from feature_gan_kd.config.distill_config import setting_types
from feature_gan_kd.config.fields import field_docs
from feature_gan_kd.config.settings import SECTIONS
from feature_gan_kd.config.validation import ValueType

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_BOUNDS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}


def config_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of what `DistillConfig.to_dict` gives and `from_dict` takes, as JSON values.

    It holds names, types, bounds, defaults and descriptions. Only `DistillConfig` checks what depends on several values
    at once, such as milestones that rise.
    """
    expected = setting_types()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of a run of feature_gan_kd",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            spec.name: {"description": docs[spec.name], **_describe(expected[spec.name], spec.metadata)}
            | {"default": spec.default}
            for section in SECTIONS
            for docs in [field_docs(section)]
            for spec in dataclasses.fields(section)
        },
    }


def _describe(expected: ValueType, bounds: Mapping[str, float]) -> dict[str, Any]:
    """What a value of the type may be."""
    if expected.choices:
        described: dict[str, Any] = {"enum": list(expected.choices)}
    else:
        described = {
            "type": _TYPES[expected.scalar],
            **{_BOUNDS[key]: bound for key, bound in bounds.items() if key in _BOUNDS},
        }
    if expected.is_list:
        described = {"type": "array", "items": described}
    return {"anyOf": [described, {"type": "null"}]} if expected.is_optional else described
