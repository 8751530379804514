"""What a run gave, as text: its final table, and the words that its pages have in common."""

from __future__ import annotations

from feature_gan_kd.report.records import Run, best, series


def table(run: Run) -> str:
    """The last and the best top-1 accuracy of every model and of the ensemble, and what they took.

    The seconds are those of the recorded epochs with their evaluation; images/s are training images in them.
    """
    frozen = run.about.get("frozen", ())
    names = {str(k): f"{k} {name}{' (frozen)' if k in frozen else ''}" for k, name in enumerate(run.names)}
    rows = [("model", "last top-1 %", "best top-1 %", "in epoch")]
    recorded = series(run)
    for whose, name in (names | {"ensemble": "ensemble"}).items():
        epochs, values = recorded.get(f"top-1/{whose}", ([], []))
        at = best(values)
        shown = (f"{values[-1]:.2f}", f"{values[at]:.2f}", f"{epochs[at]:.0f}") if values else ("-",) * 3
        rows.append((name, *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    facts = [f"method {run.settings['method']}", *facts_of(run)]
    if run.epochs:
        facts += [f"{seconds_of(run):,.1f} s", f"{speed_of(run):,.0f} images/s"]
    return "\n".join([*lines, "", " · ".join(facts)])


def title_of(run: Run) -> str:
    """Method, models and data, in one line."""
    names = [shortened(name, 40) for name in run.names]
    data = str(run.data.get("name") or "unnamed data")
    return f"{run.settings['method']}: {', '.join(names[:-1])} and {names[-1]} on {shortened(data, 60)}"


def facts_of(run: Run) -> list[str]:
    """How far the run is, and on what."""
    facts = [f"{run.epochs_done} of {run.settings['epochs']} epochs"]
    if "train_images" in run.data:
        facts.append(
            f"{run.data['train_images']:,} training images, {run.data['evaluation_images']:,} evaluation images"
        )
    return [*facts, f"batch {run.settings['batch_size']}", f"seed {run.settings['seed']}"]


def seconds_of(run: Run) -> float:
    """What the recorded epochs took, with their evaluation."""
    return float(sum(one["seconds"] for one in run.epochs))


def speed_of(run: Run) -> float:
    """Training images a second in the recorded epochs, with their evaluation."""
    return float(sum(one["seconds"] * one["images_per_second"] for one in run.epochs)) / seconds_of(run)


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters: of a longer one, its two ends."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
