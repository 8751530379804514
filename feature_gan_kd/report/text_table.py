"""The results of a run as text, and the lines that its table, curves and page have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from feature_gan_kd.report.records import EPOCH_SPEED, RecordedRun, collect_series, last_and_best


def results_table(run: RecordedRun) -> str:
    """Formats the last and the best top-1 accuracy of every model and of the ensemble, and the time they took.

    The seconds are those of the recorded epochs with their evaluation; images/s are training images in these seconds.
    """
    names = {str(k): f"{k} {name}{' (frozen)' if k in run.frozen else ''}" for k, name in enumerate(run.names)}
    metric = run.config.best_metric
    rows = [("model", "last top-1 %", "best top-1 %" if metric == "accuracy" else f"at best {metric}", "in epoch")]
    for key, name in rows_of_accuracy(run, names).items():
        found = last_and_best(run, key)
        rows.append((name, *(f"{found[0]:.2f} {found[1]:.2f} {found[2]:.0f}".split() if found else ("-",) * 3)))
    lines = align_columns(rows)
    facts = [f"method {run.config.method}", *run_facts(run)]
    if run.epochs:
        facts += [f"{total_seconds(run):,.1f} s", f"{images_per_second(run):,.0f} images/s"]
    return "\n".join([*lines, "", " · ".join(facts)])


def comparison_table(runs: Sequence[RecordedRun], labels: Sequence[str]) -> str:
    """Formats the last top-1 accuracy of every model and of the ensemble in several runs, a column for each run.

    Args:
        runs: with models of the same names, or of others.
        labels: a short name of each run.
    """
    found: dict[str, dict[str, None]] = {}  # in order, each name once
    for run in runs:
        for k, name in enumerate(run.names):
            found.setdefault(str(k), {})[name] = None
    names = {k: f"{k} {' / '.join(own)}" for k, own in found.items()}
    rows = [("last top-1 %", *labels)]
    recorded = [collect_series(run) for run in runs]
    for key, title in rows_of_accuracy(runs[0], dict(sorted(names.items()))).items():
        values = [series.get(key, ([], []))[1] for series in recorded]
        rows.append((title, *(f"{own[-1]:.2f}" if own else "-" for own in values)))
    return "\n".join(align_columns(rows))


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def rows_of_accuracy(run: RecordedRun, names: Mapping[str, str]) -> dict[str, str]:
    """The accuracies that a table shows, with their titles: of the models, their ensemble, and averaged weights.

    Args:
        run: whose records.
        names: titles of the models by owner.
    """
    titles = {**names, "ensemble": "ensemble"}
    recorded = run.epochs[-1]["metrics"] if run.epochs else {}
    averaged = {f"eval/ema_accuracy/{owner}": f"{title}, averaged weights" for owner, title in titles.items()}
    rows = {f"eval/accuracy/{owner}": title for owner, title in titles.items()}
    return rows | {key: title for key, title in averaged.items() if key in recorded}


def run_title(run: RecordedRun) -> str:
    """Method, models and data, in one line."""
    names = [shorten(name, 40) for name in run.names]
    data = str(run.data.get("name") or "unnamed data")
    return f"{run.config.method}: {', '.join(names[:-1])} and {names[-1]} on {shorten(data, 60)}"


def run_facts(run: RecordedRun) -> list[str]:
    """Progress, number of images, batch size and seed, each in a few words."""
    facts = [f"{run.last_epoch} of {run.config.epochs} epochs"]
    if "train_images" in run.data:
        facts.append(
            f"{run.data['train_images']:,} training images, {run.data['evaluation_images']:,} evaluation images"
        )
    if run.is_evaluated and run.answers_by_neighbours:
        positions = " and ".join(map(str, run.answers_by_neighbours))
        facts.append(f"model{'s' * (len(run.answers_by_neighbours) > 1)} {positions} by nearest neighbours")
    if run.config.best_metric != "accuracy":
        facts.append(f"best epochs by {run.config.best_metric}")
    return [*facts, f"batch {run.config.batch_size}", f"seed {run.config.seed}"]


def total_seconds(run: RecordedRun) -> float:
    """Seconds of the recorded epochs, with their evaluation."""
    return float(sum(record["seconds"] for record in run.epochs))


def images_per_second(run: RecordedRun) -> float:
    """Training images per second in the recorded epochs, with their evaluation."""
    images = sum(record["seconds"] * record["metrics"][EPOCH_SPEED] for record in run.epochs)
    return float(images) / total_seconds(run)


def shorten(text: str, most: int) -> str:
    """Returns a text of at most `most` characters: of a longer one, its two ends."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
