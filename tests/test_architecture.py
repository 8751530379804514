"""The imports of the package against the tables of docs/architecture.md."""

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
    "arguments",
    "cli.__init__",
    "config",
    "errors",
    "methods",
    "recipes",
    "report.__init__",
    "topology",
    "validation",
)

Imports = dict[str, set[str]]  # module -> the full names it imports


@cache
def levels() -> dict[str, int]:
    """Room -> level, from the table of rooms."""
    return {room: int(level) for room, level in _rows(r"\| `(\w+)(?:\.py|/)` \| L(\d) \|")}


@cache
def declared_pairs() -> frozenset[tuple[str, str]]:
    """(importer, imported) rooms of one level, from the table of declared imports."""
    return frozenset((importer, imported) for importer, imported in _rows(r"\| `(\w+)\.py` \| `(\w+)\.py` \|"))


def _rows(pattern: str) -> list[tuple[str, str]]:
    return re.findall(rf"^{pattern}", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)


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
    """The module of this package that importing `name` runs; None outside it and for `__version__`."""
    if name.split(".")[0] != PACKAGE or name == f"{PACKAGE}.__version__":
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


def level_violations(imports: Imports, level: dict[str, int], pairs: frozenset[tuple[str, str]]) -> Iterator[str]:
    for module, targets in imports.items():
        for target in sorted(targets):
            importer, imported = room(module), room(target)
            if imported in (importer, "errors") or (importer, imported) in pairs:
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


def test_every_module_has_a_row_and_every_row_a_module() -> None:
    rooms = {room(module) for module in modules()}
    assert sorted(rooms - levels().keys()) == [], "rooms without a row in docs/architecture.md"
    assert sorted(levels().keys() - rooms) == [], "rows in docs/architecture.md without a room"


def test_imports_run_downward() -> None:
    assert list(level_violations(internal_imports(modules()), levels(), declared_pairs())) == []


def test_declared_pairs_are_of_one_level_and_in_use() -> None:
    used = {(room(module), room(target)) for module, ts in internal_imports(modules()).items() for target in ts}
    assert sorted(declared_pairs() - used) == [], "declared and not imported"
    assert [pair for pair in sorted(declared_pairs()) if levels()[pair[0]] != levels()[pair[1]]] == []


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


TINY_LEVELS = {"__init__": 3, "top": 2, "peer": 2, "low": 1, "errors": 1}


class TestTheReaderItself:
    """The checks above pass on a package that obeys; these show that they would not on one that does not."""

    @staticmethod
    def imports(**sources: str) -> Imports:
        known = dict.fromkeys(("__init__", "top", "peer", "low", "errors", "low.part"), "") | sources
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
            ("low", f"from {PACKAGE}.errors import UserError", []),
            ("low", f"from {PACKAGE} import __version__", []),
            ("low", "import torch.nn\nfrom os import path", []),
        ],
    )
    def test_levels(self, module: str, source: str, expected: list[str]) -> None:
        assert list(level_violations(self.imports(**{module: source}), TINY_LEVELS, frozenset())) == expected

    def test_a_declared_pair_is_allowed_in_its_direction_only(self) -> None:
        imports = self.imports(top="from .peer import f", peer="from .top import g")
        found = list(level_violations(imports, TINY_LEVELS, frozenset({("top", "peer")})))
        assert found == ["peer (L2) imports top (L2)"]

    def test_only_what_runs_at_load_counts_as_loaded(self) -> None:
        source = (
            "import a\ntry:\n    import b\nexcept ImportError:\n    pass\n"
            "if TYPE_CHECKING:\n    import c\nelse:\n    import d\ndef f():\n    import e\n"
        )
        tree = ast.parse(source)
        assert list(imported_names("low", tree, when_loaded=True)) == ["a", "b", "d"]
        assert list(imported_names("low", tree)) == ["a", "b", "c", "d", "e"]


def test_the_table_of_changes_names_what_is_there() -> None:
    """CONTRIBUTING.md: for every kind of change a room of the package and its tests."""
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 20
    for change, rooms, tests in rows[1:]:
        for folder, names in ((PACKAGE, rooms), ("tests", tests)):
            for name in re.findall(r"`([^`]+)`", names):
                assert (ROOT / folder / name).exists() or (ROOT / name).is_file(), f"{change}: {name}"
