"""Reads YAML, TOML and JSON into plain values, and remembers the line of every key, for errors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from feature_gan_kd.utils.errors import UserError, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Place = tuple[str | int, ...]
"""Where a value stands: the keys and positions that lead to it."""

_KINDS = {".yaml": "YAML", ".yml": "YAML", ".toml": "TOML", ".json": "JSON"}
_MAP, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_SCALARS = tuple(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))


@dataclass(frozen=True)
class Document:
    """The values of a file.

    Attributes:
        path: of the file.
        values: by name: strings, numbers, true, false, None, and lists and mappings of them.
        lines: the line of each place that is known, from 1.
    """

    path: Path
    values: dict[str, Any]
    lines: Mapping[Place, int]

    def error(self, place: Place, message: str) -> UserError:
        """Makes the error for what stands at a place; it names the nearest line that is known."""
        known = (self.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.lines)
        line = next(known, None)
        return UserError(f"{self.path}{'' if line is None else f', line {line}'}: {message}")


def read_document(path: Path) -> Document:
    """Reads a file of the kind that the ending of its name says.

    Raises:
        UserError: for another ending, a file that cannot be read or is not of its kind, a key that is given twice, and
            YAML that asks for objects in place of plain values.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: is no run file by its name, expected {', '.join(_KINDS)}: rename it")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a run file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text in UTF-8: save it as such") from None
    lines: dict[Place, int] = {}
    try:
        values = {"YAML": _read_yaml, "TOML": _read_toml, "JSON": _read_json}[kind](text, lines)
    except _MistakeError as mistake:
        raise UserError(f"{path}, line {mistake.line}: {mistake}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{path}{line}: is not YAML ({reason(Exception(error.problem or error.context))})") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: is not {kind} ({reason(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no names with values, expected such as models, train_data and config")
    return Document(path, values, lines)


class _MistakeError(Exception):
    """Something that the file's kind allows and a run file does not."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Knows plain values as YAML 1.2 and JSON write them.

    PyYAML follows YAML 1.1, where `no` is false, `1e-4` is a word and `1:30` is a number.
    """

    yaml_implicit_resolvers: ClassVar[Any] = {}


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})$"), _first)


def _read_yaml(text: str, lines: dict[Place, int]) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _build(loader, node, (), lines, {})
    finally:
        loader.dispose()


def _build(loader: _Loader, node: Any, place: Place, lines: dict[Place, int], built: dict[int, Any]) -> Any:
    """The plain value of a node. What an anchor names is built once, however often it is used."""
    if id(node) in built:
        if built[id(node)] is ...:
            raise _MistakeError(node.start_mark.line + 1, "a value holds itself")
        return built[id(node)]
    built[id(node)] = ...
    expected = {yaml.MappingNode: (_MAP,), yaml.SequenceNode: (_SEQUENCE,)}.get(type(node), _SCALARS)
    if node.tag not in expected:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _MistakeError(
            node.start_mark.line + 1, f"{tag} would build an object, only plain values are read: remove it"
        )
    value: Any
    if isinstance(node, yaml.MappingNode):
        value = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key in value:
                raise _MistakeError(line, f"{key!r} is given twice: keep one" if key else "a key is no word")
            lines[(*place, key)] = line
            value[key] = _build(loader, value_node, (*place, key), lines, built)
    elif isinstance(node, yaml.SequenceNode):
        value = []
        for k, item in enumerate(node.value):
            lines[(*place, k)] = item.start_mark.line + 1
            value.append(_build(loader, item, (*place, k), lines, built))
    else:
        value = loader.construct_object(node)
    built[id(node)] = value
    return value


def _read_json(text: str, lines: dict[Place, int]) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = next((key for k, (key, _) in enumerate(pairs) if key in dict(pairs[:k])), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is given twice")
        return dict(pairs)

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    values = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    try:  # JSON is YAML but for tabs, which can stand only between its values
        _read_yaml(text.replace("\t", " "), lines)
    except (_MistakeError, yaml.YAMLError, ValueError):
        lines.clear()  # errors then name the file alone
    return values


def _read_toml(text: str, lines: dict[Place, int]) -> Any:
    values = tomllib.loads(text)
    place: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[\s*([\w.-]+)\s*\]\]", line):
            counts[header[1]] = counts.get(header[1], -1) + 1
            place = (*header[1].split("."), counts[header[1]])
            lines[place] = number
        elif header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            names = header[1].split(".")
            # [models.model_args] belongs to the last of [[models]].
            place = (names[0], counts[names[0]], *names[1:]) if names[0] in counts else tuple(names)
            lines.setdefault(place, number)
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            lines.setdefault((*place, key[1]), number)
    return values
