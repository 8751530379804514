"""What every public docstring says: that it is there, the errors raised, shapes of tensors, and all arguments.

What can be told from the code alone is asked for: a `UserError` that a function raises itself, and tensors in its
signature. Errors of what it calls, units and sources are for reviews.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import feature_gan_kd

PACKAGE = Path(feature_gan_kd.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef
# "(batch, channels)", "(n,)", "`(N, H, W, C)`", or words for what has no fixed shape.
SHAPE = re.compile(
    r"\([\w.*+]+,( ?[\w.*+]+,?)*\)|scalar|\bshape[sd]?\b|\bSee `|\bsee `|for each of the `indices`", re.IGNORECASE
)
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
INTERFACE = [name for name in feature_gan_kd.__all__ if name != "__version__"]


def public(node: ast.AST, path: str) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Public classes and functions below a module or class, with their places."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
            yield f"{path}: {child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{path}: {child.name}")


def found() -> dict[str, ast.ClassDef | Function]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {
        place: node
        for path in paths
        for place, node in public(ast.parse(path.read_text()), str(path.relative_to(PACKAGE)))
    }


FOUND = found()
FUNCTIONS = {place: node for place, node in FOUND.items() if isinstance(node, Function)}


def text_of(node: ast.ClassDef | Function) -> str:
    return ast.get_docstring(node) or ""


def test_there_is_one() -> None:
    assert [place for place, node in FOUND.items() if not text_of(node)] == []
    assert len(FOUND) > 300


def raises(node: Function) -> bool:
    """Whether the function itself raises a `UserError`; one that it catches again is not looked for."""
    return any(
        isinstance(one, ast.Raise) and isinstance(one.exc, ast.Call) and ast.unparse(one.exc.func) == "UserError"
        for one in ast.walk(node)
    )


# A command's docstring is its help text, where the lines of errors have no place: docs/errors.md has them.
HELP = re.compile(r"cli/(train|evaluate|export|predict|embed|probe|inspect|report|schema)\.py")


def test_errors_that_are_raised_are_told() -> None:
    untold = [
        place
        for place, node in FUNCTIONS.items()
        if raises(node) and "Raises" not in text_of(node) and not HELP.match(place)
    ]
    assert untold == []
    assert sum(map(raises, FUNCTIONS.values())) > 40


def has_tensors(node: Function) -> bool:
    annotations = [one.annotation for one in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(one)) for one in annotations if one is not None)


def test_shapes_of_tensors_are_told() -> None:
    untold = [place for place, node in FUNCTIONS.items() if has_tensors(node) and not SHAPE.search(text_of(node))]
    assert untold == []
    assert sum(map(has_tensors, FUNCTIONS.values())) > 50


@pytest.mark.parametrize("name", INTERFACE)
def test_the_interface_tells_every_argument(name: str) -> None:
    interface = getattr(feature_gan_kd, name)
    members = [(name, interface)] + [
        (f"{name}.{key}", getattr(interface, key)) for key in vars(interface) if not key.startswith("_")
    ]
    for place, member in members:
        if not callable(member):
            continue
        text = inspect.getdoc(member) or ""
        assert text, place
        if issubclass(interface, Exception) or (member is interface and name in ("DistillConfig", "History")):
            continue  # settings are told one by one, see tests/test_schema.py
        parameters = inspect.signature(member).parameters.values()
        names = [p.name for p in parameters if p.kind in NAMED and p.name != "self"]
        missing = [one for one in names if not re.search(rf"\b{one}\b|See `", text)]
        assert missing == [], place


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ('def f(x: Tensor) -> None:\n    """Something."""', "shape"),
        ('def f(x: Tensor) -> None:\n    """A map (batch, channels, height, width)."""', ""),
        ('def f() -> None:\n    """Something."""\n    raise UserError("x")', "raises"),
        ('def f() -> None:\n    """Raises UserError, always."""\n    raise UserError("x")', ""),
    ],
)
def test_what_is_missing_is_found(code: str, wrong: str) -> None:
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.FunctionDef)
    assert (has_tensors(node) and not SHAPE.search(text_of(node))) == (wrong == "shape")
    assert (raises(node) and "Raises" not in text_of(node)) == (wrong == "raises")
