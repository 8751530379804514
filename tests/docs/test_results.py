"""The tables of docs/results.md follow from the committed records."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare.differences import paired
from benchmarks.compare.results import collect
from benchmarks.compare.tables import markdown
from feature_gan_kd.report import read_run

ROOT = Path(__file__).parents[2]


def test_cifar100_table() -> None:
    run = read_run(ROOT / "benchmarks" / "results" / "cifar100-r20-r32-15-epochs")
    page = (ROOT / "docs" / "results.md").read_text()
    last = run.epochs[-1]
    rows = [[epoch["accuracy"][0] for epoch in run.epochs], [epoch["accuracy"][1] for epoch in run.epochs]]
    rows.append([epoch["ensemble"] for epoch in run.epochs])
    titles = ["ResNet-20 (278,324 parameters)", "ResNet-32 (472,756 parameters)", "ensemble (mean of the logits)"]
    for title, values in zip(titles, rows, strict=True):
        best = max(values)
        assert f"| {title} | {values[-1]:.2f} | {best:.2f} ({values.index(best) + 1}) |" in page
    assert len(run.epochs) == 15
    assert last["step"] == 5865
    assert last["images"] == 10_000
    assert f"{sum(epoch['seconds'] for epoch in run.epochs):,.0f} s with evaluation" in page
    assert run.settings["scale_adversarial_lr"] is True
    third = run.epochs[2]
    assert " % and ".join(f"{value:.2f}" for value in third["accuracy"]) + " % after three" in page


def test_tables_of_the_comparison() -> None:
    """They stand on the page as the committed result files give them."""
    page = (ROOT / "docs" / "results.md").read_text()
    command = "python -m benchmarks.compare --tabulate benchmarks/results/compare --markdown"
    _, _, rest = page.partition(f"<!-- tables: {command} -->\n\n")
    shown, _, _ = rest.partition("\n<!-- end of tables -->")
    comparisons, left_out = collect(ROOT / "benchmarks" / "results" / "compare")
    assert left_out == []
    assert shown == markdown(comparisons, [])


ANSWERS = (
    *("afd", "afd-least-squares", "afd-group-norm", "afd-narrow-judge", "afd-rare-judge", "afd-patches", "afd-noise"),
    *("afd-spectral-norm", "afd-unpaired", "afd-no-decay", "afd-adamw", "afd-slow-judge", "afd-single"),
)


@pytest.mark.parametrize("method", ANSWERS)
def test_answers_of_the_discriminators(method: str) -> None:
    """Those of the last epoch, as the committed result files give them, beside the accuracy of the same runs."""
    folder = ROOT / "benchmarks" / "results" / "compare" / "cpu"
    runs = sorted(folder.glob(f"r14+r14-{method}-[0-9].json"))
    epochs = [json.loads(run.read_text())["epochs"][-1] for run in runs]
    real, fake = (
        statistics.mean(value for epoch in epochs for key, value in epoch["metrics"].items() if key.startswith(kind))
        for kind in ("real/", "fake/")
    )
    accuracy = statistics.mean(value for epoch in epochs for value in epoch["accuracy"])
    row = f"| {method} | {len(epochs)} | {real:.2f} | {fake:.2f} | {accuracy:.2f} |"
    assert row in (ROOT / "docs" / "results.md").read_text()


def difference(pair: str, ours: str, theirs: str, model: int | None = None) -> str:
    """Of the last epoch's accuracy of two methods, paired by seed: the mean of the models, or one of them."""

    def accuracies(method: str) -> dict[int, float]:
        found = {}
        for path in (ROOT / "benchmarks" / "results" / "compare" / "cpu").glob(f"{pair}-{method}-[0-9].json"):
            run = json.loads(path.read_text())
            last = run["epochs"][-1]["accuracy"]
            found[run["seed"]] = statistics.fmean(last) if model is None else last[model]
        return found

    one = paired(accuracies(ours), accuracies(theirs))
    assert one is not None
    mean, half = one.mean, one.half_width
    values = [mean] if half is None else [mean, mean - half, mean + half]
    first, *interval = [f"{round(value, 1) + 0.0:+.1f}" for value in values]
    return f"{first} [{', '.join(interval)}]" if interval else first


CLAIMS = {
    "peers that exchange logits are better than each alone": ("logit", "vanilla", None),
    "adversarial maps beside logits are better than logits alone": ("afd", "logit", None),
    "and better than aligning the maps by L1": ("afd", "l1", None),
    "most of all for a small model beside a large one": ("afd", "logit", 0),
    "what helps are the discriminators": ("afd", "zero-gradient", None),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_the_paper(claim: str) -> None:
    ours, theirs, model = CLAIMS[claim]
    page = (ROOT / "docs" / "results.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {claim}"))
    _, _, _, equal, unequal, _, _ = (cell.strip() for cell in row.split("|"))
    assert equal == difference("r14+r14", ours, theirs)
    assert unequal.removesuffix(" (the ResNet-8)") == difference("r8+r20", ours, theirs, model)


@pytest.mark.parametrize(
    "variant", ["afd-group-norm", "afd-rare-judge", "afd-narrow-judge", "afd-least-squares", "afd-relativistic"]
)
def test_variants_against_logits_and_control(variant: str) -> None:
    cells = [difference("r14+r14", variant, other) for other in ("logit", "zero-gradient")]
    seeds = len(list((ROOT / "benchmarks" / "results" / "compare" / "cpu").glob(f"r14+r14-{variant}-[0-9].json")))
    assert f"| {variant} | {seeds} | {' | '.join(cells)} |\n" in (ROOT / "docs" / "results.md").read_text()


DIAGNOSED = ("vanilla", "logit", "l1", "zero-gradient", "afd", "afd-single")


@pytest.mark.parametrize("method", DIAGNOSED)
def test_what_moves_the_weights(method: str) -> None:
    """Similarity in the last epoch, and gradients as the mean of the four evaluations, of both models."""
    lines = (ROOT / "benchmarks" / "results" / "diagnosis" / f"{method}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [15, 30, 45, 60]

    def mean(kind: str, chosen: list[Any]) -> str:
        found = [value for one in chosen for key, value in one["metrics"].items() if key.startswith(f"{kind}/")]
        return f"{statistics.mean(found):.2f}" if found else ""

    cells = [mean(kind, records[-1:]) for kind in ("similarity", "cosine")]
    cells += [mean(kind, records) for kind in ("gradient_feature", "decay_feature")]
    cells += [mean(kind, records) for kind in ("descent_feature", "shrinkage_feature")]
    row = f"| {method} | {' | '.join(cells)} | {statistics.mean(records[-1]['accuracy']):.2f} |"
    assert row in (ROOT / "docs" / "results.md").read_text()
