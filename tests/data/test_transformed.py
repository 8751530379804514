from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data, open_data
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import make

VALUES = [40 * k for k in range(6)]
ROWS = {"image": [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in VALUES], "label": [0, 1] * 3}


def invert(batch: dict[str, Any]) -> dict[str, Any]:
    batch["image"] = [Image.fromarray(255 - np.asarray(image)) for image in batch["image"]]
    return batch


def ready(batch: dict[str, Any]) -> dict[str, Any]:
    """As for transformers' models."""
    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in batch["image"]]
    return {"pixel_values": images, "labels": batch["label"], "image": batch["image"], "weight": [1] * len(images)}


def opened(data: Any, **settings: Any) -> Data:
    config = DistillConfig(augmentation="none", **settings)
    stated = Normalisation((0.0,) * 3, (1.0,) * 3)
    return open_data(data, data, config, image_size=8, in_chans=3, stated=stated, num_classes=2)


def values_of(data: Data) -> list[int]:
    batches = data.evaluation.batches(batch_size=4, seed=0, epoch=0, device="cpu", train=False)
    return [round(float(image.mean()) * 255) for images, _ in batches for image in images]


@pytest.mark.parametrize("transform", [invert, ready])
def test_the_users_transform_is_called(transform: Any) -> None:
    data = opened(datasets.Dataset.from_dict(ROWS).with_transform(transform))
    assert values_of(data) == [255 - value if transform is invert else value for value in VALUES]
    image, label = ("image", "label") if transform is invert else ("pixel_values", "labels")
    assert (
        data.notes[0]
        == f"split 'train': images as the data set's transform gives them, in {image!r}, labels in {label!r}"
    )


def test_the_transform_is_called_in_each_epoch_with_numbers_of_its_own() -> None:
    def noise(batch: dict[str, Any]) -> dict[str, Any]:
        batch["image"] = [torch.rand(3, 8, 8) for _ in batch["image"]]
        return batch

    data = opened(datasets.Dataset.from_dict(ROWS).with_transform(noise))

    def epoch_of(epoch: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        options = {"batch_size": 6, "seed": 0, "rank": rank, "world_size": world_size}
        ((images, _),) = data.train.batches(epoch=epoch, device="cpu", train=True, **options)
        return images

    assert torch.equal(epoch_of(0), epoch_of(0))
    assert not torch.equal(epoch_of(0), epoch_of(1))
    assert torch.equal(torch.cat([epoch_of(0, rank, 2) for rank in (0, 1)]), epoch_of(0))


def test_class_names_and_columns_of_the_data_are_kept() -> None:
    data = make(6).with_transform(lambda batch: {name: batch[name] for name in ("fine_label", "coarse_label", "img")})
    found = opened(data)
    assert (found.class_names, found.num_classes) == (["cat", "dog"], 2)
    assert opened(data, label_column="coarse_label", image_column="img").class_names == ["all", "none"]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda batch: {"x": batch["label"]}, "image_column: split 'train' has no column of images; its columns are x"),
        (lambda batch: {"image": batch["image"]}, r"label_column: split 'train' has images alone \(image\)"),
        (lambda batch: 1 / 0, r"data: the transform of split 'train' fails on its first row \(division by zero\)"),
    ],
)
def test_a_transform_that_gives_no_images_or_labels_is_refused(transform: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        opened(datasets.Dataset.from_dict(ROWS).with_transform(transform))
    assert "\n" not in str(caught.value)


NAMED = datasets.Dataset.from_dict(ROWS).cast_column("label", datasets.ClassLabel(names=["dark", "bright"]))


def test_names_are_not_used_where_the_transform_changes_labels() -> None:
    data = opened(NAMED.with_transform(lambda batch: {**batch, "label": [1 - label for label in batch["label"]]}))
    assert (data.class_names, data.num_classes) == (None, None)
    assert data.notes[0] == "split 'train': its class names are not used, because its transform changes the labels"


def test_a_transform_that_changes_some_labels_is_refused_when_it_does() -> None:
    def by_image(batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch["image"], batch["label"], strict=True)
        return {**batch, "label": [1 if np.asarray(image).max() == 160 else label for image, label in pairs]}

    with pytest.raises(UserError, match=r"^labels: the transform of split 'evaluation' changes the label 0 of image 4"):
        opened(NAMED.with_transform(by_image))


def test_labels_of_numpy_and_of_other_types() -> None:
    data = opened(NAMED.with_transform(lambda batch: {**batch, "label": [np.int64(k) for k in batch["label"]]}))
    assert (values_of(data), data.class_names) == (VALUES, ["dark", "bright"])
    for label, kind in (("dark", "str"), (0.5, "float"), (None, "NoneType")):
        with pytest.raises(UserError, match=rf"gives no whole number .* label \({kind}\): give class"):
            opened(NAMED.with_transform(lambda batch, one=label: {**batch, "label": [one] * len(batch["label"])}))
