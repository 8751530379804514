"""The drawing of the wiring."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

from feature_gan_kd.report import read_run
from feature_gan_kd.report.graph import RADIUS, WIDTH, Graph, graph_of, models_of, terms_of
from tests.report.written import change_description, write_run


def graph(folder: Path, count: int, edges: list[tuple[int, int]] | None = None) -> Graph:
    return graph_of(read_run(write_run(folder, names=[f"model_{k}" for k in range(count)], edges=edges)))


@pytest.mark.parametrize("count", [2, 3, 4, 6, 12])
def test_circles_are_inside_and_apart(count: int, tmp_path: Path) -> None:
    drawn = graph(tmp_path, count)
    assert [node.index for node in drawn.nodes] == list(range(count))
    for node in drawn.nodes:
        assert RADIUS < node.x < WIDTH - RADIUS
        assert RADIUS < node.y < drawn.height - RADIUS
        assert 8 < node.label < drawn.height
    gaps = [math.dist((a.x, a.y), (b.x, b.y)) for a, b in itertools.combinations(drawn.nodes, 2)]
    assert min(gaps) > 2 * RADIUS


def test_an_arrow_leads_from_source_to_learner(tmp_path: Path) -> None:
    drawn = graph(tmp_path, 3, [(0, 2), (2, 1), (1, 0)])
    for arrow, (source, learner) in zip(drawn.arrows, [(0, 2), (2, 1), (1, 0)], strict=True):
        numbers = [float(word) for word in re.findall(r"-?[\d.]+", arrow.curve)]
        tip = [float(word) for word in arrow.head.split()[0].split(",")]
        start, end = drawn.nodes[source], drawn.nodes[learner]
        assert math.dist(numbers[:2], (start.x, start.y)) == pytest.approx(RADIUS + 3, abs=0.2)
        assert math.dist(tip, (end.x, end.y)) == pytest.approx(RADIUS + 3, abs=0.2)
        assert arrow.color == learner


def test_arrows_in_both_directions_do_not_cover_each_other(tmp_path: Path) -> None:
    there, back = graph(tmp_path, 2).arrows
    assert math.dist((there.x, there.y), (back.x, back.y)) > 30


def test_frozen_models_and_discriminators(tmp_path: Path) -> None:
    drawn = graph_of(read_run(write_run(tmp_path, frozen=[0], edges=[(0, 1)])))
    assert [node.frozen for node in drawn.nodes] == [True, False]
    assert drawn.has_discriminators
    assert not graph_of(read_run(write_run(tmp_path, method="logit"))).has_discriminators


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("afd", ["logits: T² KL(source ‖ learner), T = 3, weight 1", "feature maps: the learner's are to pass"]),
        ("l1", ["logits: ", "feature maps: mean absolute difference, weight 1"]),
        ("l2-only", ["feature maps: mean squared difference, weight 1"]),
        ("vanilla", ["nothing: every model learns from the labels alone"]),
    ],
)
def test_what_passes(method: str, words: list[str], tmp_path: Path) -> None:
    lessons = terms_of(read_run(write_run(tmp_path, method=method)))
    assert len(lessons) == len(words)
    assert all(term.startswith(word) for term, word in zip(lessons, words, strict=True))


def test_weights_of_the_settings_count(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, kl_weight=0.5, temperature=4, adversarial_weight=0))
    assert terms_of(run) == ["logits: T² KL(source ‖ learner), T = 4, weight 0.5"]


def test_parameters_and_maps_where_they_are_on_record(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert models_of(read_run(folder)) == [{"parameters": "", "maps": []}] * 2
    maps = [{"layer": "layer3", "shape": [64, 8, 8]}]
    change_description(folder, taps=[{"parameters": 278324, "maps": maps}, {"parameters": 1, "maps": []}])
    found = models_of(read_run(folder))
    assert found == [{"parameters": "278,324", "maps": ["layer3 64x8x8"]}, {"parameters": "1", "maps": []}]
