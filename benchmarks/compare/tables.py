"""Comparisons as Markdown: a table of the last epoch and one of the best, for each."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence

from benchmarks.compare.differences import Estimate, estimate, paired
from benchmarks.compare.presets import METHODS, ZERO_GRADIENT
from benchmarks.compare.results import Comparison

WIDTH = 120
READING = """\
Top-1 accuracy in % on the evaluation images: mean ± standard deviation over the seeds. Behind it the mean difference to
another method's runs of the same seeds, with its 95 % interval: Student's t, paired by seed, not corrected for the
number of comparisons. One shared seed gives no interval. The zero-gradient run of a method has the same second
optimiser without the adversarial gradient. The best epoch is each run's and row's own, chosen on the evaluation images:
it flatters. The ensemble is the mean of all logits, a frozen teacher's too.
"""


def markdown(comparisons: Sequence[Comparison], left_out: Sequence[str]) -> str:
    """All tables as one page, and a list of what is in none of them.

    Args:
        comparisons: at least one.
        left_out: a line on each file or run that is in none.
    """
    parts = [READING, *(_section(one) for one in comparisons)]
    if left_out:
        parts.append("Left out of the tables:\n\n" + "".join(f"- {line}\n" for line in left_out))
    return "\n".join(parts)


def title(comparison: Comparison) -> str:
    """The pair and its preset, and what its schedule differs in where there are several."""
    differing = ", ".join(
        f"{name} {str(value)[:12] if name == 'data_fingerprint' else value}"
        for name, value in comparison.differing.items()
    )
    return " | ".join(filter(None, [f"{comparison.pair}, preset {comparison.preset}", differing]))


def _section(comparison: Comparison) -> str:
    return "\n".join(
        [
            f"### {title(comparison)}\n",
            _facts(comparison),
            "Last epoch:\n",
            _table(comparison, best=False),
            "Best epoch:\n",
            _table(comparison, best=True),
        ]
    )


def _facts(comparison: Comparison) -> str:
    """What the runs have in common, and how each of them is repeated."""
    one = comparison.any_result
    everything = [result for of_method in comparison.results.values() for result in of_method.values()]
    versions = {f"{name} {result.about['versions'].get(name)}" for result in everything for name in ("torch", "timm")}
    facts = (
        f"{one.schedule['epochs']} epochs of {one.schedule['data_train_images']:,} images in batches of "
        f"{one.schedule['batch_size']}, {one.schedule['data_evaluation_images']:,} evaluation images, "
        f"{', '.join(sorted(versions))}. One of the runs, from which the others differ in `--seed` and in the options "
        "of their method:"
    )
    return "\n".join([*textwrap.wrap(facts, WIDTH), "", _command(one.about["command"]), *_special(comparison)])


def _special(comparison: Comparison) -> list[str]:
    """The methods that are more than `--method` and their name."""
    lines = []
    for method in comparison.results:
        options = METHODS[method]
        if options != {"method": method}:
            source = ", the last model as the vanilla run of the seed left it" if "frozen" in options else ""
            words = " ".join(f"--{name} {value}" for name, value in options.items())
            lines.append(f"- `{method}`: `{words}`{source}")
    return [*lines, ""] if lines else []


def _command(words: Sequence[str]) -> str:
    """As a block of Markdown, for any folder."""
    shown = [*words]
    shown[shown.index("--output-dir") + 1] = "DIR"
    # An option and its value stay on one line.
    text = re.sub(" (?!--)", "\0", shlex.join(shown))
    lines = textwrap.wrap(text, WIDTH - 10, break_on_hyphens=False, break_long_words=False)
    return "    " + " \\\n        ".join(lines).replace("\0", " ") + "\n"


def _table(comparison: Comparison, *, best: bool) -> str:
    order = list(METHODS)
    references = [name for name in ("vanilla", "logit") if name in comparison.results]
    zero_gradient = any(ZERO_GRADIENT.get(method) in comparison.results for method in comparison.results)
    header = ["model", "method", "seeds", "top-1 %", *(f"vs {name}" for name in references)]
    rows = [[*header, *(["vs zero-gradient"] if zero_gradient else [])]]
    for whose in comparison.whose():
        for method in comparison.results:
            scores = comparison.scores(method, whose, best=best)
            if not scores:
                continue
            against = [name if order.index(name) < order.index(method) else "" for name in references]
            against += [ZERO_GRADIENT.get(method, "")] if zero_gradient else []
            differences = [paired(scores, comparison.scores(name, whose, best=best)) for name in against]
            rows.append([whose, method, str(len(scores)), _level(estimate(list(scores.values())))])
            rows[-1] += [_difference(one, len(scores)) for one in differences]
    return _aligned(rows)


def _level(value: Estimate) -> str:
    return f"{value.mean:.2f}" + ("" if value.deviation is None else f" ± {value.deviation:.2f}")


def _difference(value: Estimate | None, seeds: int) -> str:
    """`+0.8 [+0.1, +1.5]`; with the number of shared seeds where they are fewer than the method's or only one."""
    if value is None:
        return ""
    half = value.half_width
    interval = "" if half is None else f" [{_signed(value.mean - half)}, {_signed(value.mean + half)}]"
    shared = f" ({value.count} shared seed{'s' * (value.count > 1)})" if value.count < max(seeds, 2) else ""
    return f"{_signed(value.mean)}{interval}{shared}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is readable as text; all columns but the first two are numbers."""
    columns = []
    for k, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        cells = [cell.ljust(width) if k < 2 else cell.rjust(width) for cell in column]
        columns.append([cells[0], "-" * width if k < 2 else "-" * (width - 1) + ":", *cells[1:]])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in zip(*columns, strict=True))
