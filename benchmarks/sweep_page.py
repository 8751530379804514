"""Prints the results of the committed sweeps as the tables of docs/backbones.md.

python -m benchmarks.sweep_page
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from benchmarks.sweep_taps import table as ways
from benchmarks.sweep_timm import RESULTS, TORCHVISION, TRANSFORMERS

Results = dict[str, dict[str, Any]]


def read(name: str) -> Results:
    """Reads a committed sweep: the results by architecture."""
    found: Results = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def outcomes(connected: Results) -> list[str]:
    """Counts the architectures that were connected, refused or failed, and the layouts of their maps."""
    refused, failed = (sum(kind in result for result in connected.values()) for kind in ("refused", "failed"))
    good = [result for result in connected.values() if "layout" in result]
    layouts = Counter(result["layout"] for result in good)
    prefixed = sum(result["prefix_tokens"] > 0 for result in good)
    return [
        "| outcome | architectures |",
        "|---|---|",
        f"| connected in both directions | {len(connected) - refused - failed:,} |",
        f"| refused: encoders without a classifier | {refused} |",
        f"| failed | {failed} |",
        "",
        f"Layouts of the maps: {', '.join(f'{layout} {count}' for layout, count in layouts.most_common())}; "
        f"{prefixed} models have class or register tokens.",
    ]


def coverage(connected: Results, run: Results) -> str:
    """Says how many of the classes were run in every way, which were not, and what was refused."""
    classes = {result["class"] for result in connected.values() if "class" in result}
    lacking = sorted(classes - {result["class"] for result in run.values()})
    refused = sorted(name for name, result in run.items() if "checkpointing" in result["refused"])
    return (
        f"{len(classes) - len(lacking)} of {len(classes)} classes were run"
        + (f"; not yet: {', '.join(lacking)}" if lacking else "")
        + f". timm itself has no gradient checkpointing in {', '.join(f'`{name}`' for name in refused)}."
    )


def by_class(connected: Results, trained: Results) -> list[str]:
    """Lists for each model class its number of architectures, where they are tapped, and its one real update."""
    steps = {result["class"]: (name, result) for name, result in trained.items()}
    kinds: dict[str, list[dict[str, Any]]] = {}
    for result in connected.values():
        if "class" in result:
            kinds.setdefault(result["class"], []).append(result)
    lines = ["| class | architectures | tapped at | layout | one real update |", "|---|---|---|---|---|"]
    for kind, results in sorted(kinds.items()):
        layers = sorted({re.sub(r"\.\d+\b", ".N", result["layer"]) for result in results})
        name, step = steps[kind]
        own = name.removeprefix(TORCHVISION).removeprefix(TRANSFORMERS)
        lines.append(
            f"| {kind} | {len(results)} | {', '.join(f'`{layer}`' for layer in layers)} | "
            f"{', '.join(sorted({result['layout'] for result in results}))} | "
            f"`{own}` with `{step['partner']}`: {'passed' if not step['problems'] else '; '.join(step['problems'])} |"
        )
    return lines


def page() -> list[str]:
    """Returns every line that the page must have."""
    return [
        *outcomes(read("sweep_connect")),
        coverage(read("sweep_connect"), read("sweep_taps")),
        *(line for line in ways(read("sweep_taps")).splitlines() if line.startswith("|")),
        *by_class(read("sweep_connect"), read("sweep_train")),
        *by_class(read("sweep_torchvision_connect"), read("sweep_torchvision_train")),
        *by_class(read("sweep_transformers_connect"), read("sweep_transformers_train")),
    ]


if __name__ == "__main__":
    print("\n".join(page()))
