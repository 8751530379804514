"""The tables of docs/results.md follow from the committed records."""

from __future__ import annotations

from pathlib import Path

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
