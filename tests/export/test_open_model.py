"""Models by the names that people give: of timm, of the hub (a stand-in of it), and folders; with the right classes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.models import save_for_hf
from torch import nn

from feature_gan_kd.export import ModelCardInfo
from feature_gan_kd.export.open_model import OpenedModel, open_classifier
from feature_gan_kd.export.predictor import Predictor
from feature_gan_kd.utils.errors import UserError
from tests.export.hub_stand_in import Hub, Repository, running, typed

PREDICTS = """
import contextlib, io
from feature_gan_kd.cli import main
for words in {calls!r}:
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(["predict", words[0], "one.png", "--json", *words[1:]])
        except SystemExit:
            print(err.getvalue(), end="")
"""


def lines_of(folder: Path, endpoint: str, *calls: tuple[str, ...]) -> list[str]:
    """What `predict` prints for names and their options, a line each; all in one process, whose start takes longest."""
    return typed(PREDICTS.format(calls=calls), folder, endpoint).splitlines()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as one:
        yield one


def published(folder: Path, **cfg: Any) -> dict[str, bytes]:
    """The files with which timm publishes a model; random weights."""
    model = timm.create_model("test_resnet", num_classes=cfg.get("num_classes", 1000))
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}
    names = {"label_names": cfg["label_names"]} if "label_names" in cfg else {}
    save_for_hf(model, str(folder), model_config=names, safe_serialization=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_timm_and_hub_names(hub: Hub, tmp_path: Path) -> None:
    """A timm name gets ImageNet's classes, a model of the hub those that it states."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    files = published(tmp_path / "in1k")
    hub.repositories["timm/test_resnet.r160_in1k"] = Repository(False, files, ["first"])
    own = published(tmp_path / "own", num_classes=2, label_names=["cat", "dog"])
    hub.repositories["me/pets"] = Repository(False, own, ["first"])

    of_timm, of_hub, of_pets, wrong = lines_of(
        tmp_path,
        hub.endpoint,
        ("test_resnet", "--top", "1000"),
        ("hf-hub:timm/test_resnet.r160_in1k", "--top", "1000"),
        ("hf-hub:me/pets",),
        ("hf-hub:me/none",),
    )
    guesses, again, pets = (json.loads(line)["classes"] for line in (of_timm, of_hub, of_pets))
    names = ImageNetInfo().label_descriptions()
    assert names[0] == "tench, Tinca tinca"
    assert [guess["label"] for guess in guesses] == [names[guess["index"]] for guess in guesses]
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1, abs=1e-4)
    assert again == guesses
    assert sorted((guess["index"], guess["label"]) for guess in pets) == [(0, "cat"), (1, "dog")]
    # A copy of the same repository on this machine.
    (folder,) = Predictor(str(tmp_path / "in1k"))([Image.open(tmp_path / "one.png")], top=1000)
    assert [guess.label for guess in folder] == [guess["label"] for guess in guesses]
    assert re.fullmatch(r"feature-gan-kd: error: hf-hub:me/none: could not be loaded \(.+\): check the name", wrong)


def test_without_internet_access(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    names = ("test_resnet", "hf-hub:me/pets")
    assert lines_of(tmp_path, "http://127.0.0.1:1", *((name,) for name in names)) == [
        f"feature-gan-kd: error: {name}: there is no internet access, and the model is not in the hub's cache: "
        "connect, or name a folder"
        for name in names
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "resnet51",
            "resnet51: there is no such folder, and timm has no model of this name (the closest are resnet51q",
        ),
        ("me/pets", "me/pets: there is no such folder, and timm has no model of this name"),
        ("resnet18.foo", "resnet18.foo: timm has no such weights (it has resnet18.a1_in1k, "),
        ("cifar_resnet20", "cifar_resnet20: timm has no trained weights of this model: name a model with"),
        ("local-dir:none", "none: is not a folder"),
    ],
)
def test_names_that_lead_nowhere(name: str, line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        open_classifier(name)


@pytest.mark.parametrize(
    ("classes", "tag", "first"),
    [
        (1000, "fb_in22k_ft_in1k", "tench, Tinca tinca"),
        (21843, "augreg_in21k", "organism, being"),
        (11821, "sw_in12k", None),
        (1000, "", "0"),  # of somebody's own: not every model of 1000 classes is ImageNet's
        (1000, "fb_dino", "0"),
        (10, "a1_in1k", "0"),  # another classifier was put on
    ],
)
def test_imagenet_names_where_the_weights_are_imagenets(classes: int, tag: str, first: str | None) -> None:
    label = OpenedModel("x", lambda images: images, {"num_classes": classes, "tag": tag}, "x").label_of()
    if first is None:
        assert label(0) == ImageNetInfo("imagenet-12k").index_to_description(0)
    else:
        assert label(0) == first
    assert label(classes - 1)


def test_stated_names_go_before_imagenets() -> None:
    cfg = {"num_classes": 1000, "tag": "a1_in1k", "label_names": {"1": "n01", "0": "n00"}}
    label = OpenedModel("x", lambda images: images, cfg, "x").label_of()
    assert [label(k) for k in range(3)] == ["n00", "n01", "2"]
    described = {**cfg, "label_descriptions": {"n00": "crow", "n01": "cat"}}
    label = OpenedModel("x", lambda images: images, described, "x").label_of()
    assert [label(k) for k in range(2)] == ["crow", "cat"]


@pytest.mark.parametrize(
    ("architecture", "cfg"),
    [("vit_base_patch16_siglip_224", {"num_classes": 0}), ("resnet50_clip", {"num_classes": 1024, "tag": "openai"})],
)
def test_models_without_classes_are_refused(
    architecture: str, cfg: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm states the size of CLIP's embedding as its number of classes."""

    def create(name: str, **kwargs: Any) -> nn.Module:
        model: Any = nn.Identity()
        model.num_classes, model.pretrained_cfg = cfg["num_classes"], {"architecture": architecture, **cfg}
        return model  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UserError, match="hf-hub:a/b: has no classes, it gives features: name a classifier"):
        open_classifier("hf-hub:a/b")


def test_weights_and_logits_that_are_not_finite(tmp_path: Path, describe: Callable[..., ModelCardInfo]) -> None:
    published(tmp_path / "net", num_classes=3)
    predictor = Predictor(str(tmp_path / "net"))
    for gives, line in (
        (torch.full((1, 3), torch.nan), "not finite"),
        (torch.zeros(1, 3, 4, 4), "no logits"),
        (torch.zeros(1, 0), "no logits"),
    ):
        predictor.model = lambda images, gives=gives: gives  # type: ignore[misc]
        with pytest.raises(UserError, match=line):
            predictor([Image.new("RGB", (40, 40))])
