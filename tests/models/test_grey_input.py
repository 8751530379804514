"""Models that were trained on colours, used on grey images: what they compute is what they computed for colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.models.grey_input import averaged_note, fold_channels, takes_colours
from feature_gan_kd.models.normalisation import Normalisation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.28)
OWN = Normalisation(MEAN, STD)


def published(place: Path, name: str, in_chans: int = 3, **cfg: Any) -> nn.Module:
    """A trained model, of which the config states the normalisation of colours."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3, in_chans=in_chans)
        for one in model.modules():
            if isinstance(one, nn.BatchNorm2d):
                nn.init.normal_(one.running_mean, std=0.1)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD, "input_size": (3, 32, 32), **cfg}
    timm.models.save_for_hf(model, str(place), model_config={"num_classes": 3})
    return model.eval()


def greys(count: int = 4) -> Tensor:
    """Pixels in [0, 1], (count, 1, 32, 32)."""
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def on_colours(model: nn.Module, pixels: Tensor) -> Tensor:
    """What a model for colours gives for grey images in three channels."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return model((pixels - mean) / std)


def group_of(*models: Any, **settings: Any) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller(
        list(models), num_classes=3, in_chans=1, image_size=32, mean=[0.2], std=[0.5], **settings
    )


@torch.no_grad()
def on_greys(distiller: OnlineAdversarialDistiller, pixels: Tensor) -> Tensor:
    """What model 0 gives for shared grey images, in evaluation mode."""
    logits, _ = distiller.group.tapped[0].eval()((pixels - 0.2) / 0.5)
    assert logits is not None
    return logits


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("as_module", [False, True])
def test_a_frozen_model_sees_colours(name: str, as_module: bool, tmp_path: Path) -> None:
    colour = published(tmp_path / "colour", name)
    distiller = group_of(colour if as_module else f"local-dir:{tmp_path / 'colour'}", "test_resnet", frozen=[0])
    torch.testing.assert_close(on_greys(distiller, greys()), on_colours(colour, greys()))
    assert distiller.group.tapped[0].notes() == []
    assert next(distiller.models[1].parameters()).shape[1] == 1


def test_a_frozen_model_is_published_and_restored_for_colours(tmp_path: Path) -> None:
    colour = published(tmp_path / "colour", "test_resnet")
    distiller = group_of(f"local-dir:{tmp_path / 'colour'}", "test_resnet", frozen=[0])
    distiller.training_step((greys() - 0.2) / 0.5, torch.tensor([0, 1, 2, 0]))
    distiller.save_checkpoint(tmp_path / "checkpoint")
    restored = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "checkpoint")
    torch.testing.assert_close(on_greys(restored, greys()), on_colours(colour, greys()))
    folders = restored.save_pretrained(tmp_path / "out")
    stated = [json.loads((folder / "config.json").read_text())["pretrained_cfg"] for folder in folders]
    assert [(one["input_size"], one["mean"]) for one in stated] == [([3, 32, 32], [*MEAN]), ([1, 32, 32], [0.2])]


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_a_learner_begins_where_the_trained_model_ended(name: str, tmp_path: Path) -> None:
    """A convolution with a bias and without padding is folded exactly."""
    colour = published(tmp_path / "colour", name, **({"input_size": (3, 160, 160)} if name == "test_vit" else {}))
    distiller = group_of(f"local-dir:{tmp_path / 'colour'}", "test_resnet")
    assert next(p for p in distiller.models[0].parameters() if p.ndim == 4).shape[1] == 1
    assert distiller.group.tapped[0].notes() == []
    if name == "test_vit":  # built for 32 pixels, with other embeddings of positions
        colour = timm.create_model(f"local-dir:{tmp_path / 'colour'}", pretrained=True, img_size=32).eval()
    torch.testing.assert_close(on_greys(distiller, greys()), on_colours(colour, greys()))


def test_a_learner_that_begins_close_to_the_trained_model_says_so(tmp_path: Path) -> None:
    published(tmp_path / "colour", "test_resnet")
    distiller = group_of(f"local-dir:{tmp_path / 'colour'}", "test_resnet")
    said = (
        "model 0 (test_resnet): its layer 'conv1.0' was trained on 3 channels of unequal mean and std, and gives about "
        "the same for 1, not exactly"
    )
    assert distiller.group.tapped[0].notes() == [said]
    assert said in distiller.summary()


def test_equal_channels_are_added_up_exactly(tmp_path: Path) -> None:
    cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    colour = published(tmp_path / "colour", "test_resnet", **cfg)
    distiller = group_of(f"local-dir:{tmp_path / 'colour'}", "test_resnet")
    assert distiller.group.tapped[0].notes() == []
    expected = colour(((greys() - 0.5) / 0.25).repeat(1, 3, 1, 1))
    torch.testing.assert_close(on_greys(distiller, greys()), expected.detach())


@pytest.mark.parametrize("frozen", [[], [0]])
def test_weights_for_greys_stay_as_they_are(frozen: list[int], tmp_path: Path) -> None:
    """Others than timm may write the config."""
    grey = published(tmp_path / "grey", "test_resnet", in_chans=1)
    config = json.loads((tmp_path / "grey" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": MEAN, "std": STD, "input_size": (3, 32, 32)}
    (tmp_path / "grey" / "config.json").write_text(json.dumps(config))
    distiller = group_of(f"local-dir:{tmp_path / 'grey'}", "test_resnet", frozen=frozen)
    mean, std = sum(MEAN) / 3, sum(STD) / 3
    torch.testing.assert_close(on_greys(distiller, greys()), grey((greys() - mean) / std).detach())
    said = "it takes 1 channel, and its pretrained_cfg states mean and std of 3: their average is taken"
    assert distiller.group.tapped[0].notes() == [f"model 0 (test_resnet): {said}"]


def test_weights_for_other_channels_are_said(tmp_path: Path) -> None:
    published(tmp_path / "colour", "test_resnet")
    distiller = OnlineAdversarialDistiller(
        [f"local-dir:{tmp_path / 'colour'}", "test_resnet"], num_classes=3, in_chans=4, image_size=32
    )
    said = "its weights were trained on 3 channels, the images here have 4"
    assert distiller.group.tapped[0].notes() == [f"model 0 (test_resnet): {said}"]


def test_a_layer_that_cannot_be_folded_is_said() -> None:
    grey, colour = (nn.Sequential(nn.Flatten(), nn.Linear(4 * channels, 2)) for channels in (1, 3))
    said = "its layer '1' starts anew, since its weights for 3 channels cannot be made into some for 1"
    assert fold_channels(grey, colour, OWN, OWN.of_channels(1)) == said


def test_blocks_of_pixels_are_folded_by_their_channels() -> None:
    grey, colour = nn.Conv2d(4, 2, 1), nn.Conv2d(12, 2, 1)
    common, pixels = OWN.of_channels(1), torch.rand(2, 4, 3, 3)
    assert fold_channels(nn.Sequential(grey), nn.Sequential(colour), OWN, common) is None
    mean, std = (torch.tensor(values * 4).view(1, 12, 1, 1) for values in (MEAN, STD))
    expected = colour((pixels.repeat_interleave(3, 1) - mean) / std)
    torch.testing.assert_close(grey((pixels - common.mean[0]) / common.std[0]), expected)


def test_what_is_not_known_is_not_guessed() -> None:
    assert not takes_colours(nn.Linear(3, 3), {})
    assert averaged_note({}, 1) is None
    assert averaged_note({"mean": (0.5,) * 3, "std": (0.5,) * 3}, 1) is None
