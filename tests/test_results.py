"""The tables of docs/results.md follow from the committed records."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks.compare.results import collect
from benchmarks.compare.tables import markdown
from feature_gan_kd.report import read_run

ROOT = Path(__file__).parents[1]


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


ANSWERS = ("afd", "afd-least-squares", "afd-spectral-norm", "afd-no-decay", "afd-adamw", "afd-slow-judge", "afd-single")


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
