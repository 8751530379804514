"""Runs with every augmentation and loss of the labels: resumed to the same weights, and published as evaluated."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method import losses
from feature_gan_kd.training.describe_recipe import describe_labels_and_images
from tests.helpers.runs import AtStep, assert_same_run, build


class PowerCutError(Exception):
    pass


def cut() -> None:
    raise PowerCutError


def turned(image: Any) -> Tensor:
    """A transform of the user's own that draws from all generators."""
    angle = 20 * (random.random() + np.random.rand() + float(torch.rand(())) - 1.5)
    return pil_to_tensor(image.rotate(angle).resize((8, 8)))


SETTINGS: dict[str, dict[str, Any]] = {
    "in memory": {"reprob": 0.5, "vflip": 0.5, "balanced_sampling": True, "smoothing": 0.1},
    "image by image": {"aa": "rand-m9-mstd0.5", "class_weights": True, "bce_loss": True},
    "resized-crop": {"augmentation": "resized-crop", "color_jitter": 0.4, "scale": (0.5, 1.0), "reprob": 0.3},
    "plain for the sources": {
        **{"augmentation": "resized-crop", "aa": "rand-m9-mstd0.5", "reprob": 0.3, "source_view": "plain"},
        **{"model_ema": 0.9, "targets": "ema"},
    },
    "own": {"reprob": 0.5, "balanced_sampling": True, "bce_loss": True, "smoothing": 0.2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_run_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    """Stopped within an epoch; mixup and CutMix are on."""
    own = {"train_transform": turned} if name == "own" else {}
    settings = {**SETTINGS[name], "epochs": 2, "max_train_samples": 70}
    build(**settings).fit(output_dir=tmp_path / "whole", **own)
    with pytest.raises(PowerCutError):
        build(**settings).fit(output_dir=tmp_path / "run", callbacks=[AtStep(4, cut)], **own)
    build(**settings).fit(output_dir=tmp_path / "run", resume=True, **own)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_another_transform_of_ones_own_is_another_run(tmp_path: Path) -> None:
    settings = {"epochs": 1, "max_train_samples": 40}
    build(**settings).fit(output_dir=tmp_path / "run", train_transform=turned)
    with pytest.raises(UserError, match=r"was written with data .*, this run has "):
        build(**settings).fit(output_dir=tmp_path / "run", resume=True)


def test_the_loss_of_the_labels_is_the_one_that_was_asked_for() -> None:
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 10
    distiller = build(smoothing=0.2, bce_loss=True, mixup=0.0, cutmix=0.0)
    for model in distiller.models:
        model.block[1] = torch.nn.Identity()  # type: ignore[union-attr,operator,index]
        model.head[0] = torch.nn.Identity()  # type: ignore[union-attr,operator,index]
        model.train()
    with torch.no_grad():
        expected = [losses.label_loss(one(images), labels, smoothing=0.2, binary=True) for one in distiller.models]
    found = distiller.training_step(images, labels)
    torch.testing.assert_close(torch.stack([found[f"cross_entropy/{k}"] for k in range(2)]), torch.stack(expected))


def test_class_weights_are_those_of_the_training_images() -> None:
    distiller = build(class_weights=True, epochs=1)
    distiller.fit()
    weights = distiller.step.label_loss._class_weights
    assert weights is not None
    assert weights.shape == (10,)
    first = weights.data_ptr()
    distiller.group.config = distiller.config.replace(max_train_samples=40)
    distiller.fit()
    assert distiller.step.label_loss._class_weights.data_ptr() == first  # type: ignore[union-attr]
    torch.testing.assert_close(weights, torch.ones(10))  # 4 images of each class


def test_what_is_published_is_what_was_evaluated(tmp_path: Path) -> None:
    distiller = OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"],
        num_classes=10,
        image_size=32,
        crop_pct=0.8,
        interpolation="lanczos",
        epochs=1,
        max_train_samples=20,
        max_eval_samples=10,
        batch_size=10,
    )
    distiller.fit(output_dir=tmp_path / "run", progress=False)
    (folder,) = (tmp_path / "run" / "networks").glob("0-test_resnet")
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (cfg["crop_pct"], cfg["interpolation"], cfg["crop_mode"]) == (0.8, "lanczos", "center")
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=cfg))
    assert transform.transforms[0].size == 40


@pytest.mark.parametrize("notation", ["randaug", "rand-x1"])
def test_an_augmentation_that_timm_does_not_know_is_refused_at_once(notation: str) -> None:
    with pytest.raises(UserError, match=r"^aa: "):
        build(aa=notation)


def test_the_first_lines_say_how_labels_and_images_are_changed() -> None:
    described = describe_labels_and_images(
        DistillConfig(smoothing=0.1, bce_loss=True, aa="rand-m9", reprob=0.25, mixup=0.2, balanced_sampling=True)
    )
    assert described == [
        "label loss: binary cross-entropy, smoothing 0.1",
        "training images: rand-m9, 25% erased in part, mixup 0.2, every class equally often",
    ]
    assert describe_labels_and_images(DistillConfig()) == []
    assert describe_labels_and_images(DistillConfig(logit_loss="decoupled")) == ["logit loss: decoupled"]
    both = describe_labels_and_images(DistillConfig(logit_loss="decoupled", targets="ensemble"))
    assert both == ["logit loss: decoupled, ensemble targets"]
    sure = describe_labels_and_images(DistillConfig(confidence_threshold=0.8))
    assert sure == ["logit loss: targets at least 0.8 sure"]
    assert describe_labels_and_images(DistillConfig(logit_loss="decoupled", method="vanilla")) == []
