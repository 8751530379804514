"""A run file as a JSON schema, for editors and validators; the settings are made from their sections."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from feature_gan_kd.config.fields import field_docs
from feature_gan_kd.config.run_file import RECORDED, RECORDED_OF_MODEL, VERSION, DistillerKeys, FitKeys, PeerKeys
from feature_gan_kd.config.settings import PEER_SETTINGS, SECTIONS
from feature_gan_kd.config.validation import ValueType

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_BOUNDS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}


_LAYER = {"type": ["string", "integer"]}
_LAYERS = {"anyOf": [_LAYER, {"type": "array", "items": _LAYER, "minItems": 1}]}


def run_file_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a run file, the settings below `config` and the `config.json` of a run included.

    It holds names, types, bounds, defaults and descriptions. Only the program checks what depends on several values at
    once, such as milestones that rise, or a setting of a model that is not there.
    """
    fact = {"description": "A fact of the run that wrote the file; it is not read."}
    edge = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Run file of feature_gan_kd",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "version": {"description": "Of the format of this file.", "const": VERSION},
            "models": {
                "description": "At least two: names, or arguments of a Peer.",
                "type": "array",
                "minItems": 2,
                "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/peer"}]},
            },
            "topology": {
                "description": "Which model teaches which: cycle, complete, star, or a list of [source, learner].",
                "anyOf": [{"enum": ["cycle", "complete", "star"]}, {"type": "array", "items": edge}],
            },
            "feature_layers": {
                "description": "Layers whose outputs are the feature maps, of all models or by position (default: the "
                "last map before pooling).",
                "anyOf": [*_LAYERS["anyOf"], {"type": "object", "additionalProperties": _LAYERS}, {"type": "null"}],
            },
            **_properties(DistillerKeys),
            **_properties(FitKeys),
            "config": {"$ref": "#/$defs/settings"},
            **dict.fromkeys(RECORDED, fact),
        },
        # What a run records has its versions: a person who writes image_size at the top means the setting.
        "dependentRequired": {name: ["versions"] for name in RECORDED if name != "versions"},
        "$defs": {
            "peer": _peer_schema(fact),
            "settings": settings_schema(),
        },
    }


def _peer_schema(fact: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of one of the models, with settings of its own; `fact` is that of what a run records."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["model"],
        "properties": {
            **_properties(PeerKeys),
            "feature_layers": {
                "description": "Layers whose outputs are its feature maps (default: as all models).",
                **_LAYERS,
            },
            "model_args": {"description": "Arguments for timm.", "type": "object"},
            **{
                name: {key: one for key, one in described.items() if key != "default"}
                for section in SECTIONS
                for name, described in _properties(section).items()
                if name in PEER_SETTINGS
            },
            **dict.fromkeys(RECORDED_OF_MODEL, fact),
        },
    }


def settings_schema() -> dict[str, Any]:
    """JSON schema of what `DistillConfig.to_dict` gives and `from_dict` takes."""
    properties: dict[str, Any] = {}
    for section in SECTIONS:
        properties |= _properties(section)
    return {
        "description": "Every setting, by name.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _properties(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass, by name."""
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    return {
        spec.name: {"description": docs[spec.name], **_describe(ValueType.from_hint(hints[spec.name]), spec.metadata)}
        | {"default": spec.default}
        for spec in dataclasses.fields(cls)
        if spec.name in docs
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
