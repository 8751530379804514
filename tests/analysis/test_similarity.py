"""Similarity of maps: against formulas written out in float64, and as it is measured on models."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from feature_gan_kd import Edge, UserError
from feature_gan_kd.analysis.similarity import (
    Representation,
    linear_cka,
    mean_cosine,
    measure_group,
    measure_similarity,
)
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.training.run import open_training_data
from tests.helpers.runs import AtStep, assert_same_run, build, final_state, records
from tests.helpers.small_models import GroupNormModel
from tests.method.test_build import wired

Array = NDArray[np.float64]


def hsic(first: Array, second: Array) -> float:
    """Unbiased HSIC of two sets of vectors (n, features) with linear kernels: equation 5 of Song et al. 2012."""
    n = len(first)
    k, l = first @ first.T, second @ second.T  # noqa: E741
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    value = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return float(value / (n * (n - 3)))


def hsic_by_definition(first: Array, second: Array) -> float:
    """The same as the mean over all ordered quadruples of different images: what the formula above sums up."""
    k, l = first @ first.T, second @ second.T  # noqa: E741
    values = [
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(len(first)), 4)
    ]
    return float(np.mean(values))


def cka(first: Array, second: Array) -> float:
    return hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))


def biased_cka(first: Array, second: Array) -> float:
    first, second = first - first.mean(0), second - second.mean(0)
    return float(
        np.linalg.norm(second.T @ first) ** 2 / np.linalg.norm(first.T @ first) / np.linalg.norm(second.T @ second)
    )


def maps(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Random maps with a mean, as those behind a ReLU have."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu() + shift


def flat(feature_maps: Tensor) -> Array:
    return feature_maps.flatten(1).double().numpy()


def measured_cka(first: Tensor, second: Tensor) -> float:
    return float(linear_cka(Representation.from_maps(first), Representation.from_maps(second)))


PAIRS = {
    "equal shapes": (maps(20, 4, 3, 3), maps(20, 4, 3, 3, seed=1)),
    "other channels and grid": (maps(30, 4, 5, 5), maps(30, 9, 2, 3, seed=1)),
    "related": (maps(25, 6, 4, 4), (maps(25, 6, 4, 4) + 0.3 * maps(25, 6, 4, 4, seed=2)).square()),
    "fewest images": (maps(4, 3, 2, 2), maps(4, 3, 2, 2, seed=3)),
    "a large mean": (maps(40, 4, 3, 3, shift=50.0), maps(40, 4, 3, 3, shift=50.0) + maps(40, 4, 3, 3, seed=4)),
    "more images than values": (maps(200, 2, 1, 1), maps(200, 3, 1, 1, seed=5)),
}


class TestMeasures:
    @pytest.mark.parametrize("name", list(PAIRS))
    def test_cka_equals_the_formula(self, name: str) -> None:
        first, second = PAIRS[name]
        assert measured_cka(first, second) == pytest.approx(cka(flat(first), flat(second)), abs=2e-6)
        assert measured_cka(second, first) == pytest.approx(measured_cka(first, second), abs=1e-12)

    def test_the_formula_is_the_mean_over_quadruples(self) -> None:
        first, second = flat(maps(7, 3, 2, 2)), flat(maps(7, 2, 2, 2, seed=1))
        assert hsic(first, second) == pytest.approx(hsic_by_definition(first, second), rel=1e-10)

    def test_cosine_equals_the_formula(self) -> None:
        first, second = maps(20, 4, 3, 3), maps(20, 4, 5, 2, seed=1)
        a, b = (one.double().numpy().mean((2, 3)) for one in (first, second))
        expected = np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
        found = float(mean_cosine(Representation.from_maps(first), Representation.from_maps(second)))
        assert found == pytest.approx(expected, abs=1e-6)
        assert float(mean_cosine(Representation.from_maps(first), Representation.from_maps(first))) == pytest.approx(
            1, abs=1e-6
        )

    def test_identical_maps(self) -> None:
        assert measured_cka(maps(20, 4, 3, 3), maps(20, 4, 3, 3)) == pytest.approx(1, abs=1e-12)

    def test_rotation_shift_and_scale_change_nothing(self) -> None:
        first, second = PAIRS["related"]
        rotation = torch.linalg.qr(maps(96, 96, seed=7) - 0.4)[0]
        turned = (second.flatten(1) @ rotation).reshape(second.shape)
        assert (turned - second).abs().max() > 0.5
        for changed in (turned, 3.7 * second, -second, second + maps(1, 6, 4, 4, seed=8)):
            assert measured_cka(first, changed) == pytest.approx(measured_cka(first, second), abs=2e-6)
        assert measured_cka(second, turned) == pytest.approx(1, abs=1e-6)

    def test_another_linear_map_changes_it(self) -> None:
        """CKA is invariant to rotations, not to every invertible map: else it could not tell wide maps apart."""
        first, second = PAIRS["related"]
        stretched = second * torch.logspace(0, 1, 6)[:, None, None]
        assert abs(measured_cka(first, stretched) - measured_cka(first, second)) > 0.01

    def test_independent_maps_are_not_alike_although_they_have_more_values_than_images(self) -> None:
        """Plain CKA takes them for nearly the same: the reason for the unbiased one."""
        first, second = maps(100, 20, 6, 6), maps(100, 20, 6, 6, seed=1)
        assert abs(measured_cka(first, second)) < 0.05
        assert biased_cka(flat(first), flat(second)) > 0.8

    def test_reduced_precision(self) -> None:
        first, second = PAIRS["related"]
        assert measured_cka(first.bfloat16(), second) == pytest.approx(measured_cka(first, second), abs=0.01)

    def test_a_constant_map_is_like_nothing(self) -> None:
        assert measured_cka(torch.ones(10, 3, 2, 2), maps(10, 3, 2, 2)) == 0


def models(*widths: int, layers: Any = "features") -> tuple[list[TappedModel], list[nn.Module]]:
    torch.manual_seed(0)
    modules: list[nn.Module] = [GroupNormModel(width) for width in widths]
    edges = tuple(Edge(k, (k + 1) % len(widths)) for k in range(len(widths)))
    return wired(modules, layers, edges, method="vanilla", similarity_images=10).tapped, modules


def batches(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(size)]


BOTH = (Edge(0, 1), Edge(1, 0))


class TestMeasuring:
    @pytest.mark.parametrize("size", [4, 10, 7, 50])
    def test_on_the_first_images_however_they_are_batched(self, size: int) -> None:
        tapped, modules = models(4, 4)
        found = measure_similarity(tapped, BOTH, batches(50, size), 10)
        with torch.no_grad():
            first, second = (module.features(batches(50, 10)[0][0]) for module in modules)  # type: ignore[operator]
        assert list(found) == ["similarity/0->1", "cosine/0->1"]
        assert found["similarity/0->1"] == pytest.approx(cka(flat(first), flat(second)), abs=1e-5)
        a, b = (one.double().numpy().mean((2, 3)) for one in (first, second))
        expected = np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
        assert found["cosine/0->1"] == pytest.approx(expected, abs=1e-5)

    def test_no_more_batches_are_read_than_needed(self) -> None:
        read = []
        tapped, _ = models(4, 4)
        measure_similarity(tapped, BOTH, (read.append(k) or one for k, one in enumerate(batches(50, 5))), 10)  # type: ignore[func-returns-value]
        assert read == [0, 1]

    def test_cosine_needs_as_many_channels(self) -> None:
        assert list(measure_similarity(models(4, 6)[0], BOTH, batches(50, 5), 10)) == ["similarity/0->1"]

    def test_several_layers_and_models(self) -> None:
        tapped, _ = models(4, 6, 4, layers=["features.0", "features.3"])
        edges = [Edge(0, 1), Edge(2, 0), Edge(1, 2), Edge(0, 2)]
        found = measure_similarity(tapped, edges, batches(50, 5), 10)
        assert [key for key in found if key.startswith("similarity")] == [
            f"similarity/{edge}@{tap}" for edge in ("0->1", "2->0", "1->2") for tap in (0, 1)
        ]
        assert [key for key in found if key.startswith("cosine")] == ["cosine/2->0@0", "cosine/2->0@1"]
        assert len({round(value, 4) for value in found.values()}) == len(found)

    def test_nothing_is_changed(self) -> None:
        """Modes, statistics, random numbers and hooks are as they were, also where batch normalisation is in it."""
        distiller = build(similarity_images=10)
        distiller.models[0].train()
        before = {key: value.clone() for key, value in distiller.models[0].state_dict().items()}
        random = torch.get_rng_state()
        source = open_training_data(distiller.group, None).evaluation
        found = measure_group(distiller.group, source)
        assert found == measure_group(distiller.group, source)  # dropout and stochastic depth are off
        assert distiller.models[0].training
        assert all(torch.equal(value, before[key]) for key, value in distiller.models[0].state_dict().items())
        assert torch.equal(random, torch.get_rng_state())
        assert not any(module._forward_hooks for module in distiller.models[0].modules())

    @pytest.mark.parametrize("count", [1, 3])
    def test_too_few_images(self, count: int) -> None:
        with pytest.raises(UserError, match=rf"^similarity_images: there are {count} evaluation images, at least 4 "):
            measure_similarity(models(4, 4)[0], BOTH, batches(count, 5), 10)

    def test_different_numbers_of_layers(self) -> None:
        with pytest.raises(UserError, match=r"^feature_layers: model 1 has 1 tapped layers and its source 0 has 2: "):
            models(4, 4, layers={0: ["features.0", "features.3"], 1: "features.3"})


class TestRecording:
    def test_off_unless_asked_for(self, tmp_path: Path) -> None:
        build(epochs=1).fit(output_dir=tmp_path)
        assert not [line for line in records(tmp_path) if "similarity" in str(line)]

    @pytest.mark.parametrize("method", ["vanilla", "logit", "zero-gradient", "afd", "l1"])
    def test_at_every_evaluation_whatever_the_method(self, method: str, tmp_path: Path) -> None:
        history = build(method=method, similarity_images=40, evaluate_every_epochs=2, adversarial_lr=0.1).fit(
            output_dir=tmp_path / "run"
        )
        build(method=method, evaluate_every_epochs=2, adversarial_lr=0.1).fit(output_dir=tmp_path / "plain")
        lines = records(tmp_path / "run")
        found = [line["metrics"]["eval/similarity/0->1"] for line in lines if line["event"] == "epoch"]
        assert found == [record["metrics"]["eval/similarity/0->1"] for record in history.epochs]
        assert len(found) == 2
        assert found[0] != found[1]
        assert all(0 < value < 1 for value in found)
        assert not [line for line in lines if line["event"] == "step" and "eval/similarity/0->1" in line["metrics"]]
        mine, plain = final_state(tmp_path / "run"), final_state(tmp_path / "plain")
        assert all(torch.equal(value, mine[key]) for key, value in plain.items())

    def test_too_few_images_are_found_before_training(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"^similarity_images: there are 3 evaluation images, "):
            build(similarity_images=40, max_eval_samples=3).fit(output_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_resumed_runs_have_the_same_records(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"similarity_images": 40, "log_gradients": True, "log_every_steps": 4}

        def cut() -> None:
            raise KeyboardInterrupt

        build(**settings).fit(output_dir=tmp_path / "undisturbed")
        for step in (3, 5, 9):
            with pytest.raises(KeyboardInterrupt):
                build(**settings).fit(output_dir=tmp_path / "run", resume=True, callbacks=[AtStep(step, cut)])
        build(**settings).fit(output_dir=tmp_path / "run", resume=True)
        assert_same_run(tmp_path / "run", tmp_path / "undisturbed")
        assert [line for line in records(tmp_path / "run") if "train/update_feature/0" in line["metrics"]]
