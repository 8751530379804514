from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data, ImageSource, count_classes, open_data, open_evaluation
from feature_gan_kd.data.batch_transforms import CropFlip
from feature_gan_kd.data.decode import channel_statistics
from feature_gan_kd.data.in_memory import MemoryImages
from feature_gan_kd.data.lazy import LazyImages
from feature_gan_kd.data.user_loader import UserLoader
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import encoded, make, plain, random_images


def opened(train: Any = None, evaluation: Any = None, *, size: int = 8, channels: int = 3, **settings: Any) -> Data:
    return open_data(train, evaluation, DistillConfig(**settings), image_size=size, in_chans=channels)


def all_of(source: ImageSource, *, train: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(source.batches(batch_size=7, seed=0, epoch=0, device="cpu", train=train))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_the_bundled_digits() -> None:
    data = opened(channels=1)
    assert (len(data.train), len(data.evaluation)) == (1438, 359)
    assert (data.class_names, data.num_classes) == ([str(digit) for digit in range(10)], 10)
    assert isinstance(data.train, MemoryImages)
    assert data.train.augment == CropFlip(1, flip=False)
    assert data.notes == [
        "split 'train': 1797 images of 10 classes in column 'image', labels in 'label'",
        "no split to evaluate on: 359 of the 1797 images of 'train' are held out",
        "classes: '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'",
        "pixels normalised with mean 0.305, std 0.376: the training images' own",
    ]
    images, _ = all_of(data.train)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    train, held = (torch.bincount(all_of(part)[1]) for part in (data.train, data.evaluation))
    assert (held / (train + held) - 0.2).abs().max() < 0.005
    assert opened(channels=1).fingerprint == data.fingerprint


def test_a_bad_image_that_is_left_out_is_named_with_its_file(tmp_path: Path) -> None:
    for k, image in enumerate(random_images(8)):
        path = tmp_path / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    bad = tmp_path / "cat" / "2.png"
    bad.write_bytes(b"no image")
    assert any(
        note.endswith(f"image 1 of split 'train' ({bad})") for note in opened(tmp_path, skip_bad_images=True).notes
    )


def test_classes_without_an_image_are_named(tmp_path: Path) -> None:
    for k, name in enumerate(["cat", "dog", *"abcdef"]):
        for number, image in enumerate(random_images(3, seed=k)):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            PIL.Image.fromarray(image).save(path)
    assert not any("no image to train on" in note for note in opened(tmp_path).notes)
    notes = opened(tmp_path, max_train_samples=4).notes
    assert "no image to train on for 4 of the 8 classes: 'b', 'c', 'cat', 'd'" in notes


def test_the_columns_of_cifar(parquet: Path) -> None:
    data = opened(parquet)
    assert (len(data.train), len(data.evaluation), data.class_names) == (20, 6, ["cat", "dog"])
    assert data.notes[0].endswith("labels in 'fine_label' (also there: coarse_label; choose with --label-column)")
    expected = torch.from_numpy(np.stack(random_images(20)))
    mean, std = channel_statistics(expected)
    assert data.normalisation == Normalisation(mean, std)
    images, labels = all_of(data.train)
    pixels = images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    assert torch.equal((pixels * 255).round().to(torch.uint8), expected.permute(0, 3, 1, 2))
    assert labels.tolist() == [0, 1] * 10


def test_mean_and_std_may_be_given_and_hold_for_both_parts(parquet: Path) -> None:
    own = opened(parquet)
    given = open_data(
        parquet, None, DistillConfig(), image_size=8, in_chans=3, stated=Normalisation((0.0,) * 3, (0.5,) * 3)
    )
    assert given.normalisation == Normalisation((0, 0, 0), (0.5, 0.5, 0.5))
    assert "pixels, normalised with the given mean 0 0 0, std 0.5 0.5 0.5" in given.notes
    for part in ("train", "evaluation"):
        first, second = (all_of(getattr(data, part))[0] for data in (own, given))
        restored = (
            first * torch.tensor(own.normalisation.std)[:, None, None]
            + torch.tensor(own.normalisation.mean)[:, None, None]
        )
        torch.testing.assert_close(restored, second * 0.5, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("augmentation", "size", "kind", "augment"),
    [
        ("auto", 32, MemoryImages, CropFlip(4, flip=True)),
        ("auto", 96, MemoryImages, CropFlip(12, flip=True)),
        ("auto", 104, LazyImages, None),
        ("crop", 32, MemoryImages, CropFlip(4, flip=False)),
        ("crop-flip", 104, MemoryImages, CropFlip(13, flip=True)),
        ("none", 32, MemoryImages, None),
        ("resized-crop", 32, LazyImages, None),
    ],
)
def test_the_augmentation_and_the_size_decide_where_images_are_kept(
    augmentation: str, size: int, kind: type, augment: CropFlip | None
) -> None:
    data = opened(make(10), size=size, augmentation=augmentation)
    for source in (data.train, data.evaluation):
        assert isinstance(source, kind)
        assert source.augment == augment  # type: ignore[union-attr]
        assert all_of(source, train=True)[0].shape[1:] == (3, size, size)
    assert ("decoded as it is read" in " ".join(data.notes)) == (kind is LazyImages)
    note = f"images resized to {size} x {size} (largest centred square, bicubic)"
    assert data.notes.count(note) == (kind is MemoryImages)


def test_images_that_do_not_fit_in_memory_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    held = opened(make(20, size=11))
    monkeypatch.setattr("feature_gan_kd.data.image_sources.MEMORY_LIMIT", 100)
    read = opened(make(20, size=11))
    assert isinstance(read.train, LazyImages)
    assert read.normalisation == held.normalisation
    for train in (True, False):
        for first, second in zip(all_of(held.train, train=train), all_of(read.train, train=train), strict=True):
            assert torch.equal(first, second)


def test_the_held_out_fifth_is_of_each_class_alike_and_never_trained_on() -> None:
    data = opened(plain([0] * 10 + [1] * 5 + [2] * 2))
    assert torch.bincount(all_of(data.evaluation)[1]).tolist() == [2, 1]
    assert torch.bincount(all_of(data.train)[1]).tolist() == [8, 4, 2]
    train, evaluation = (
        {tuple(image.flatten().tolist()) for image in all_of(part)[0]} for part in (data.train, data.evaluation)
    )
    assert len(train | evaluation) == 17
    assert torch.equal(all_of(opened(plain([0] * 10 + [1] * 5 + [2] * 2)).evaluation)[0], all_of(data.evaluation)[0])


def test_limits_draw_of_each_class_the_same_number(parquet: Path) -> None:
    limits = {"max_train_samples": 6, "max_eval_samples": 4}
    data = opened(parquet, **limits)
    assert [torch.bincount(all_of(part)[1]).tolist() for part in (data.train, data.evaluation)] == [[3, 3], [2, 2]]
    assert opened(parquet, **limits).fingerprint == data.fingerprint
    other = opened(parquet, **limits, seed=1)
    assert opened(parquet).fingerprint != data.fingerprint != other.fingerprint
    raw = [part.evaluation.pixels for part in (data, other) if isinstance(part.evaluation, MemoryImages)]
    assert torch.equal(*raw)
    everything = opened(parquet, max_train_samples=999, max_eval_samples=999)
    assert (len(everything.train), len(everything.evaluation)) == (20, 6)


class Lying(Dataset[tuple[Any, int]]):
    """Pictures of which the camera wrote that it was held upright."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = PIL.Image.fromarray(np.rot90(random_images(4)[index]))
        image.getexif()[PIL.ExifTags.Base.Orientation] = 6
        return image, index % 2


def test_pictures_of_a_torch_data_set_are_turned_upright() -> None:
    data = opened(Lying(), Lying(), augmentation="none")
    assert data.normalisation is not None
    mean, std = (torch.tensor(one)[:, None, None] for one in (data.normalisation.mean, data.normalisation.std))
    pixels = all_of(data.evaluation)[0] * std + mean
    expected = torch.from_numpy(np.stack(random_images(4))).permute(0, 3, 1, 2)
    assert torch.equal((pixels * 255).round().to(torch.uint8), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [2, 4])
def test_tensors_may_have_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    pixels = (torch.rand(8, channels, 8, 8) * 255).to(dtype)
    tensors = TensorDataset(pixels, torch.arange(8) % 2)
    for data in (tensors, DataLoader(tensors, batch_size=4)):
        images, _ = all_of(opened(data, data, channels=channels).evaluation)
        assert images.shape == (8, channels, 8, 8)
    with pytest.raises(
        UserError, match=r"^data: .* are decoded to 1 or 3 channels, the models take 4 \(in_chans\): give a torch"
    ):
        opened(Lying(), Lying(), channels=4)


def test_a_number_of_classes_that_the_user_gave_counts_more_than_the_attribute_of_a_torch_data_set() -> None:
    def with_classes(*labels: int) -> Any:
        data = TensorDataset(torch.rand(len(labels), 3, 8, 8), torch.tensor(labels))
        data.classes = ["a", "b", "c", "d"]  # type: ignore[attr-defined]
        return data

    def opened_for(data: Any, num_classes: int, *, given: bool = True) -> Data:
        return open_data(
            data,
            data,
            DistillConfig(),
            image_size=8,
            in_chans=3,
            num_classes=num_classes,
            num_classes_given=given,
        )

    data = opened_for(with_classes(0, 1, 0, 1), 2)
    assert (data.num_classes, data.class_names) == (None, None)
    assert "split 'train': its 4 class names are not used, since num_classes is 2" in data.notes
    with pytest.raises(UserError, match=r"^labels: .* has the label 3, expected 0 to 1"):
        all_of(opened_for(with_classes(0, 1, 0, 3), 2).train)
    assert opened_for(with_classes(0, 1, 0, 3), 4).class_names == ["a", "b", "c", "d"]
    assert opened_for(with_classes(0, 1, 0, 1), 2, given=False).num_classes == 4
    source, _ = open_evaluation(
        with_classes(0, 1),
        DistillConfig(),
        image_size=8,
        in_chans=3,
        normalisation=Normalisation((0.0,) * 3, (1.0,) * 3),
        num_classes=2,
        num_classes_given=True,
    )
    assert len(source) == 2


def test_limits_of_a_sorted_folder_leave_no_class_out(tmp_path: Path) -> None:
    for k, name in enumerate("abcdefgh"):
        for number, image in enumerate(random_images(12, seed=k)):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            PIL.Image.fromarray(image).save(path)
    data = opened(tmp_path, max_train_samples=16, max_eval_samples=8)
    assert torch.bincount(all_of(data.train)[1]).tolist() == [2] * 8
    assert torch.bincount(all_of(data.evaluation)[1]).tolist() == [1] * 8


def test_limits_draw_from_a_torch_data_set_by_seed() -> None:
    data = TensorDataset(torch.rand(40, 3, 8, 8), torch.arange(40) // 4)
    draws = [all_of(opened(data, data, max_train_samples=8, max_eval_samples=8, seed=k).train)[1] for k in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert len(draws[0].unique()) > 2


class Pictures(Dataset[tuple[Any, int]]):
    """As torchvision's data sets: PIL images, and the names of the classes."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return PIL.Image.fromarray(random_images(10, size=9)[index]), index % 2


def test_a_torch_data_set_of_pictures() -> None:
    data = opened(Pictures())
    assert (data.class_names, data.num_classes) == (["cat", "dog"], 2)
    assert (len(data.train), len(data.evaluation)) == (8, 2)
    assert isinstance(data.train, LazyImages)
    assert data.train.augment == CropFlip(1, flip=True)
    assert all_of(data.train, train=True)[0].shape == (7, 3, 8, 8)  # 8 images in sevens leave a single one
    assert opened(Subset(Pictures(), range(5))).class_names == ["cat", "dog"]
    mixed = opened(Pictures(), make(4))
    assert all_of(mixed.evaluation)[1].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["table", "stream", "torch data set", "loader of it"])
def test_data_of_some_of_the_classes_in_another_order(kind: str) -> None:
    """The models' rows are those of the names, whatever number the data give them; also with a given num_classes."""
    table = make(10, names=("dog", "cat"))
    tensors = TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10) % 2)
    tensors.classes = ["dog", "cat"]
    data = {
        "table": table,
        "stream": table.to_iterable_dataset(),
        "torch data set": tensors,
        "loader of it": DataLoader(tensors, batch_size=5),
    }[kind]
    source, notes = open_evaluation(
        data,
        DistillConfig(max_eval_samples=10 if kind == "stream" else None),
        normalisation=Normalisation((0.0,) * 3, (1.0,) * 3),
        image_size=8,
        in_chans=3,
        class_names=["bee", "cat", "dog"],
        num_classes=3,
        num_classes_given=True,
    )
    assert all_of(source)[1].tolist() == [2, 1] * 5
    assert any("2 of the 3 classes of the models, matched by name; it has no 'bee'" in note for note in notes)


TENSORS = TensorDataset(torch.randn(10, 3, 8, 8), torch.arange(10) % 2)


def test_a_torch_data_set_of_tensors() -> None:
    data = opened(TENSORS)
    assert (data.class_names, data.num_classes) == (None, None)
    assert data.normalisation is None
    assert any("given to every model as they are" in note for note in data.notes)
    assert data.train.augment is None  # type: ignore[attr-defined]


def test_a_loader() -> None:
    loader = DataLoader(TENSORS, batch_size=4)
    data = opened(loader, loader)
    assert isinstance(data.train, UserLoader)
    assert data.train.steps(1000) == 3
    assert data.notes[0] == "split 'train': batches as the DataLoader gives them; batch_size is not used"
    assert all_of(data.evaluation)[1].tolist() == TENSORS.tensors[1].tolist()


def test_the_channels_last_setting_is_kept() -> None:
    for channels_last in (True, False):
        images, _ = next(
            iter(
                opened(make(10), channels_last=channels_last).train.batches(
                    batch_size=4, seed=0, epoch=0, device="cpu", train=True
                )
            )
        )
        assert images.is_contiguous() != channels_last


def test_no_evaluation_of_images_that_were_trained_on(parquet: Path) -> None:
    form: dict[str, Any] = {"normalisation": Normalisation((0.0,) * 3, (1.0,) * 3), "image_size": 8, "in_chans": 3}
    source, notes = open_evaluation(parquet, DistillConfig(), class_names=["cat", "dog"], num_classes=2, **form)
    assert (len(source), len(notes)) == (6, 1)
    source, _ = open_evaluation(None, DistillConfig(), num_classes=10, **form)
    data = opened(None, size=8)
    assert torch.equal(all_of(source)[1], all_of(data.evaluation)[1])
    with pytest.raises(UserError, match="split 'test' has 2 classes, expected 3 as in the models"):
        open_evaluation(parquet, DistillConfig(), num_classes=3, **form)


def _broken(rows: Iterable[int] = (7,)) -> datasets.Dataset:
    values = [encoded(image) for image in random_images(10)]
    for row in rows:
        values[row] = {"bytes": values[row]["bytes"][:50], "path": None}
    return datasets.Dataset.from_dict({"image": values, "label": [0, 1] * 5}).cast_column("image", datasets.Image())


def test_bad_images_are_left_out_and_counted() -> None:
    data, clean = opened(_broken(), make(4), skip_bad_images=True), opened(plain([0, 1] * 5), make(4))
    assert (len(data.train), len(data.evaluation), data.skipped_images, clean.skipped_images) == (9, 4, 1, 0)
    note = "images that cannot be decoded: 1, left out; the first is image 7 of split 'train'"
    assert note in data.notes
    kept = [k for k in range(10) if k != 7]
    assert torch.equal(all_of(data.train)[1], all_of(clean.train)[1][kept])
    assert torch.equal(data.train.pixels, clean.train.pixels[kept])  # type: ignore[attr-defined]


def test_what_is_left_must_do() -> None:
    nothing = _broken(range(4))
    with pytest.raises(UserError, match=r"^images: not one image of split 'evaluation' can be decoded: check the data"):
        opened(make(4), nothing.select(range(4)), skip_bad_images=True)
    with pytest.raises(UserError, match=r"^labels: all 2 images to train on are of class 0, at least 2 classes"):
        opened(_broken([1, 3]).select(range(4)), make(4), skip_bad_images=True)
    with pytest.raises(UserError, match=r"^data: split 'train' has 1 image to train on, at least 2 are needed"):
        opened(_broken([1, 2, 3]).select(range(4)), make(4), skip_bad_images=True)


def test_classes_are_counted_before_anything_is_built() -> None:
    for data in (plain([0, 0, 0]), plain(["a", "a"]), make(4, labels=[1, 1, 1, 1])):
        with pytest.raises(
            UserError, match=r"^labels: all \d images to train on are of class (0|a|dog), at least 2 classes"
        ):
            count_classes(data, DistillConfig())
    assert count_classes(make(4), DistillConfig()) == 2


BAD = {
    "same split": (
        datasets.DatasetDict(a=make(4), b=make(4)),
        None,
        {"train_split": "a", "eval_split": "a"},
        "^eval_split: 'a' is the split that is trained on: name another",
    ),
    "loader with bad images": (
        DataLoader(TENSORS),
        TENSORS,
        {"skip_bad_images": True},
        "^skip_bad_images: a DataLoader is used as it is",
    ),
    "channels": (
        make(4),
        None,
        {"channels": 4},
        r"^data: the images of split 'train' are decoded to 1 or 3 channels, the models take 4 \(in_chans\): give",
    ),
    "one class": (plain([3] * 10), None, {}, "^labels: all 8 images to train on are of class 3, at least 2 classes"),
    "one image": (plain([0]), plain([0]), {}, "^data: split 'train' has 1 image to train on, at least 2 are needed"),
    "too few": (plain([0, 1]), None, {}, "^data: split 'train' has 2 images, too few to hold out a fifth"),
    "empty": (plain([]), None, {"image_column": "image"}, "^data: split 'train' is empty"),
    "empty torch": (Subset(Pictures(), []), None, {}, "^data: split 'train' is empty"),
    "empty evaluation": (make(4), make(4).select([]), {}, "^eval_data: split 'evaluation' is empty"),
    "empty torch evaluation": (make(4), Subset(Pictures(), []), {}, "^eval_data: split 'evaluation' is empty"),
    "evaluation without length": (make(4), Dataset(), {}, "^eval_data: the Dataset of split 'evaluation' has no len"),
    "texts to train on, numbers to evaluate on": (
        plain(["dog", "cat"] * 4),
        plain([0, 1]),
        {},
        "^labels: split 'evaluation' has plain numbers, and it is not known which of the classes of split 'train'",
    ),
    "texts to train on, a torch data set to evaluate on": (
        plain(["dog", "cat"] * 4),
        TENSORS,
        {},
        "^labels: split 'evaluation' has plain numbers, and it is not known which of the classes of split 'train'",
    ),
    "evaluation loader that drops images": (
        DataLoader(TENSORS, 4, drop_last=True),
        DataLoader(TENSORS, 4, drop_last=True),
        {},
        "^eval_data: the DataLoader of split 'evaluation' leaves out the last 2 of 10 images",
    ),
    "empty evaluation loader": (make(4), DataLoader(TENSORS, 99, drop_last=True), {}, "^eval_data: the DataLoader of"),
    "undecodable": (_broken(), None, {}, r"^images: image 7 of split 'train' cannot be decoded \("),
    "classes": (
        make(4),
        make(4, names="abc"),
        {},
        r"^labels: class 'a' of split 'evaluation' is not among the 2 classes of split 'train' \('cat', 'dog'\): leave",
    ),
    "torch classes": (
        make(4, names="abc"),
        Pictures(),
        {},
        "^labels: class 'cat' of split 'evaluation' is not among the 3 classes of split 'train'",
    ),
    "loader": (
        DataLoader(TENSORS),
        None,
        {},
        "^eval_data: a DataLoader has no other split: give images to evaluate on",
    ),
    "limit": (DataLoader(TENSORS), TENSORS, {"max_train_samples": 3}, "^max_train_samples: a DataLoader is used as it"),
    "no length": (Dataset(), None, {}, "^data: the Dataset of split 'train' has no length"),
    "no images": (
        datasets.Dataset.from_dict({"label": [0, 1]}),
        None,
        {},
        "^image_column: split 'train' has no column",
    ),
    "column": (make(4), None, {"label_column": "x"}, "^label_column: split 'train' has no column 'x'; its columns are"),
}


@pytest.mark.parametrize(("train", "evaluation", "options", "message"), BAD.values(), ids=BAD)
def test_bad_data_are_one_line(train: Any, evaluation: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(train, evaluation, **options)
    assert "\n" not in str(caught.value)


CIFAR = os.environ.get("FEATURE_GAN_KD_CIFAR100", "")


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR, reason="FEATURE_GAN_KD_CIFAR100 names no folder")
def test_the_real_cifar_100() -> None:
    data = opened(CIFAR, size=32)
    assert (len(data.train), len(data.evaluation), data.num_classes) == (50_000, 10_000, 100)
    assert "column 'img', labels in 'fine_label' (also there: coarse_label;" in data.notes[0]
    assert data.normalisation.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=1e-4)
    assert data.normalisation.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=1e-4)
    assert torch.bincount(all_of(data.evaluation)[1]).tolist() == [100] * 100


def test_tensors_that_are_no_squares_are_refused() -> None:
    data = TensorDataset(torch.rand(4, 3, 8, 16), torch.arange(4) % 2)
    with pytest.raises(UserError, match=r"^images: image \d of split 'train' has 8x16 pixels, expected squares: crop"):
        opened(data)
