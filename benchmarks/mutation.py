"""How many small faults in the code do the fast tests notice?

A mutant is the code with one change: a comparison turned round, a number one larger, a sign, a condition or a statement
gone. The tests that reach the changed line run on it, on a copy of the tree; a mutant that passes them all survives.

    python -m benchmarks.mutation --count 72 --json mutants.json

It is resumable: mutants that the file already holds are not tried again. The first step runs all fast tests with
coverage.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AREAS = [
    "feature_gan_kd/method/*.py",
    "feature_gan_kd/optim/*.py",
    "feature_gan_kd/distributed/*.py",
    "feature_gan_kd/data/*.py",
    "feature_gan_kd/training/checkpoint_files.py",
]
"""One in so many mutants is taken from each."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one change, for every change that fits."""
    changed: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        changed.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if not any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, node.right)):
            changed.op = OPERATORS[type(node.op)]()
            yield changed
    elif isinstance(node, ast.BoolOp):
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        changed.value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield changed
    elif isinstance(node, (ast.If, ast.IfExp)):
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, description and whole source of every mutant of a file."""
    tree = ast.parse(source)
    for parent in ast.walk(tree):
        if not isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for holder in ast.walk(ast.Module(parent.body, [])):
            for field, value in ast.iter_fields(holder):
                for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                    if not isinstance(node, ast.AST) or isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                        continue
                    for variant in variants(node):
                        _place(holder, field, index, variant)
                        if isinstance(node, (ast.expr, ast.stmt)):
                            what = f"{_first(node)} -> {_first(variant)}"
                            yield node.lineno, what, ast.unparse(ast.fix_missing_locations(tree))
                        _place(holder, field, index, node)


def _place(holder: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(holder, field, node)
    else:
        getattr(holder, field)[index] = node


def _first(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).splitlines()[0][:80]


def chosen(root: Path, areas: list[str], count: int, seed: int) -> list[tuple[str, int, str, str]]:
    """An equal number of mutants from each area, by seed: path, line, description, source."""
    picked = []
    for number, pattern in enumerate(areas):
        found = {
            (str(path.relative_to(root)), line, what): source
            for path in sorted(path for one in pattern.split(",") for path in root.glob(one))
            for line, what, source in mutants(path.read_text())
        }
        share = count // len(areas) + (number < count % len(areas))
        for key in random.Random(seed).sample(sorted(found), min(share, len(found))):
            picked.append((*key, found[key]))
    return picked


def run(root: Path, *arguments: str, cap: float | None = None) -> subprocess.CompletedProcess[str]:
    """Pytest in a tree, on one thread, whose package hides the installed one."""
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=root, env=env, timeout=cap, capture_output=True, text=True)


def tests_of_lines(root: Path, tests: list[str], workers: str) -> dict[tuple[str, int], list[str]]:
    """Which of the fast tests run each line; they all run once, with coverage, unless they have."""
    data = root / ".coverage"
    if not data.exists():
        run(root, *tests, "-n", workers, "--cov=feature_gan_kd", "--cov-context=test", "--cov-report=")
    from coverage.numbits import numbits_to_nums

    rows = sqlite3.connect(data).execute(
        "select path, context, numbits from line_bits join file on file.id = file_id "
        "join context on context.id = context_id where context like '%|run'"
    )
    reached: dict[tuple[str, int], list[str]] = {}
    for path, context, numbits in rows:
        for line in numbits_to_nums(numbits):
            reached.setdefault((os.path.relpath(path, root), line), []).append(context.removesuffix("|run"))
    return reached


def tests_of_file(root: Path, path: str) -> list[str]:
    """The test files that are named after a file or its folder, for lines that run in processes of their own alone.

    Coverage does not follow the processes that a test launches.
    """
    source = Path(path)
    named = {*root.glob(f"tests/**/test_{source.stem}.py"), *root.glob(f"tests/{source.parent.name}/test_*.py")}
    return [str(file.relative_to(root)) for file in sorted(named)]


def killed(root: Path, path: str, source: str, tests: list[str], cap: float) -> str:
    """What becomes of a mutant: "killed", "survived", or "timeout"; a test that never ends fails too."""
    original = (root / path).read_text()
    names = root / "tests-of-mutant.txt"
    # The nearest tests first: those of the file itself.
    tests = sorted(set(tests), key=lambda test: (f"test_{Path(path).name}" not in test, test))
    names.write_text("\n".join(tests))
    try:
        (root / path).write_text(source)
        return "killed" if run(root, "-x", f"@{names}", cap=cap).returncode == 1 else "survived"
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        (root / path).write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the tree to try [this one]")
    parser.add_argument("--areas", nargs="+", default=AREAS, metavar="GLOB", help="files of each area, with commas")
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="tests to try them on [all]")
    parser.add_argument("--count", type=int, default=72, help="mutants in all [72]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cap", type=float, default=300, help="seconds for the tests of one mutant [300]")
    parser.add_argument("--workers", default="2", help="processes of the first run, with coverage [2]")
    parser.add_argument(
        "--json", type=Path, default=Path("mutants.json"), help="the results; NAME.tree beside it is the copied tree"
    )
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    copied = args.json.with_suffix(".tree").resolve()
    if not copied.exists():
        shutil.copytree(
            args.root,
            copied,
            ignore=shutil.ignore_patterns(".venv", ".git", "runs", "__pycache__", ".*_cache", "*.tree"),
        )
    reached = tests_of_lines(copied, args.tests, args.workers)
    for path, line, what, source in chosen(copied, args.areas, args.count, args.seed):
        key = f"{path}:{line}: {what}"
        if key in results:
            continue
        tests = reached.get((path, line)) or tests_of_file(copied, path)
        results[key] = killed(copied, path, source, tests, args.cap) if tests else "survived"
        print(f"{results[key]:12}{key}  ({len(set(tests))} tests)", flush=True)
        args.json.write_text(json.dumps(results, indent=1))
    survived = sum(result == "survived" for result in results.values())
    print(f"{len(results) - survived} of {len(results)} mutants killed, {survived} survived")


if __name__ == "__main__":
    main()
