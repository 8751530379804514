from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data, open_data
from feature_gan_kd.utils.errors import UserError

_TEXT = datasets.Value("string")


def opened(train: Any, evaluation: Any = None, **settings: Any) -> Data:
    return open_data(train, evaluation, DistillConfig(**settings), image_size=8, in_chans=3)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{k}.png" for k in range(6)]
    for k, path in enumerate(paths):
        Image.new("RGB", (8, 8), (40 * k,) * 3).save(path)
    return list(map(str, paths))


def columns(files: list[str], labels: list[Any], kind: Any = _TEXT) -> datasets.Dataset:
    """Paths that are declared as images, not stored with them."""
    features = datasets.Features(image=datasets.Image(), label=kind)
    return datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)


def test_files_that_come_repeatedly_are_counted(files: list[str]) -> None:
    train = columns([*files, files[0]], ["cat", "dog"] * 3 + ["cat"])
    evaluation = columns(files[:2], ["cat", "dog"])
    notes = opened(train, evaluation).notes
    assert "split 'train': its 7 images are 6 files: some come repeatedly" in notes
    assert "eval_data: 2 of the 2 images to evaluate on are trained on, too" in notes


def test_a_file_has_one_label(files: list[str]) -> None:
    train = columns([*files, files[0]], ["cat", "dog"] * 3 + ["dog"])
    with pytest.raises(UserError, match=f"^labels: {files[0]} has the labels 'cat' and 'dog' \\(split 'train'\\)"):
        opened(train)


def test_a_link_is_the_file_that_it_leads_to(files: list[str], tmp_path: Path) -> None:
    for label, file in zip(["cat", "dog"] * 3, files, strict=True):
        (tmp_path / "train" / label).mkdir(parents=True, exist_ok=True)
        Path(file).rename(tmp_path / "train" / label / Path(file).name)
    (tmp_path / "train" / "dog" / "copy.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(UserError, match=r"0\.png has the labels 'cat' and 'dog'"):
        opened(str(tmp_path / "train"))


def test_a_file_has_the_same_label_where_it_is_evaluated_on(files: list[str]) -> None:
    train = columns(files, ["cat", "dog"] * 3)
    evaluation = columns(files[:2], ["dog", "cat"])
    with pytest.raises(UserError, match=r"0\.png has the labels 'cat' and 'dog' \(split 'evaluation'\)"):
        opened(train, evaluation)


def test_a_file_without_a_label_contradicts_none(files: list[str]) -> None:
    train = columns([*files, files[0]], ["cat", "dog"] * 3 + ["-1"])
    notes = opened(train).notes
    assert any("1 of " in note and "training images have no label" in note for note in notes)


def test_a_missing_label_may_be_the_text_of_minus_one(files: list[str], tmp_path: Path) -> None:
    table = {"image": files, "label": ["cat", "dog", "cat", "dog", "cat", "-1"]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "a.parquet")
    data = opened(str(tmp_path / "a.parquet"), image_column="image")
    assert data.class_names == ["cat", "dog"]
    assert data.unlabeled_images == 1


@pytest.mark.parametrize("text", ["None", "nan", "NaN", "null", "N/A"])
def test_a_text_that_may_mean_no_label_is_asked_for(text: str, files: list[str]) -> None:
    train = columns(files, ["cat", "dog", "cat", "dog", "cat", text])
    with pytest.raises(UserError, match=f"has the text '{text}', and it is not known whether it is a class"):
        opened(train)
    names = ["cat", "dog", text]
    assert opened(train.cast_column("label", datasets.ClassLabel(names=names))).class_names == names


def test_lines_name_two_splits(files: list[str]) -> None:
    train = datasets.DatasetDict(train=columns(files, ["cat", "dog"] * 3))
    evaluation = datasets.DatasetDict(train=columns(files[:2], ["cat", "cow"]))
    with pytest.raises(UserError, match="of split 'train of eval_data' has the label 'cow'"):
        opened(train, evaluation)
    numbers = datasets.DatasetDict(train=columns(files, [0, 1] * 3, datasets.Value("int64")))
    three = columns(files[:3], [0, 1, 2], datasets.ClassLabel(names=["a", "b", "c"]))
    said = "split 'train of eval_data' has 3 classes, expected 2 as in split 'train': give both the same"
    with pytest.raises(UserError, match=f"^labels: {said}"):
        opened(numbers, datasets.DatasetDict(train=three))


ITEMS = TensorDataset(torch.rand(8, 3, 8, 8), torch.tensor([0, 1] * 4))


@pytest.mark.parametrize(
    ("train", "evaluation", "expected"),
    [
        (ITEMS, ITEMS, ["8 of the 8 images to evaluate on are trained on, too"]),
        (Subset(ITEMS, range(4)), Subset(ITEMS, range(4, 8)), []),
        (Subset(ITEMS, range(6)), Subset(Subset(ITEMS, range(8)), [5, 7]), ["1 of the 2 images to evaluate on are"]),
        (Subset(ITEMS, range(4)), Subset(ITEMS, [4, 5, 5]), ["its 3 images are 2: some come repeatedly"]),
        (DataLoader(ITEMS, 4), DataLoader(Subset(ITEMS, [0, 1]), 2), ["2 of the 2 images to evaluate on are"]),
        (
            DataLoader(ITEMS, 2, sampler=SubsetRandomSampler(range(4))),
            DataLoader(ITEMS, 2, sampler=SubsetRandomSampler(range(4, 8))),
            [],
        ),
        (DataLoader(ITEMS, batch_sampler=[[0, 1], [2, 3]]), DataLoader(ITEMS, batch_sampler=[[4, 5], [6, 7]]), []),
    ],
)
def test_items_of_one_data_set_are_told_apart(train: Any, evaluation: Any, expected: list[str]) -> None:
    notes = open_data(train, evaluation, DistillConfig(), image_size=8, in_chans=3, num_classes=2).notes
    said = [note.removeprefix("eval_data: ") for note in notes if "too" in note or "repeatedly" in note]
    assert len(said) == len(expected)
    assert all(note.startswith(start) for note, start in zip(said, expected, strict=True))
