"""The tables and pictures of a comparison."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare.__main__ import main
from benchmarks.compare.plot import draw
from benchmarks.compare.results import Comparison, collect
from benchmarks.compare.tables import markdown
from tests.benchmarks.records import write_result

# By method and seed: both models and the ensemble after the last epoch. The epoch before has half a point more.
LAST = {
    "vanilla": {0: [50.0, 60.0, 62.0], 1: [60.0, 70.0, 72.0], 2: [70.0, 80.0, 82.0]},
    "logit": {0: [50.9, 60.0, 62.0], 1: [61.0, 70.0, 72.0], 2: [71.1, 80.0, 82.0]},
    "afd": {0: [51.9, 60.0, 62.0], 1: [62.06, 70.0, 72.0]},
    "zero-gradient": {1: [62.1, 70.0, 72.0]},
    "offline-logit": {0: [52.0, 60.0, 63.0], 1: [62.0, 70.0, 73.0], 2: [72.0, 80.0, 83.0]},
}


def written(folder: Path) -> Path:
    """The results of `LAST`."""
    for method, seeds in LAST.items():
        for seed, accuracies in seeds.items():
            write_result(folder, method, seed, [[value + 0.5 for value in accuracies], accuracies])
    return folder


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """That of `LAST`."""
    (one,), _ = collect(written(tmp_path))
    return one


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a page, without their heads."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in cells if row[0] != "model" and not row[0].startswith("-")]


def test_rows(comparison: Comparison) -> None:
    last, best = markdown([comparison], []).split("Best epoch:")
    found = {(row[0], row[1]): row[2:] for row in rows(last)}
    first = "0 test_resnet"
    assert found[first, "vanilla"] == ["3", "60.00 ± 10.00", "", "", ""]
    # Differences of 0.9, 1.0 and 1.1: 1 ± 4.303 * 0.1 / sqrt(3) = 1 ± 0.248.
    assert found[first, "logit"] == ["3", "61.00 ± 10.10", "+1.0 [+0.8, +1.2]", "", ""]
    # Two seeds: 1.9 and 2.06 over vanilla, 1.0 and 1.06 over logit, so 1.98 ± 12.706 * 0.08 and 1.03 ± 12.706 * 0.03.
    differences = ["+2.0 [+1.0, +3.0]", "+1.0 [+0.6, +1.4]", "+0.0 (1 shared seed)"]
    assert found[first, "afd"] == ["2", "56.98 ± 7.18", *differences]
    assert found[first, "zero-gradient"] == ["1", "62.10", "+2.1 (1 shared seed)", "+1.1 (1 shared seed)", ""]
    assert found["mean of the models", "logit"][2] == "+0.5 [+0.4, +0.6]"
    assert found["ensemble", "offline-logit"][1:4] == ["73.00 ± 10.00", "+1.0 [+1.0, +1.0]", "+1.0 [+1.0, +1.0]"]
    for absent in ("1 test_vit", "mean of the models"):
        assert (absent, "offline-logit") not in found
    assert {(row[0], row[1]): row[3] for row in rows(best)}[first, "vanilla"] == "60.50 ± 10.00"


def test_fewer_shared_seeds_are_told(tmp_path: Path) -> None:
    for seed in range(4):
        write_result(tmp_path, "afd", seed, [[10.0 + seed, 20.0, 30.0]])
    for seed in (1, 3):
        write_result(tmp_path, "vanilla", seed, [[10.0, 20.0, 30.0]])
    found, _ = collect(tmp_path)
    row = next(row for row in rows(markdown(found, [])) if row[:2] == ["0 test_resnet", "afd"])
    assert row[2:] == ["4", "11.50 ± 1.29", "+2.0 [-10.7, +14.7] (2 shared seeds)"]


def test_without_references_there_are_no_columns(tmp_path: Path) -> None:
    write_result(tmp_path, "afd", 0, [[1.0, 2.0, 3.0]])
    found, _ = collect(tmp_path)
    assert "vs" not in markdown(found, [])
    assert rows(markdown(found, []))[0] == ["0 test_resnet", "afd", "1", "1.00"]


def test_a_page_tells_how_to_repeat_its_rows(comparison: Comparison) -> None:
    page = markdown([comparison], ["smoke/x.json: damaged"])
    shown = next(block for block in page.split("\n\n") if block.startswith("    feature-gan-kd"))
    command = comparison.results["vanilla"][0].contents["command"]
    assert shlex.split(shown.replace("\\\n", "")) == [*command[:-1], "DIR"]
    assert "- `offline-logit`: `--method logit --frozen 1`" in page
    assert "- `afd`" not in page
    assert "Z80" in page
    assert page.endswith("Left out of the tables:\n\n- smoke/x.json: damaged\n")
    assert max(len(line) for line in page.splitlines() if not line.startswith("|")) <= 120


def test_schedules_are_titled_by_what_differs(tmp_path: Path) -> None:
    write_result(tmp_path, "afd", 0, [[1.0, 2.0, 3.0]], settings={"lr": 0.1})
    write_result(tmp_path, "afd", 1, [[5.0, 2.0, 3.0]], settings={"lr": 0.2})
    found, _ = collect(tmp_path)
    page = markdown(found, [])
    titles = [line for line in page.splitlines() if line.startswith("### ")]
    assert titles == ["### tiny, preset smoke | lr 0.1", "### tiny, preset smoke | lr 0.2"]
    assert [row[3] for row in rows(page) if row[0] == "0 test_resnet"] == ["1.00", "1.00", "5.00", "5.00"]


def test_picture(comparison: Comparison) -> None:
    figure = draw(comparison)
    methods, epochs, late = figure.axes
    assert [label.get_text() for label in methods.get_yticklabels()] == list(LAST)
    rings = [np.asarray(line.get_xdata()).tolist() for line in methods.lines if line.get_markerfacecolor() == "white"]
    assert [50.0, 60.0, 70.0] in rings
    assert [51.9, 62.06] in rings
    legend = epochs.get_legend()
    assert legend is not None
    # Both models' mean, over the seeds of each; the offline method has no such mean.
    ends = [text.get_text() for text in legend.get_texts()]
    assert ends == ["zero-gradient  66.05", "logit  65.50", "vanilla  65.00", "afd  60.99"]
    assert {np.size(line.get_xdata()) for line in epochs.lines} == {2}
    assert {np.size(line.get_xdata()) for line in late.lines} == {1}


def test_command_writes_page_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, out = written(tmp_path / "results"), tmp_path / "out"
    write_result(results, "afd", 5, [[1.0, 2.0, 3.0]])
    assert main(["--tabulate", str(results), "--output-dir", str(out)]) == 0
    said = capsys.readouterr()
    assert (out / "comparison.md").read_text() == said.out
    pictures = ["smoke-tiny-2.png", "smoke-tiny.png"]
    assert sorted(path.name for path in out.iterdir()) == ["comparison.md", *pictures]
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert not list(results.glob("*.*"))
    before = sorted(results.rglob("*"))
    assert main(["--tabulate", str(results), "--markdown"]) == 0
    assert capsys.readouterr().out == said.out
    assert sorted(results.rglob("*")) == before
    (results / "smoke" / "bad.json").write_text("{")
    assert main(["--tabulate", str(results)]) == 0
    assert "left out: smoke/bad.json: damaged" in capsys.readouterr().err
    assert "- smoke/bad.json: damaged" in (results / "comparison.md").read_text()
