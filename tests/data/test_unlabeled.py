"""Images without labels: which are found, what is evaluated, what is said and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data, ImageSource, count_classes, open_data, open_evaluation
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import encoded, make, plain, random_images

MIXED = [0, 1, None, 0, 1, -1, 0, 1, None, None] * 3


def opened(train: Any = None, evaluation: Any = None, unlabeled: Any = None, **settings: Any) -> Data:
    config = DistillConfig(**settings)
    return open_data(train, evaluation, config, unlabeled_data=unlabeled, image_size=8, in_chans=3)


def labels_of(source: ImageSource | None, *, train: bool = False, **options: int) -> list[int]:
    assert source is not None
    arguments: dict[str, Any] = {"batch_size": 6, "seed": 0, "epoch": 0, **options}
    return [label for _, own in source.batches(device="cpu", train=train, **arguments) for label in own.tolist()]


def pictures(root: Path, *files: str, seed: int = 0) -> Path:
    for name, image in zip(files, random_images(len(files), seed=seed), strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(root / name)
    return root


def alone(count: int, seed: int = 0) -> datasets.Dataset:
    """Images without a column of labels."""
    images = [encoded(image) for image in random_images(count, seed=seed)]
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())


class Items(Dataset[Any]):
    """A torch data set of images and these labels; no pair where the labels are None."""

    def __init__(self, labels: list[Any] | None, count: int = 20) -> None:
        self.given = labels
        self.images = random_images(count if labels is None else len(labels))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = PIL.Image.fromarray(self.images[index])
        return image if self.given is None else (image, self.given[index])


@pytest.mark.parametrize("labels", [True, False])
def test_images_without_a_label_are_counted_and_never_held_out(labels: bool) -> None:
    data = opened(plain(MIXED), labels=labels)
    assert data.train_labels is not None
    assert (data.unlabeled_images, int((data.train_labels < 0).sum())) == (12, 12)
    assert (len(data.train), sorted(labels_of(data.evaluation)), data.num_classes) == (26, [0, 0, 1, 1], 2)
    assert "no split to evaluate on: 4 of the 18 labelled images of 'train' are held out" in data.notes
    said = "12 of 26 training images have no label: they take part in every term but cross-entropy"
    assert (said in data.notes) == labels
    assert ("labels are not learned from: the models learn from images alone" in data.notes) != labels
    assert data.description()["unlabeled_images"] == 12
    assert sorted(labels_of(data.train, train=True)).count(-1) == 12


@pytest.mark.parametrize(
    "labels",
    [[0, 1, None], [0, 1, -1], ["cat", "dog", None], [10, 40, None], [10, 40, -1]],
    ids=["numbers", "-1", "texts", "names that are numbers", "-1 beside such names"],
)
def test_every_kind_of_label_column(labels: list[Any]) -> None:
    data = opened(plain(labels * 10))
    assert (data.num_classes, data.unlabeled_images, len(data.train)) == (2, 10, 26)
    declared = opened(make(30, labels=[0, 1, -1] * 10))
    assert torch.equal(declared.train_labels.unique(), torch.tensor([-1, 0, 1]))  # type: ignore[union-attr]


@pytest.mark.parametrize("labels", [[0, 1, None, -1, float("nan")] * 4, [0, 1, -1, -1, -1] * 4])
def test_a_torch_data_set_in_part_without_labels(labels: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    data = opened(Items(labels), Items(labels[:10]))
    assert data.unlabeled_images is None
    assert sorted(set(labels_of(data.train, train=True))) == [-1, 0, 1]
    assert sorted(labels_of(data.evaluation)) == [0, 0, 1, 1]
    assert capsys.readouterr().err == "split 'evaluation': 6 images without a label, left out of the evaluation\n"
    assert sorted(labels_of(data.evaluation)) == [0, 0, 1, 1]
    assert capsys.readouterr().err == ""
    shares = [labels_of(data.evaluation, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(label for share in shares for label in share) == [0, 0, 1, 1]


def test_the_held_out_fifth_of_a_torch_data_set_that_lists_its_labels() -> None:
    data = Items([0, 1, -1, -1, -1] * 10)
    data.targets = data.given  # type: ignore[attr-defined]
    found = opened(data)
    assert "no split to evaluate on: 4 of the 20 labelled images of 'train' are held out" in found.notes
    assert len(labels_of(found.evaluation)) == 4
    data.targets = [-1 if label == 0 else 1 for label in data.given or []]  # type: ignore[attr-defined]
    assert "no split to evaluate on: 10 of the 50 images of 'train' are held out" in opened(data).notes


@pytest.mark.parametrize(
    "train",
    [
        Items(None),
        TensorDataset(torch.rand(20, 3, 8, 8)),
        DataLoader(TensorDataset(torch.rand(20, 3, 8, 8)), 4),
        DataLoader(torch.rand(20, 3, 8, 8), 4),  # type: ignore[arg-type]
        alone(20),
        alone(20).to_iterable_dataset(),
        Items([None] * 20),
        plain([-1] * 20),
        plain([None] * 20),
    ],
    ids=["pictures", "tensors", "loader", "loader of tensors", "table", "stream", "None", "-1", "no column"],
)
def test_images_alone(train: Any) -> None:
    data = opened(train, labels=False, max_train_samples=20 if hasattr(train, "n_shards") else None)
    assert (data.evaluation, data.class_names, data.num_classes) == (None, None, None)
    assert (data.evaluation_fingerprint, data.description()["evaluation_images"], data.crop_pct) == ("", 0, 1.0)
    assert labels_of(data.train, train=True) == [-1] * len(labels_of(data.train, train=True))
    assert any("nothing is evaluated" in note for note in data.notes)
    assert len(data.train) == 20
    assert opened(train, labels=False).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    "files",
    [
        ("1.png", "2.png", "3.png"),
        ("1.png", "2020/2.png", "2021/3.png"),
        ("a/1.png", "a/b/2.png", "a/b/c/3.png"),
        ("1.png", "2.png", "test/3.png"),
    ],
    ids=["at the top", "mixed", "nested", "named as a split"],
)
def test_folders_that_are_no_classes(files: tuple[str, ...], tmp_path: Path) -> None:
    data = opened(pictures(tmp_path, *files), labels=False)
    assert (labels_of(data.train), data.evaluation, data.class_names) == ([-1] * 3, None, None)


def test_class_folders_are_evaluated_on_and_not_learned_from(tmp_path: Path) -> None:
    folder = pictures(tmp_path, *(f"{name}/{k}.png" for name in ("Cat", "cat", "dog") for k in range(5)))
    data = opened(folder, labels=False)
    assert (data.class_names, sorted(labels_of(data.evaluation)), len(data.train)) == (
        ["Cat", "cat", "dog"],
        [0, 1, 2],
        12,
    )
    assert "labels are not learned from: the models learn from images alone" in data.notes
    assert count_classes(folder, DistillConfig(labels=False)) is None


def test_unlabelled_photos_and_a_labelled_test_split(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"train/{k}.png" for k in range(4)), *(f"test/{name}/1.png" for name in "ab"))
    data = opened(tmp_path, labels=False)
    assert (labels_of(data.train), labels_of(data.evaluation)) == ([-1] * 4, [0, 1])
    assert (data.class_names, data.num_classes) == (["a", "b"], 2)
    assert labels_of(opened(alone(4), plain(["x", "y"]), labels=False).evaluation) == [0, 1]
    assert labels_of(opened(Items(None), Items([0, 1]), labels=False).evaluation) == [0, 1]


def test_a_single_class_is_enough_without_labels() -> None:
    data = opened(plain([0] * 10), labels=False)
    assert (labels_of(data.evaluation), data.num_classes) == ([0, 0], 1)


def test_a_split_without_labels_is_passed_over() -> None:
    splits = datasets.DatasetDict(train=make(8), test=make(4, labels=[-1] * 4), validation=make(2, seed=1))
    data = opened(splits)
    assert labels_of(data.evaluation) == [0, 1]
    assert "split 'test': no image has a label, so it is not evaluated on" in data.notes
    del splits["validation"]
    assert "no split to evaluate on: 2 of the 8 images of 'train' are held out" in opened(splits).notes
    form: dict[str, Any] = {"image_size": 8, "in_chans": 3, "normalisation": Normalisation((0.0,) * 3, (1.0,) * 3)}
    source, _ = open_evaluation(splits, DistillConfig(), trained_on=True, **form)
    assert labels_of(source) == labels_of(opened(splits).evaluation)
    with pytest.raises(UserError, match=r"^eval_split: no image of split 'test' has a label"):
        opened(splits, eval_split="test")


def test_images_without_a_label_are_left_out_of_an_evaluation() -> None:
    data = opened(make(8), make(6, labels=[0, -1, 1, -1, 0, 1]))
    assert labels_of(data.evaluation) == [0, 1, 0, 1]
    assert "split 'evaluation': 2 of 6 images have no label: they are not evaluated on" in data.notes
    loader = DataLoader(TensorDataset(torch.rand(6, 3, 8, 8), torch.tensor([0, -1, 1, -1, -1, -1])), 2)
    assert labels_of(opened(loader, loader).evaluation) == [0, 1]
    stream = plain([0, None, 1, None]).to_iterable_dataset()
    assert labels_of(opened(stream, stream).evaluation) == [0, 1]


@pytest.mark.parametrize("kind", ["table", "stream", "torch data set", "loader of it", "texts", "numbers"])
@pytest.mark.parametrize("labels", [True, False])
def test_some_of_the_classes_by_name_beside_missing_labels(labels: bool, kind: str) -> None:
    """A missing label stays one: it is not the last of the classes, which -1 would be in a list."""
    train, table = make(9, names=("bee", "cat", "dog")), make(4, names=("dog", "cat"), labels=[0, -1, 1, None])
    tensors = TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, -1, 1, -1]))
    tensors.classes = ["dog", "cat"]  # type: ignore[attr-defined]
    evaluation = {
        "table": table,
        "stream": table.to_iterable_dataset(),
        "torch data set": tensors,
        "loader of it": DataLoader(tensors, 2),
        "texts": plain(["dog", None, "cat"]),
        "numbers": plain([40, None, 20, -1]),
    }[kind]
    if kind in ("torch data set", "loader of it"):
        train = TensorDataset(torch.rand(9, 3, 8, 8), torch.arange(9) % 3)
        train.classes = ["bee", "cat", "dog"]  # type: ignore[attr-defined]
    elif kind in ("texts", "numbers"):
        train = plain({"texts": ["bee", "cat", "dog"], "numbers": [10, 20, 40]}[kind] * 3)
    data = opened(train, evaluation, labels=labels, max_eval_samples=4 if kind == "stream" else None)
    assert labels_of(data.evaluation) == [2, 1]
    assert any("matched by name; it has no 'bee'" in note for note in data.notes) == (kind not in ("texts", "numbers"))


@pytest.mark.parametrize("labels", [True, False])
def test_a_split_without_labels_is_passed_over_whatever_its_classes(labels: bool) -> None:
    found = datasets.DatasetDict(train=make(8), test=make(4, names=["none"], labels=[-1] * 4), validation=make(2))
    assert labels_of(opened(found, labels=labels).evaluation) == [0, 1]
    found = datasets.DatasetDict(train=plain(["cat", "dog"] * 4), test=plain([-1, -1]), validation=plain(["dog"]))
    assert labels_of(opened(found, labels=labels).evaluation) == [1]


def test_a_stream_in_part_without_labels() -> None:
    data = opened(plain([0, None, 1, -1] * 3).to_iterable_dataset(), plain([0, 1]))
    assert sorted(labels_of(data.train, train=True)) == [-1] * 6 + [0] * 3 + [1] * 3


# unlabeled_data.


def test_unlabelled_data_are_joined_to_the_training_images(tmp_path: Path) -> None:
    train, photos = make(10), pictures(tmp_path, "1.png", "a/2.png", "train/3.png", seed=5)
    plain_data, data = opened(train), opened(train, unlabeled=photos)
    assert (len(data.train), len(plain_data.train), data.unlabeled_images) == (11, 8, 3)
    assert labels_of(data.evaluation) == labels_of(plain_data.evaluation)
    assert data.evaluation_fingerprint == plain_data.evaluation_fingerprint
    assert labels_of(data.train)[:8] == labels_of(plain_data.train)
    pixels = data.train.pixels[8:].numpy()  # type: ignore[attr-defined]
    assert {image.tobytes() for image in pixels} == {image.tobytes() for image in random_images(3, seed=5)}
    assert "unlabeled_data: 3 images of split 'train' in column 'image'" in data.notes
    assert data.fingerprint not in (plain_data.fingerprint, opened(train, unlabeled=alone(3)).fingerprint)
    assert opened(train, unlabeled=photos).fingerprint == data.fingerprint


def test_an_image_is_labelled_unlabelled_or_evaluated_on(tmp_path: Path) -> None:
    """Also where the unlabelled images are a whole folder, labelled ones of which a fifth is held out among them."""
    names = [f"labelled/{kind}/{k}.png" for kind in ("cat", "dog") for k in range(10)]
    everything = pictures(tmp_path / "photos", *names, "1.png", "2.png", "3.png")
    folder = str(everything / "labelled")
    data = opened(folder, unlabeled=str(everything))
    assert (len(data.train), data.unlabeled_images, len(data.evaluation or ())) == (19, 3, 4)
    assert "unlabeled_data: 4 images are evaluated on, and left out" in data.notes
    assert "unlabeled_data: 16 images are in the training data, too, and left out" in data.notes
    learned = {image.tobytes() for image in data.train.pixels.numpy()}  # type: ignore[attr-defined]
    evaluated = {image.tobytes() for image in data.evaluation.pixels.numpy()}  # type: ignore[union-attr]
    assert not learned & evaluated
    with pytest.raises(UserError, match=r"^unlabeled_data: all its images are in the training data, too: give others"):
        opened(folder, unlabeled=folder)
    with pytest.raises(UserError, match=r"^unlabeled_data: all its images are evaluated on"):
        opened(make(10), folder, unlabeled=folder)


def test_labels_of_unlabelled_data_are_not_read() -> None:
    data = opened(make(10), unlabeled=plain(["x", "y", "", "Y"]))
    assert (data.unlabeled_images, data.class_names) == (4, ["cat", "dog"])
    said = "unlabeled_data: 4 images of split 'train' in column 'image', whose labels in 'label' are not read"
    assert said in data.notes


def test_the_splits_of_unlabelled_data() -> None:
    parts = {"a": alone(2), "b": alone(3, seed=1)}
    assert opened(make(10), unlabeled=datasets.DatasetDict(parts)).unlabeled_images == 5
    assert opened(make(10), unlabeled=datasets.DatasetDict(train=alone(4), **parts)).unlabeled_images == 4
    stl = datasets.DatasetDict(train=make(10), unlabeled=make(6, seed=3, labels=[-1] * 6))
    assert opened(stl, unlabeled=stl).unlabeled_images == 6


@pytest.mark.parametrize("augmentation", ["crop", "resized-crop"])
def test_a_joined_image_is_named_and_read_by_its_own_mode(augmentation: str) -> None:
    red = encoded(np.full((8, 8, 3), (255, 0, 0), np.uint8))
    grey = datasets.Dataset.from_dict({"photo": [red] * 2}).cast_column("photo", datasets.Image(mode="L"))
    data = opened(make(10), unlabeled=grey, augmentation=augmentation)
    batches = list(data.train.batches(batch_size=10, seed=0, epoch=0, device="cpu", train=False))
    assert data.normalisation is not None
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.normalisation.mean, data.normalisation.std))
    assert ((batches[-1][0][-1] * std + mean) * 255).round().unique().tolist() == [76]
    bad = datasets.Dataset.from_dict({"image": [red, {"bytes": b"no", "path": None}]}).cast_column(
        "image", datasets.Image()
    )
    with pytest.raises(UserError, match=r"^images: image 1 of split 'train' of unlabeled_data cannot be decoded"):
        labels_of(opened(make(10), unlabeled=bad, augmentation=augmentation).train)
    skipped = opened(make(10), unlabeled=bad, augmentation=augmentation, skip_bad_images=True)
    assert labels_of(skipped.train).count(-1) == 1


def test_limits_draw_the_same_share_of_images_without_labels() -> None:
    data = opened(make(40), plain([0, 1]), alone(60), max_train_samples=20)
    assert sorted(labels_of(data.train)) == [-1] * 12 + [0] * 4 + [1] * 4
    tiny = opened(make(400), plain([0, 1]), alone(2), max_train_samples=20)
    assert labels_of(tiny.train).count(-1) == 1


# A share of each batch with labels.

SHARED: dict[str, Any] = {"labeled_fraction": 0.25, "batch_size": 8}


@pytest.mark.parametrize("augmentation", ["crop-flip", "resized-crop"])
def test_a_share_of_each_batch_has_labels(augmentation: str) -> None:
    """10 labelled and 50 unlabelled images: 9 batches of 2 and 6, in which a labelled image comes about 1.8 times."""
    data = opened(make(10), plain([0, 1]), alone(50), augmentation=augmentation, **SHARED)
    said = "an epoch has 9 updates of 2 labelled and 6 unlabelled images: each labelled image about 1.8 times, each "
    assert f"{said}unlabelled one 1.1 times" in data.notes
    assert (data.train.steps(8), data.train.steps(8, train=False), data.train.batch_sizes(8)) == (9, 8, (8,))

    def epoch(**options: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        arguments: dict[str, Any] = {"batch_size": 8, "seed": 3, "epoch": 0, "train": True, "device": "cpu", **options}
        return list(data.train.batches(**arguments))

    whole = epoch()
    assert [(labels >= 0).sum().item() for _, labels in whole] == [2] * 9
    assert len(whole) == 9
    parts = [epoch(rank=rank, world_size=2) for rank in range(2)]
    for (images, labels), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(images, torch.cat([own for own, _ in shares]))
        assert torch.equal(labels, torch.cat([own for _, own in shares]))
        assert all((own >= 0).sum() == 1 for _, own in shares)
    resumed = epoch(start=4)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(whole[4:], resumed, strict=True))
    assert not torch.equal(epoch(epoch=1)[0][0], whole[0][0])


BAD: dict[str, tuple[Any, Any, Any, dict[str, Any], str]] = {
    "nothing labelled": (
        plain([-1] * 10),
        None,
        None,
        {},
        r"labels: none of the 10 training images has a label: give labelled images, or set labels=False",
    ),
    "nothing labelled in a torch data set": (Items([None] * 9), Items([0]), None, {}, "labels: none of the 9"),
    "nothing labelled in a loader": (
        DataLoader(TensorDataset(torch.rand(4, 3, 8, 8), torch.full((4,), -1))),
        Items([0]),
        None,
        {},
        "labels: none of the 4 training images has a label",
    ),
    "images alone": (alone(10), None, None, {}, r"label_column: .* images alone \(image\): .* or set labels=False"),
    "an image alone": (Items(None), None, None, {}, "data: image .* is not a pair .*: give both, or set labels=False"),
    "None in a loader": (
        DataLoader(Items([None] * 4)),
        Items([0]),
        None,
        {},
        "data: the DataLoader of split 'train' cannot make batches of",
    ),
    "one class, -1 beside it": (
        plain([-1, 1] * 5),
        None,
        None,
        {},
        r"labels: all 9 images to train on are of class 1 or have no label \(5 of them: None or -1\), at least",
    ),
    "nothing labelled to evaluate on": (
        make(9),
        alone(4),
        None,
        {"labels": False},
        "eval_data: no image of",
    ),
    "-1 to evaluate on": (make(9), make(4, labels=[-1] * 4), None, {}, "eval_data: no image of"),
    "torch data to evaluate on": (
        make(9),
        Items([None] * 4),
        None,
        {},
        "eval_data: no image of",
    ),
    "a stream to evaluate on": (
        make(9),
        alone(4).to_iterable_dataset(),
        None,
        {"labels": False},
        "eval_data: no image of",
    ),
    "mixup": (plain(MIXED), None, None, {"mixup": 0.2}, "mixup: 12 of the 26 training images have no label, and"),
    "cutmix": (make(9), None, alone(2), {"cutmix": 1}, "cutmix: 2 of the 9 training images have no label"),
    "balance": (
        plain(MIXED),
        None,
        None,
        {"balanced_sampling": True},
        "balanced_sampling: 12 of the 26 training",
    ),
    "joined to a torch data set": (Items([0, 1] * 5), None, alone(2), {}, "unlabeled_data: data is of the type Items"),
    "joined to a stream": (
        make(9).to_iterable_dataset(),
        make(2),
        alone(2),
        {},
        "unlabeled_data: data is of the type IterableDataset, and only folders, files and a Dataset .* label -1 where",
    ),
    "a torch data set joined": (make(9), None, Items(None), {}, "unlabeled_data: unlabeled_data is of the type Items"),
    "a loader joined": (
        make(9),
        None,
        DataLoader(Items(None)),
        {},
        "unlabeled_data: unlabeled_data is of the",
    ),
    "a transform joined": (
        make(9),
        None,
        alone(4).with_transform(lambda row: row),
        {},
        "unlabeled_data: unlabeled_data is of the type Dataset with a transform",
    ),
    "nothing joined": (make(9), None, alone(4).select([]), {}, "unlabeled_data: split 'train' is empty"),
    "no such data joined": (make(9), None, "no/such/folder", {}, "unlabeled_data: there is no file or folder"),
    "no images joined": (
        make(9),
        None,
        plain([1]).remove_columns("image"),
        {},
        "image_column: split 'train'",
    ),
    "a share of nothing": (make(9), None, None, SHARED, "labeled_fraction: all training images have a label"),
    "a share of a stream": (
        make(9).to_iterable_dataset(),
        make(2),
        None,
        SHARED,
        "labeled_fraction: the labels are not known before the images are read",
    ),
    "too small a share": (
        make(9),
        None,
        alone(20),
        {"labeled_fraction": 0.001, "batch_size": 64},
        "labeled_fraction: 0.001 of a batch of 64 is no image: give at least 0.0156",
    ),
    "too large a share": (
        make(9),
        None,
        alone(20),
        {"labeled_fraction": 0.99, "batch_size": 8},
        "labeled_fraction: 0.99 of a batch of 8 is all of it: give at most 0.875",
    ),
    "a share and balance": (
        make(9),
        None,
        alone(20),
        {**SHARED, "balanced_sampling": True},
        "balanced_sampling: .* have no label, so no class",
    ),
}


@pytest.mark.parametrize(("train", "evaluation", "unlabeled", "settings", "message"), BAD.values(), ids=BAD)
def test_bad_data_are_one_line(
    train: Any, evaluation: Any, unlabeled: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        opened(train, evaluation, unlabeled, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loads", [False, True])
def test_mixing_labels_that_turn_out_to_be_missing(loads: bool) -> None:
    data = TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, -1, 0]))
    found = opened(DataLoader(data, 4) if loads else data, data, mixup=0.2)
    with pytest.raises(UserError, match=r"^mixup: a training image of split 'train' has no label, and it mixes"):
        labels_of(found.train, train=True)


def test_an_evaluation_alone_needs_labels() -> None:
    form: dict[str, Any] = {"image_size": 8, "in_chans": 3, "normalisation": Normalisation((0.0,) * 3, (1.0,) * 3)}
    for labels in (True, False):
        config = DistillConfig(labels=labels)
        with pytest.raises(UserError, match=r"^data: no image of split 'evaluation' has a label"):
            open_evaluation(plain([-1, -1]), config, **form)
        with pytest.raises(UserError, match=r"^(label_column: .* images alone|data: no image of split)"):
            open_evaluation(alone(4), config, **form)
    with pytest.raises(UserError, match=r"^evaluate: no image of the training data is labelled and held out"):
        open_evaluation(alone(4), DistillConfig(labels=False), trained_on=True, **form)
    source, notes = open_evaluation(plain([0, None, 1]), DistillConfig(), **form)
    assert labels_of(source) == [0, 1]
    assert "split 'evaluation': 1 of 3 images have no label: they are not evaluated on" in notes


def test_images_that_are_trained_and_evaluated_on_are_said(tmp_path: Path) -> None:
    folder = str(pictures(tmp_path, *[f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(3)]))
    assert "eval_data: 6 of the 6 images to evaluate on are trained on, too" in opened(folder, folder).notes
    unknown = "unlabeled_data: whether images of it are evaluated on is not known, since not all are files"
    assert unknown in opened(make(10), unlabeled=folder).notes


@pytest.mark.parametrize("loader", [False, True])
def test_floats_that_contradict_the_stated_normalisation_are_refused(loader: bool) -> None:
    pixels = torch.randint(0, 256, (12, 3, 8, 8)).float()
    data: Any = TensorDataset(pixels, torch.arange(12) % 2)
    data = DataLoader(data, 4) if loader else data
    config, stated = DistillConfig(), Normalisation((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(UserError, match=r"^mean: with mean 0 0 0, std 1 1 1 undone, the images hold values from 0 to"):
        open_data(data, data, config, image_size=8, in_chans=3, stated=stated)


def numbered(names: list[str], labels: list[int]) -> datasets.Dataset:
    """Images whose first pixel is the number that their class is named by."""
    images = [encoded(np.full((8, 8, 3), int(names[label]), dtype=np.uint8)) for label in labels]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


NUMBERS = ["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"]  # sorted as texts, as folders are


@pytest.mark.parametrize("texts", [False, True])
def test_classes_without_names_are_matched_with_names_that_are_numbers(texts: bool) -> None:
    data: Any = numbered(NUMBERS, list(range(11)))
    if texts:
        data = data.cast_column("label", datasets.Value("int64")).map(
            lambda row: {"label": NUMBERS[row["label"]]},
            features=datasets.Features({**data.features, "label": datasets.Value("string")}),
        )
    source, _ = open_evaluation(
        data,
        DistillConfig(),
        image_size=8,
        in_chans=3,
        normalisation=Normalisation((0.0,) * 3, (1.0,) * 3),
        num_classes=11,
    )
    for images, labels in source.batches(batch_size=6, seed=0, epoch=0, device="cpu", train=False):
        assert (255 * images[:, 0, 0, 0]).round().long().tolist() == labels.tolist()


def test_names_that_are_no_numbers_are_said_to_be_taken_in_their_order() -> None:
    _, notes = open_evaluation(
        make(4),
        DistillConfig(),
        image_size=8,
        in_chans=3,
        normalisation=Normalisation((0.0,) * 3, (1.0,) * 3),
        num_classes=2,
    )
    said = "split 'evaluation': no class names are known of the models, so these are taken in their order: 'cat'"
    assert any(note.startswith(said) for note in notes)


@pytest.mark.parametrize("loader", [False, True])
def test_numbers_of_torch_data_mean_the_names(loader: bool) -> None:
    """Models whose classes are named by numbers: a plain number is the name, not the index."""
    values = torch.tensor([0, 1, 2, 10])
    images = values[:, None, None, None].expand(4, 3, 8, 8).to(torch.uint8)
    data: Any = TensorDataset(images, values)
    names = ["0", "1", "10", "2"]
    about: dict[str, Any] = {"image_size": 8, "in_chans": 3, "normalisation": Normalisation((0.0,) * 3, (1.0,) * 3)}
    source, _ = open_evaluation(
        DataLoader(data, 2) if loader else data, DistillConfig(), class_names=names, num_classes=4, **about
    )
    assert labels_of(source) == [0, 1, 3, 2]
    wrong: Any = TensorDataset(images, torch.tensor([0, 1, 2, 7]))

    def opened_and_read() -> None:
        given = DataLoader(wrong, 4) if loader else wrong
        source, _ = open_evaluation(given, DistillConfig(), class_names=names, num_classes=4, **about)
        labels_of(source)

    with pytest.raises(UserError, match="has the label 7, which names no class"):
        opened_and_read()
