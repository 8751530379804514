"""Comparisons as Markdown: for each a table of the last epoch and one of the best."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence

from benchmarks.compare.differences import Estimate, estimate, paired_difference
from benchmarks.compare.presets import METHODS, ZERO_GRADIENT
from benchmarks.compare.result_file import computed
from benchmarks.compare.results import Comparison
from benchmarks.compare.runs import option_words

WIDTH = 120
READING = """\
Top-1 accuracy in % on the evaluation images: mean ± standard deviation over the seeds. The columns on the right give
the mean difference to another method's runs of the same seeds, with its 95 % interval: Student's t, paired by seed, not
corrected for the number of comparisons. One shared seed gives no interval. The zero-gradient run of a method has the
same second optimiser without the adversarial gradient. The best epoch is chosen for each run and row on the evaluation
images, so it is optimistic. The ensemble is the mean of all logits, those of a frozen teacher included.
"""


def markdown(comparisons: Sequence[Comparison], left_out: Sequence[str]) -> str:
    """Returns all tables as one page, with a list of what is in none of them.

    Args:
        comparisons: at least one.
        left_out: a line for each file or run that is in none.
    """
    parts = [READING, *(_section(one) for one in comparisons)]
    if left_out:
        parts.append("Left out of the tables:\n\n" + "".join(f"- {line}\n" for line in left_out))
    return "\n".join(parts)


def title(comparison: Comparison) -> str:
    """Returns the pair, its preset and, where there are several schedules, what differs."""
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
    """Says what the runs have in common and how each of them is repeated."""
    one = comparison.any_result
    everything = [result for of_method in comparison.results.values() for result in of_method.values()]
    versions = [result.contents["versions"] for result in everything]
    libraries = sorted({f"{name} {one.get(name)}" for one in versions for name in ("torch", "timm")})
    facts = (
        f"{one.settings['epochs']} epochs of {one.schedule['data_train_images']:,} images in batches of "
        f"{one.settings['batch_size']}, {one.schedule['data_evaluation_images']:,} evaluation images, "
        f"{', '.join(libraries)}; computed {computed(one.contents)}. This is one of the runs; the others differ from "
        "it in `--seed` and in the options of their method:"
    )
    return "\n".join([*textwrap.wrap(facts, WIDTH), "", _command(one.contents["command"]), *_special(comparison)])


def _special(comparison: Comparison) -> list[str]:
    """Lists the methods that have more options than `--method` with their name."""
    lines = []
    for method in comparison.results:
        options = METHODS[method]
        if options != {"method": method}:
            teacher = ", with the last model of the seed's vanilla run as the teacher" if "frozen" in options else ""
            lines.append(f"- `{method}`: `{shlex.join(option_words(options))}`{teacher}")
    return [*lines, ""] if lines else []


def _command(words: Sequence[str]) -> str:
    """Returns a command as a block of Markdown, for any output folder."""
    shown = [*words]
    shown[shown.index("--output-dir") + 1] = "DIR"
    # Keep an option and its value on one line: only the spaces before an option may become line ends.
    text = re.sub(" (?!--)", "\0", shlex.join(shown))
    lines = textwrap.wrap(text, WIDTH - 10, break_on_hyphens=False, break_long_words=False)
    return "    " + " \\\n        ".join(lines).replace("\0", " ") + "\n"


def _table(comparison: Comparison, *, best: bool) -> str:
    order = list(METHODS)
    references = [name for name in ("vanilla", "logit") if name in comparison.results]
    zero_gradient = any(ZERO_GRADIENT.get(method) in comparison.results for method in comparison.results)
    header = ["model", "method", "seeds", "top-1 %", *(f"vs {name}" for name in references)]
    rows = [[*header, *(["vs zero-gradient"] if zero_gradient else [])]]
    for curve in comparison.curve_names():
        for method in comparison.results:
            scores = comparison.scores(method, curve, best=best)
            if not scores:
                continue
            against = [name if order.index(name) < order.index(method) else "" for name in references]
            against += [ZERO_GRADIENT.get(method, "")] if zero_gradient else []
            differences = [paired_difference(scores, comparison.scores(name, curve, best=best)) for name in against]
            rows.append([curve, method, str(len(scores)), _level(estimate(list(scores.values())))])
            rows[-1] += [describe_difference(one, len(scores)) for one in differences]
    return _aligned(rows)


def _level(value: Estimate) -> str:
    return f"{value.mean:.2f}" + ("" if value.deviation is None else f" ± {value.deviation:.2f}")


def describe_difference(value: Estimate | None, seeds: int) -> str:
    """Returns `+0.8 [+0.1, +1.5]`, with the number of shared seeds where it is one or lower than the method's."""
    if value is None:
        return ""
    half = value.half_width
    interval = "" if half is None else f" [{_signed(value.mean - half)}, {_signed(value.mean + half)}]"
    shared = f" ({value.count} shared seed{'s' * (value.count > 1)})" if value.count < max(seeds, 2) else ""
    return f"{_signed(value.mean)}{interval}{shared}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table that is readable as text; all columns but the first two are numbers."""
    columns = []
    for k, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        cells = [cell.ljust(width) if k < 2 else cell.rjust(width) for cell in column]
        columns.append([cells[0], "-" * width if k < 2 else "-" * (width - 1) + ":", *cells[1:]])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in zip(*columns, strict=True))
