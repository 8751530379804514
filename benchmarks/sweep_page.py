"""What the committed sweeps found, as the tables of docs/backbones.md.

python -m benchmarks.sweep_page
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from benchmarks.sweep_taps import table as ways
from benchmarks.sweep_timm import RESULTS, TORCHVISION

Results = dict[str, dict[str, Any]]


def read(name: str) -> Results:
    """A committed sweep: what was found, by architecture."""
    found: Results = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def outcomes(wired: Results) -> list[str]:
    """How many architectures were wired, refused or failed, and the layouts of their maps."""
    refused, failed = (sum(kind in result for result in wired.values()) for kind in ("refused", "failed"))
    good = [result for result in wired.values() if "layout" in result]
    layouts = Counter(result["layout"] for result in good)
    prefixed = sum(result["prefix_tokens"] > 0 for result in good)
    return [
        "| outcome | architectures |",
        "|---|---|",
        f"| wired in both directions | {len(wired) - refused - failed:,} |",
        f"| refused: encoders without a classifier | {refused} |",
        f"| failed | {failed} |",
        "",
        f"Layouts met: {', '.join(f'{layout} {count}' for layout, count in layouts.most_common())}; "
        f"{prefixed} models carry class or register tokens.",
    ]


def coverage(wired: Results, run: Results) -> str:
    """How many of the classes that are wired were run in every way, which were not, and what was refused."""
    classes = {result["class"] for result in wired.values() if "class" in result}
    lacking = sorted(classes - {result["class"] for result in run.values()})
    refused = sorted(name for name, result in run.items() if "checkpointing" in result["refused"])
    return (
        f"{len(classes) - len(lacking)} of {len(classes)} classes were run"
        + (f"; not yet: {', '.join(lacking)}" if lacking else "")
        + f". timm itself has no gradient checkpointing in {', '.join(f'`{name}`' for name in refused)}."
    )


def by_class(wired: Results, trained: Results) -> list[str]:
    """Per model class how many architectures it has, where they are tapped, and its one real step."""
    steps = {result["class"]: (name, result) for name, result in trained.items()}
    kinds: dict[str, list[dict[str, Any]]] = {}
    for result in wired.values():
        if "class" in result:
            kinds.setdefault(result["class"], []).append(result)
    lines = ["| class | architectures | tapped at | layout | one real step |", "|---|---|---|---|---|"]
    for kind, results in sorted(kinds.items()):
        layers = sorted({re.sub(r"\.\d+\b", ".N", result["layer"]) for result in results})
        name, step = steps[kind]
        own = name.removeprefix(TORCHVISION)
        lines.append(
            f"| {kind} | {len(results)} | {', '.join(f'`{layer}`' for layer in layers)} | "
            f"{', '.join(sorted({result['layout'] for result in results}))} | "
            f"`{own}` with `{step['partner']}`: {'passed' if not step['problems'] else '; '.join(step['problems'])} |"
        )
    return lines


def page() -> list[str]:
    """Every line that the page must have."""
    return [
        *outcomes(read("sweep_wire")),
        coverage(read("sweep_wire"), read("sweep_taps")),
        *(line for line in ways(read("sweep_taps")).splitlines() if line.startswith("|")),
        *by_class(read("sweep_wire"), read("sweep_train")),
        *by_class(read("sweep_torchvision_wire"), read("sweep_torchvision_train")),
    ]


if __name__ == "__main__":
    print("\n".join(page()))
