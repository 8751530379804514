"""The tables of docs/performance.md, made of the figures."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.speed.rows import ROWS

# Numerators and denominators of the ratios below the table.
RATIOS = (
    ("exact", "floor"),
    ("floor-batched", "floor"),
    ("exact", "plain"),
    ("interval-4", "plain"),
    ("joint-backward", "plain"),
    ("logit", "plain"),
    ("connections", "exact"),
    ("textbook", "exact"),
    ("textbook-fp32", "exact"),
    ("dml-fp32", "logit-fp32"),
    ("dml-fp32", "logit-fp32-cl"),
    ("dml-defaults", "logit"),
    ("exact", "exact-compiled"),
    ("logit", "logit-compiled"),
    ("exact", "exact-graphs"),
    ("logit", "logit-graphs"),
    ("exact", "exact-compiled-graphs"),
)
MEMORY_RATIOS = (("exact", "logit"),)


def table(name: str, pair: dict[str, Any]) -> str:
    """Returns Markdown: medians with their spread and against plain training, then ratios."""
    case, seconds, memory = pair["case"], pair["seconds"], pair["peak_bytes"]
    medians = {row: statistics.median(values) for row, values in seconds.items()}
    lines = [
        f"\n{name}: {' + '.join(case['models'])}, {case['image_size']} px, batch {case['batch']}, "
        f"{case['precision']}\n",
        "| row | ms per update | min to max | against plain | images/s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row, values in seconds.items():
        against = f"{medians[row] / medians['plain']:.2f}" if "plain" in medians else "-"
        peak = f"{memory[row] / 2**20:.0f}" if row in memory else "-"
        lines.append(
            f"| {ROWS[row].title} | {1e3 * medians[row]:.1f} | {1e3 * min(values):.1f} to {1e3 * max(values):.1f} | "
            f"{against} | {case['batch'] / medians[row]:,.0f} | {peak} |"
        )
    lines.append("")
    lines += [_ratio(over, under, seconds) for over, under in RATIOS if over in seconds and under in seconds]
    lines += [
        f"- peak memory, {over} / {under}: {memory[over] / memory[under]:.3f}"
        for over, under in MEMORY_RATIOS
        if over in memory and under in memory
    ]
    lines.append(_ratio("fit", "bare step", pair["fit"]))
    if pair["roof"]:
        lines.append(
            f"- arithmetic: {pair['roof']['step'] / 1e9:.0f} GFLOP/s in exact updates, {pair['roof']['share']:.0%} of "
            f"what a large product of matrices reaches here ({pair['roof']['matrices'] / 1e9:.0f})"
        )
    return "\n".join(lines)


def _ratio(over: str, under: str, seconds: dict[str, list[float]]) -> str:
    ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return (
        f"- {over} / {under}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} over "
        f"{len(ratios)} rounds)"
    )
