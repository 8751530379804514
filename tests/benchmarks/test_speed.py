"""The tables of docs/performance.md and docs/scaling.md are those of the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.peers.floor import Floor
from benchmarks.scale.__main__ import models_table, processes_table
from benchmarks.scale.model import step_seconds
from benchmarks.speed.__main__ import conflict_with
from benchmarks.speed.rows import COMPILED, GRAPHS, ROWS, Case, WithMap, distiller, extractors_of
from benchmarks.speed.table import table
from feature_gan_kd.utils.processor import fast_precision

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SPEED = json.loads((RESULTS / "speed.json").read_text())
SCALE = json.loads((RESULTS / "scale.json").read_text())


@pytest.mark.parametrize("pair", SPEED["pairs"])
def test_the_page_has_the_table_of_every_pair(pair: str) -> None:
    assert table(pair, SPEED["pairs"][pair]).strip() in (ROOT / "docs" / "performance.md").read_text()


def test_the_page_has_the_rate_of_the_input_pipeline() -> None:
    said = f"{SPEED['input_images_per_second']:,.0f} images/s"
    assert said in (ROOT / "docs" / "performance.md").read_text()


@pytest.mark.parametrize("allocator", ["glibc", "tcmalloc"])
@pytest.mark.parametrize("pair", ["r20+r20", "r20+r32"])
def test_the_page_has_the_memory_under_both_allocators(pair: str, allocator: str) -> None:
    figures = SPEED if allocator == "tcmalloc" else json.loads((RESULTS / "speed-glibc.json").read_text())
    assert allocator in figures["environment"]["allocator"]
    peak = figures["pairs"][pair]["peak_bytes"]
    cells = " | ".join(f"{peak[row] / 2**20:.0f}" for row in ("plain", "logit", "joint-backward", "exact"))
    row = f"| {pair} | {allocator} | {cells} | {peak['exact'] / peak['logit']:.2f} |"
    assert row in (ROOT / "docs" / "performance.md").read_text()


def test_the_page_on_scaling_has_the_table_of_models() -> None:
    assert models_table(SCALE["models"]) in (ROOT / "docs" / "scaling.md").read_text()


def test_the_page_on_scaling_has_the_table_of_processes() -> None:
    _, table = processes_table(SCALE["processes"]).split("\n\n")
    assert table in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"device": "Z80"}, "device AMD EPYC, not Z80"),
        ({"precision": "fp32"}, "precision bf16, not fp32"),
        ({"instructions": []}, "instructions ['avx2', 'avx512f', 'avx512_bf16'], not []"),
    ],
)
def test_figures_of_another_machine_are_not_added(change: dict[str, object], said: str | None) -> None:
    path = RESULTS / "speed.json"
    conflict = conflict_with({**SPEED["environment"], **change}, path)
    expected = said and f"--json: {path} has figures of another machine ({said}): name another file"
    assert conflict == expected


@pytest.mark.parametrize("row", [name for name in ROWS if name not in (*COMPILED, *GRAPHS)])
def test_every_row_takes_a_step(row: str) -> None:
    case = Case(("cifar_resnet8", "test_resnet"), 32, 8, "cpu", fast_precision())
    own = Case(**{**vars(case), **ROWS[row].changes})
    torch.manual_seed(0)
    step, batch = ROWS[row].build(own), own.images()
    for _ in range(ROWS[row].cycle):
        step(*batch)


def test_both_floors_train_the_same() -> None:
    case = Case(("cifar_resnet8", "test_resnet"), 32, 8, "cpu", precision="fp32")
    weights = []
    for batched in (False, True):
        built = distiller(case)
        models = [WithMap(one) for one in built.step.models]
        floor = Floor(models, extractors_of(built), case.precision, batched=batched)
        for _ in range(2):
            floor.step(*case.images())
        weights.append([value.detach() for model in floor.models for value in model.parameters()])
    torch.testing.assert_close(*weights)


def test_the_model_of_an_update() -> None:
    one = {"forward_and_first": 0.3, "second": 0.2, "fixed": 0.01, "megabytes": 10.0, "bandwidth": 1000.0, "wait": 0.0}
    assert step_seconds(1, **one) == pytest.approx(0.51)
    # Each of two exchanges takes 10 ms: the first beside the second backward pass, the second after it.
    assert step_seconds(2, **one) == pytest.approx(0.15 + 0.1 + 0.01 + 0.01)
    assert step_seconds(100, **one) == pytest.approx(0.003 + 2 * 0.0198 + 0.01)
