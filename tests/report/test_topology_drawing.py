"""The drawing of the topology, and the words beside it."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd.report import read_run
from feature_gan_kd.report.topology_drawing import (
    RADIUS,
    WIDTH,
    TopologyDrawing,
    describe_edges,
    describe_loss_terms,
    draw_topology,
    model_details,
)
from tests.report.fake_runs import change_description, write_run


def drawing(folder: Path, count: int, edges: list[tuple[int, int]] | None = None) -> TopologyDrawing:
    return draw_topology(read_run(write_run(folder, names=[f"model_{k}" for k in range(count)], edges=edges)))


@pytest.mark.parametrize("count", [2, 3, 4, 6, 12])
def test_circles_are_inside_and_apart(count: int, tmp_path: Path) -> None:
    drawn = drawing(tmp_path, count)
    assert [circle.index for circle in drawn.circles] == list(range(count))
    for circle in drawn.circles:
        assert RADIUS < circle.x < WIDTH - RADIUS
        assert RADIUS < circle.y < drawn.height - RADIUS
        assert 8 < circle.name_y < drawn.height
    gaps = [math.dist((a.x, a.y), (b.x, b.y)) for a, b in itertools.combinations(drawn.circles, 2)]
    assert min(gaps) > 2 * RADIUS


def test_an_arrow_leads_from_source_to_learner(tmp_path: Path) -> None:
    drawn = drawing(tmp_path, 3, [(0, 2), (2, 1), (1, 0)])
    for arrow, (source, learner) in zip(drawn.arrows, [(0, 2), (2, 1), (1, 0)], strict=True):
        numbers = [float(word) for word in re.findall(r"-?[\d.]+", arrow.curve)]
        tip = [float(word) for word in arrow.head.split()[0].split(",")]
        start, end = drawn.circles[source], drawn.circles[learner]
        assert math.dist(numbers[:2], (start.x, start.y)) == pytest.approx(RADIUS + 3, abs=0.2)
        assert math.dist(tip, (end.x, end.y)) == pytest.approx(RADIUS + 3, abs=0.2)
        assert arrow.color == learner


def test_arrows_in_both_directions_do_not_cover_each_other(tmp_path: Path) -> None:
    there, back = drawing(tmp_path, 2).arrows
    assert math.dist((there.x, there.y), (back.x, back.y)) > 30


def test_frozen_models_and_discriminators(tmp_path: Path) -> None:
    drawn = draw_topology(read_run(write_run(tmp_path, frozen=[0], edges=[(0, 1)])))
    assert [circle.frozen for circle in drawn.circles] == [True, False]
    assert drawn.has_discriminators
    assert not draw_topology(read_run(write_run(tmp_path, method="logit"))).has_discriminators


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "afd",
            ["logits: T² KL(source ‖ learner), T = 3, weight 1", "feature maps: the discriminator D"],
        ),
        ("l1", ["logits: ", "feature maps: mean absolute difference, weight 1"]),
        ("l2-only", ["feature maps: mean squared difference, weight 1"]),
        ("vanilla", []),
        (
            "zero-gradient",
            ["logits: T² KL(source ‖ learner), T = 3", "no feature maps: the extractors' Adam"],
        ),
    ],
)
def test_what_passes(method: str, words: list[str], tmp_path: Path) -> None:
    terms = describe_loss_terms(read_run(write_run(tmp_path, method=method)))
    assert len(terms) == len(words)
    assert all(term.startswith(word) for term, word in zip(terms, words, strict=True))


def test_weights_of_the_settings_count(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, kl_weight=0.5, temperature=4, adversarial_weight=0))
    assert describe_loss_terms(run) == ["logits: T² KL(source ‖ learner), T = 4, weight 0.5"]
    run = read_run(write_run(tmp_path / "other", logit_loss="standardised", method="logit"))
    assert describe_loss_terms(run) == ["logits: T² KL(source ‖ learner), standardised, T = 3, weight 1"]
    run = read_run(write_run(tmp_path / "ensemble", targets="ensemble", method="logit"))
    assert describe_loss_terms(run) == ["logits: T² KL(target ‖ learner), ensemble targets, T = 3, weight 1"]


def test_parameters_and_maps_where_they_are_on_record(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert model_details(read_run(folder)) == [{"parameters": "", "maps": []}] * 2
    maps = [{"layer": "layer3", "shape": [64, 8, 8]}]
    change_description(folder, taps=[{"parameters": 278324, "maps": maps}, {"parameters": 1, "maps": []}])
    found = model_details(read_run(folder))
    assert found == [{"parameters": "278,324", "maps": ["layer3 64x8x8"]}, {"parameters": "1", "maps": []}]


def test_discriminators_that_see_classes_are_told(tmp_path: Path) -> None:
    for seen in (True, False):
        run = read_run(write_run(tmp_path / str(seen), method="feature", discriminator_classes=seen))
        assert ("source's, class by class" in describe_loss_terms(run)[0]) == seen


@pytest.mark.parametrize("settings", [{"method": "vanilla"}, {"method": "zero-gradient", "kl_weight": 0}])
def test_where_no_model_teaches_another_there_is_no_arrow(settings: dict[str, Any], tmp_path: Path) -> None:
    """The method decides that, not the topology: `vanilla` has edges too."""
    run = read_run(write_run(tmp_path, **settings))
    assert run.edges == [(0, 1), (1, 0)]
    drawn = draw_topology(run)
    assert (len(drawn.circles), drawn.arrows, drawn.has_discriminators) == (2, [], False)
    assert describe_edges(run) == []


def test_each_arrow_in_words(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, frozen=[0], edges=[(0, 1)], method="l2-only"))
    assert len(draw_topology(run).arrows) == 1
    assert describe_edges(run) == ["0 cifar_resnet20 teaches 1 cifar_resnet32."]
