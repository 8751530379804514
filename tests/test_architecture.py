"""The imports of the package against the table of folders in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "feature_gan_kd"

# torch, and the libraries that import it.
HEAVY = re.compile(r"(torch|torchvision|timm|accelerate|safetensors\.torch)(\.|$)")
LIGHT_WHEN_LOADED = (
    "__init__",
    "__main__",
    "cli.__init__",
    "cli.arguments",
    "config.method_settings",
    "config.settings",
    "method.topology",
    "report.__init__",
    "utils.errors",
)

Imports = dict[str, set[str]]  # module -> the full names it imports


@cache
def levels() -> dict[str, int]:
    """Folder -> level, from the table: a folder imports those of a lower level."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", page, flags=re.MULTILINE)
    above = ["__main__", "__init__"]
    return {folder: level for level, folder in enumerate(reversed([*above, *rows]))}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name inside it: `step`, `models.__init__`, `models.cifar_resnet`."""
    folder = ROOT / PACKAGE
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(folder.rglob("*.py"))
    }


def room(module: str) -> str:
    return module.split(".")[0]


def imported_names(module: str, tree: ast.AST, *, when_loaded: bool = False) -> Iterator[str]:
    """Full names imported by `module`; `when_loaded` leaves out function bodies and `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = f"{PACKAGE}.{module}".split(".")[: -node.level] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif when_loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif when_loaded and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imported_names(module, ast.Module(node.orelse, []), when_loaded=True)
        else:
            yield from imported_names(module, node, when_loaded=when_loaded)


def own_module(name: str, known: dict[str, ast.Module]) -> str | None:
    """The module of this package that importing `name` runs; None outside it."""
    if name.split(".")[0] != PACKAGE:
        return None
    parts = name.split(".")[1:]
    for end in range(len(parts), -1, -1):
        for candidate in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if candidate in known:
                return candidate
    return "__init__"


def internal_imports(known: dict[str, ast.Module], *, when_loaded: bool = False) -> Imports:
    """Which modules of the package each module imports."""
    return {
        module: {
            target
            for name in imported_names(module, tree, when_loaded=when_loaded)
            if (target := own_module(name, known)) is not None and target != module
        }
        for module, tree in known.items()
    }


def level_violations(imports: Imports, level: dict[str, int]) -> Iterator[str]:
    for module, targets in imports.items():
        for target in sorted(targets):
            importer, imported = room(module), room(target)
            if imported == importer:
                continue
            if not {importer, imported} <= level.keys():
                yield f"{module} imports {target}: one of them has no row in docs/architecture.md"
            elif level[imported] >= level[importer]:
                yield f"{module} (L{level[importer]}) imports {target} (L{level[imported]})"


def loaded_with(module: str, imports: Imports) -> set[str]:
    """`module` and all that loading it loads, the package's `__init__` among them."""
    pending, seen = [module, "__init__"], set[str]()
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            pending.extend(imports[current])
            if "." in current:  # a folder's __init__ runs before the modules in it
                pending.append(f"{room(current)}.__init__")
    return seen


def test_every_folder_has_a_row_and_every_row_a_folder() -> None:
    assert {room(module) for module in modules()} == set(levels())


def test_imports_run_downward() -> None:
    assert list(level_violations(internal_imports(modules()), levels())) == []


def test_no_import_cycle() -> None:
    try:
        TopologicalSorter(internal_imports(modules())).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


def test_report_never_imports_torch() -> None:
    rooms = [module for module in modules() if room(module) == "report"]
    assert len(rooms) > 3
    assert [name for module in rooms for name in imported_names(module, modules()[module]) if HEAVY.match(name)] == []


@pytest.mark.parametrize("module", LIGHT_WHEN_LOADED)
def test_loads_without_torch(module: str) -> None:
    heavy = [
        f"{loaded} imports {name}"
        for loaded in sorted(loaded_with(module, internal_imports(modules(), when_loaded=True)))
        for name in imported_names(loaded, modules()[loaded], when_loaded=True)
        if HEAVY.match(name)
    ]
    assert heavy == []


TINY_LEVELS = {"__init__": 3, "top": 2, "peer": 2, "low": 1}


class TestTheReaderItself:
    """The checks above pass on a package that obeys; these show that they would not on one that does not."""

    @staticmethod
    def imports(**sources: str) -> Imports:
        known = dict.fromkeys(("__init__", "top", "peer", "low", "low.part"), "") | sources
        return internal_imports({name: ast.parse(source) for name, source in known.items()})

    @pytest.mark.parametrize(
        ("module", "source", "expected"),
        [
            ("low", f"import {PACKAGE}.top", ["low (L1) imports top (L2)"]),
            ("low", f"from {PACKAGE} import top", ["low (L1) imports top (L2)"]),
            ("low", "from . import top", ["low (L1) imports top (L2)"]),
            ("low", "def f():\n    from .top import g", ["low (L1) imports top (L2)"]),
            ("low", f"from {PACKAGE} import Public", ["low (L1) imports __init__ (L3)"]),
            ("top", f"from {PACKAGE}.peer import f", ["top (L2) imports peer (L2)"]),
            ("top", f"from {PACKAGE}.low.part import f", []),
            ("low", "import torch.nn\nfrom os import path", []),
        ],
    )
    def test_levels(self, module: str, source: str, expected: list[str]) -> None:
        assert list(level_violations(self.imports(**{module: source}), TINY_LEVELS)) == expected

    def test_only_what_runs_at_load_counts_as_loaded(self) -> None:
        source = (
            "import a\ntry:\n    import b\nexcept ImportError:\n    pass\n"
            "if TYPE_CHECKING:\n    import c\nelse:\n    import d\ndef f():\n    import e\n"
        )
        tree = ast.parse(source)
        assert list(imported_names("low", tree, when_loaded=True)) == ["a", "b", "d"]
        assert list(imported_names("low", tree)) == ["a", "b", "c", "d", "e"]
