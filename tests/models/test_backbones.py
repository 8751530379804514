"""Random pairs of architectures, and the committed sweeps over all of them."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import pytest
import timm
import torch

from benchmarks import transformers_models
from benchmarks.sweep_page import page
from benchmarks.sweep_taps import TOLERANCES
from feature_gan_kd import DistillConfig
from feature_gan_kd.method.build import build_modules
from feature_gan_kd.method.topology import build_edges
from feature_gan_kd.models.build import build_models
from feature_gan_kd.models.find_taps import find_taps

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def is_square(name: str) -> bool:
    _, height, width = timm.get_pretrained_cfg(name, allow_unregistered=False).input_size
    return bool(height == width)


@pytest.mark.parametrize("pairs", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_random_pairs(pairs: int) -> None:
    """Both directions of each pair are connected, each model at its own size; the message of a failure has the seed."""
    seed = random.SystemRandom().randrange(2**32)
    names = [name for name in timm.list_models() if not name.endswith("_enc") and is_square(name)]
    drawn = random.Random(seed).sample(names, 2 * pairs)
    for pair in zip(drawn[::2], drawn[1::2], strict=True):
        channels = {int(timm.get_pretrained_cfg(name, allow_unregistered=False).input_size[0]) for name in pair}
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm warns while it builds some architectures
            models = build_models(
                pair, num_classes=7, in_chans=max(channels), pretrained=[False, False], image_size=None, seed=0
            )
            for model in models:
                model.image_size = model.timm_cfg["input_size"][-1]
            modules = build_modules(models, build_edges("cycle", 2), (), None, DistillConfig(), in_chans=max(channels))
            maps = [torch.zeros(2, *model.taps[0].shape) for model in modules.tapped]
            for connection in modules.connections:
                fake, real = connection.maps(maps[connection.edge.learner], maps[connection.edge.source])
                assert fake.shape == real.shape, f"seed {seed}: {pair}"
                assert connection.discriminator is not None
                assert connection.discriminator(fake).shape == (2,), f"seed {seed}: {pair}"
        assert all(modules.extractors), f"seed {seed}: {pair}"
        assert modules.num_classes == 7, f"seed {seed}: {pair}"


def test_the_committed_sweep_has_every_architecture_and_no_failure() -> None:
    results = json.loads((RESULTS / "sweep_connect.json").read_text())
    refused = {name for name, result in results.items() if "refused" in result}
    assert [name for name, result in results.items() if "failed" in result] == []
    assert all("only encodes" in results[name]["refused"] for name in refused)
    assert len(refused) == 7
    assert len(results) == 1381  # 1,371 of timm 1.0.31 and the ten CIFAR models of this package
    assert all(len(results[name]["connections"]) == 2 for name in results.keys() - refused)


@pytest.mark.parametrize(("library", "count"), [("torchvision", 80), ("transformers", len(transformers_models.MODELS))])
def test_the_committed_sweeps_of_other_libraries_are_complete(library: str, count: int) -> None:
    connected = json.loads((RESULTS / f"sweep_{library}_connect.json").read_text())
    trained = json.loads((RESULTS / f"sweep_{library}_train.json").read_text())
    assert len(connected) == count
    assert all("layer" in result and len(result["connections"]) == 2 for result in connected.values())
    assert [name for name, result in trained.items() if result["problems"]] == []
    assert {result["class"] for result in trained.values()} == {result["class"] for result in connected.values()}


@pytest.mark.slow
def test_the_committed_taps_of_transformers_are_those_of_today() -> None:
    for name, result in json.loads((RESULTS / "sweep_transformers_connect.json").read_text()).items():
        model = transformers_models.build(name, 7).to("meta")
        side = transformers_models.side_of(name)
        (tap,) = find_taps(model, torch.zeros(2, 3, side, side, device="meta"), name)
        found = [tap.title, tap.layout.name, tap.prefix_tokens, list(tap.shape)]
        assert found == [result[key] for key in ("layer", "layout", "prefix_tokens", "map")], name


def test_the_committed_ways_of_running_have_no_failure() -> None:
    """Only gradient checkpointing is refused, and by timm itself."""
    ways = json.loads((RESULTS / "sweep_taps.json").read_text())
    assert [name for name, result in ways.items() if "failed" in result] == []
    for result in ways.values():
        assert result["differences"].keys() | result["refused"].keys() == TOLERANCES.keys()
        assert result["refused"].keys() <= {"checkpointing"}
        assert all(reason.startswith("timm: ") for reason in result["refused"].values())


def test_the_page_says_what_the_sweeps_found() -> None:
    said = (RESULTS.parents[1] / "docs" / "backbones.md").read_text().splitlines()
    assert [line for line in page() if line not in said] == []


def test_the_committed_updates_have_every_class_and_no_problem() -> None:
    connected = json.loads((RESULTS / "sweep_connect.json").read_text())
    trained = json.loads((RESULTS / "sweep_train.json").read_text())
    assert [name for name, result in trained.items() if result["problems"]] == []
    assert {result["class"] for result in trained.values()} == {r["class"] for r in connected.values() if "class" in r}
