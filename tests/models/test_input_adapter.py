"""Each model gets the same images in its own size and normalisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.models.input_adapter import InputAdapter
from feature_gan_kd.models.normalisation import Normalisation
from tests.test_distiller import image_dataset

SHARED = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
OWN = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))


def normalised(pixels: Tensor, to: Normalisation) -> Tensor:
    mean, std = (torch.tensor(values, dtype=pixels.dtype).view(1, 3, 1, 1) for values in (to.mean, to.std))
    return (pixels - mean) / std


def test_images_that_fit_are_the_same_tensor() -> None:
    images = torch.randn(2, 3, 8, 8)
    adapter = InputAdapter(8)
    assert adapter(images) is images
    adapter.set_normalisations(SHARED, SHARED)
    assert adapter(images) is images
    assert InputAdapter(0)(images) is images


def test_normalisation_is_that_of_the_pixels() -> None:
    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    adapter = InputAdapter(8)
    adapter.set_normalisations(SHARED, OWN)
    torch.testing.assert_close(adapter(normalised(pixels, SHARED)), normalised(pixels, OWN))
    assert not list(adapter.state_dict())


def test_size() -> None:
    images = torch.ones(2, 3, 16, 16)
    assert torch.allclose(InputAdapter(4)(images), torch.ones(2, 3, 4, 4))


def pretrained_pair(folder: Path) -> list[str]:
    """Two published models: other sizes, other normalisations."""
    names = []
    for name, size, mean in (("test_resnet", 64, (0.5, 0.5, 0.5)), ("test_vit", 32, (0.2, 0.3, 0.4))):
        kwargs = {"img_size": size} if name == "test_vit" else {}
        model = timm.create_model(name, num_classes=3, **kwargs)
        model.pretrained_cfg["mean"] = mean
        model.pretrained_cfg["input_size"] = (3, size, size)
        timm.models.save_for_hf(model, folder / name, model_args=kwargs, safe_serialization=True)
        names.append(f"local-dir:{folder / name}")
    return names


def test_pretrained_peers_of_other_sizes_and_normalisations(tmp_path: Path) -> None:
    """A model beside another one sees what it would see alone; what is published says so."""
    distiller = OnlineAdversarialDistiller(pretrained_pair(tmp_path), batch_size=4, epochs=1)
    assert distiller.image_size == 64
    assert [model.adapter.size for model in distiller.step.models] == [64, 32]
    data = image_dataset(12, 64)
    distiller.fit(data)
    resnet, vit = distiller.save_pretrained(tmp_path / "out")
    published = [timm.create_model(f"local-dir:{folder}", pretrained=True).eval() for folder in (resnet, vit)]
    configs = [model.pretrained_cfg for model in published]
    assert [tuple(config["input_size"]) for config in configs] == [(3, 64, 64), (3, 32, 32)]
    assert [tuple(config["mean"]) for config in configs] == [(0.5, 0.5, 0.5), (0.2, 0.3, 0.4)]
    pixels = torch.rand(3, 3, 64, 64)
    shared = normalised(pixels, distiller.group.normalisation())
    own = normalised(pixels, Normalisation(tuple(configs[1]["mean"]), tuple(configs[1]["std"])))
    small = F.interpolate(own, (32, 32), mode="bicubic", antialias=True)
    for model in distiller.step.models:
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(distiller.step.models[1](shared)[0], published[1](small))


def test_a_restored_distiller_adapts_likewise(tmp_path: Path) -> None:
    distiller = OnlineAdversarialDistiller(pretrained_pair(tmp_path), batch_size=4, epochs=1)
    data = image_dataset(12, 64)
    distiller.fit(data)
    distiller.save_checkpoint(tmp_path / "saved")
    restored = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved")
    assert restored.evaluate(data) == distiller.evaluate(data)
    assert [model.image_size for model in restored.group.peers] == [64, 32]


@pytest.mark.parametrize("size", [None, 64])
def test_a_model_of_a_fixed_size_keeps_it(size: int | None) -> None:
    """A module that takes 32 pixels alone, beside one that takes any."""
    vit = timm.create_model("test_vit", num_classes=3, img_size=32)
    distiller = OnlineAdversarialDistiller([timm.create_model("test_resnet", num_classes=3), vit], image_size=size)
    assert [model.image_size for model in distiller.group.peers] == [size or 160, 32]
    side = distiller.image_size
    assert distiller.training_step(torch.randn(4, 3, side, side), torch.arange(4) % 3)["cross_entropy/1"] > 0


def test_it_resizes_as_the_data_are() -> None:
    images = torch.rand(2, 3, 12, 12)
    for asked, used in (("bicubic", "bicubic"), ("bilinear", "bilinear"), ("lanczos", "bilinear")):
        expected = F.interpolate(images, (8, 8), mode=used, antialias=True)
        assert torch.equal(InputAdapter(8, interpolation=asked)(images), expected)
