"""The fields of the settings: how one is declared with its bounds, and how its help text is read."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from typing import Any


def bounded(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    per_peer: bool = False,
) -> Any:
    """A dataclass field whose number, or each of whose numbers, must lie within the bounds.

    A model may have a value of its own for a setting that is `per_peer`.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    stated = {key: one for key, one in bounds.items() if one is not None}
    return dataclasses.field(default=default, metadata=stated | ({"per_peer": True} if per_peer else {}))


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line, by the name of the field."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }
