"""What small comparisons of arms over seeds have in common: their options, result files and differences."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare.differences import paired_difference
from benchmarks.compare.tables import describe_difference
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file
from feature_gan_kd.utils.processor import processor_name


def arms_parser(name: str, description: str | None, arms: Collection[str]) -> argparse.ArgumentParser:
    """A parser with the options of every comparison of arms.

    Args:
        name: of the module.
        description: its docstring.
        arms: by name.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms), help="[all]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="[0 1 2]")
    parser.add_argument("--output-dir", type=Path, help="of results and runs")
    parser.add_argument("--tabulate", type=Path, metavar="DIR", help="print the table of an --output-dir")
    return parser


def exit_status(name: str, work: Callable[[], None]) -> int:
    """Does the work of a command: 0, or 2 for a mistake of the user, which is one line."""
    try:
        work()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    return 0


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON, with what computed it."""
    about = {"processor": processor_name(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({**result, **about}, indent=1, default=str))


def read_results(folder: Path, same: Sequence[str]) -> list[dict[str, Any]]:
    """Reads all results of a folder.

    Args:
        folder: an --output-dir.
        same: entries that all results must share, besides the processor.

    Raises:
        UserError: where there is none, results differ in one of these, or those of one arm in a setting.
    """
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise UserError(f"--tabulate: {folder} holds no results")
    differing = [name for name in ("processor", *same) if len({str(one[name]) for one in found}) > 1]
    settings: dict[Any, set[str]] = {}
    for one in found:
        own = {name: value for name, value in one["settings"].items() if name != "seed"}
        settings.setdefault((one["arm"], one.get("labels")), set()).add(json.dumps(own, sort_keys=True))
    differing += ["settings"] * any(len(own) > 1 for own in settings.values())
    if differing:
        raise UserError(
            f"--tabulate: {folder} holds results of different {differing[0]}: keep them in folders of their own"
        )
    return found


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> str:
    """The mean difference over the seeds that both have, with its 95 % interval; empty for fewer than two seeds."""
    found = paired_difference(own, other)
    return "" if found is None or found.count < 2 else describe_difference(found, len(own))
