"""A published model states the crop that it was evaluated with: plain timm, with its own transform, finds the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from feature_gan_kd import OnlineAdversarialDistiller


def framed(side: int) -> list[Image.Image]:
    """Noise in a frame that is white for every second image: a smaller crop leaves the frame out."""
    draws, images = np.random.default_rng(0), []
    for k in range(8):
        pixels = draws.integers(100, 156, (side, side, 3), dtype=np.uint8)
        width = side // 20
        frame = np.ones((side, side), dtype=bool)
        frame[width:-width, width:-width] = False
        pixels[frame] = 255 * (k % 2)
        images.append(Image.fromarray(pixels))
    return images


def by_timm(folder: Path, images: list[Image.Image], crop_pct: float | None = None) -> tuple[float, float]:
    """The crop that a published model states, and the cross-entropy that plain timm finds, with that or another."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model=model)
    changed = config if crop_pct is None else {**config, "crop_pct": crop_pct}
    transform = timm.data.create_transform(**changed)
    with torch.no_grad():
        logits = model(torch.stack([transform(image) for image in images]))
    labels = torch.arange(len(images)) % 2
    return config["crop_pct"], float(torch.nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("settings", "side", "expected"),
    [
        ({"image_size": 32, "augmentation": "resized-crop"}, 48, 0.875),
        ({"image_size": 32, "augmentation": "crop"}, 48, 1.0),
        ({"image_size": 112, "augmentation": "crop-flip"}, 120, 1.0),
        ({"image_size": 112}, 120, 0.875),
        ({"image_size": 32, "crop_pct": 0.9}, 48, 0.9),
    ],
)
def test_plain_timm_finds_what_the_evaluation_found(
    settings: dict[str, Any], side: int, expected: float, tmp_path: Path
) -> None:
    check(["cifar_resnet14"] * 2, framed(side), expected, tmp_path, **settings)


def test_a_small_model_beside_a_larger_one_is_evaluated_on_the_larger_ones_crop(tmp_path: Path) -> None:
    """Images of 160 pixels are cropped; the model of 32 pixels gets them smaller, and cropped as well."""
    check(["cifar_resnet14", "test_vit"], framed(200), 0.875, tmp_path)


def check(models: list[str], images: list[Image.Image], expected: float, place: Path, **settings: Any) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": images, "label": [k % 2 for k in range(len(images))]}
    data = datasets.Dataset.from_dict(columns, features=features)
    distiller = OnlineAdversarialDistiller(models, num_classes=2, lr=0.05, seed=0, **settings)
    distiller.fit(data, data, epochs=1, batch_size=4, progress=False)
    found = distiller.evaluate(data)["cross_entropy"]
    for k, folder in enumerate(distiller.save_pretrained(place)):
        stated, loss = by_timm(folder, images)
        assert stated == expected
        # timm resizes once; a model that is smaller than the images of the run gets them resized twice.
        near = 1e-4 if distiller.group.peers[k].image_size == distiller.group.image_size else 0.02
        assert loss == pytest.approx(found[k], abs=near)
        _, other = by_timm(folder, images, 1.0 if expected < 1 else 0.875)
        assert abs(other - found[k]) > 2 * near


@pytest.mark.parametrize(("stated", "expected"), [(None, 1.0), (0.875, 0.875)])
@pytest.mark.parametrize("loads", [False, True])
def test_tensors_were_not_cropped_unless_the_user_says_so(
    loads: bool, stated: float | None, expected: float, tmp_path: Path
) -> None:
    """At 112 pixels photographs would be: nothing here resized or cut these, and their card names no augmentation."""
    pixels = torch.from_numpy(np.stack([np.asarray(one.resize((112, 112))) for one in framed(112)[:4]]))
    images = TensorDataset(pixels.permute(0, 3, 1, 2).contiguous(), torch.arange(4) % 2)
    data: Any = DataLoader(images, 4) if loads else images
    distiller = OnlineAdversarialDistiller(
        ["cifar_resnet14"] * 2, num_classes=2, image_size=112, recipe="scratch", method="logit", crop_pct=stated
    )
    distiller.fit(data, data, epochs=1, batch_size=4, output_dir=tmp_path / "run", progress=False)
    for folder in distiller.save_pretrained(tmp_path / "published"):
        assert by_timm(folder, framed(112)[:4])[0] == expected
        card = (folder / "README.md").read_text()
        assert "rand-m9" not in card
        assert "| smoothing | 0.1 |" in card
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    again = OnlineAdversarialDistiller.from_checkpoint(checkpoint)
    (first, _) = again.save_pretrained(tmp_path / "again")
    assert by_timm(first, framed(112)[:4])[0] == expected
