from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data, open_data
from feature_gan_kd.data.metadata_csv import read_metadata
from feature_gan_kd.utils.errors import UserError


def folder(path: Path, labels: list[str], header: str = "file_name,label") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for k in range(len(labels)):
        Image.new("RGB", (8, 8), (k,) * 3).save(path / f"{k}.png")
    lines = [f"{k}.png,{label}" for k, label in enumerate(labels)]
    (path / "metadata.csv").write_text("\n".join([header, *lines, ""]))
    return path


def opened(path: Path, **settings: Any) -> Data:
    return open_data(str(path), None, DistillConfig(**settings), image_size=8, in_chans=3)


def labels_of(data: Data) -> list[int]:
    batches = data.evaluation.batches(batch_size=9, seed=0, epoch=0, device="cpu", train=False)
    return [label for _, labels in batches for label in labels.tolist()]


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["007", "7", "12"], ["007", "12", "7"], [0, 2, 1]),
        (["NA", "EU", "NA"], ["EU", "NA"], [1, 0, 1]),
        (["10", "40", "10"], ["10", "40"], [0, 1, 0]),
        (["0", "1", "2"], None, [0, 1, 2]),
        (["True", "False", "True"], ["False", "True"], [1, 0, 1]),
        (["1e1", "x", "0x1"], ["0x1", "1e1", "x"], [1, 2, 0]),
        (['"a, b"', "c", "c"], ["a, b", "c"], [0, 1, 1]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_label_is_what_the_file_says(
    labels: list[str], names: list[str] | None, indices: list[int], streaming: bool, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        folder(tmp_path / split, labels)
    if streaming and names is not None and names != ["10", "40"]:
        with pytest.raises(UserError, match="holds texts, so its classes are not known"):
            opened(tmp_path, streaming=True)
        return
    if streaming and names is not None:
        return  # of a stream it is not known that they are not 0 to 40
    data = opened(tmp_path, streaming=streaming)
    assert data.class_names == names
    assert (sorted if streaming else list)(labels_of(data)) == indices


def test_a_column_is_of_one_type_in_all_splits(tmp_path: Path) -> None:
    """Only the training images show here that the labels are no numbers."""
    folder(tmp_path / "train", ["x", "2", "1"])
    folder(tmp_path / "test", ["1", "2"])
    data = opened(tmp_path)
    assert (data.class_names, labels_of(data)) == (["1", "2", "x"], [0, 1])


@pytest.mark.parametrize("labels", [["0", "1", "NA", "0"], ["a", "b", "", "a"], ["0", "1", "-1", "0"]])
def test_an_image_without_a_label(labels: list[str], tmp_path: Path) -> None:
    folder(tmp_path / "train", labels)
    folder(tmp_path / "test", labels[:2])
    data = opened(tmp_path)
    assert data.train_labels is not None
    assert (sorted(data.train_labels.tolist()), data.unlabeled_images, data.num_classes) == ([-1, 0, 0, 1], 1, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "1", "-2"], "image 2 of split 'train' has the label -2 in column 'label'"),
        (["7", " 7", "8"], "column 'label' of split 'train' has ' 7' and '7', which differ only in letter case"),
    ],
)
def test_a_label_that_is_not_clear(labels: list[str], message: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder(tmp_path / split, labels)
    with pytest.raises(UserError, match=f"^labels: {message}"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\n0.png,a\n", "has no column file_name"),
        ("file_name,label\n0.png,a,b\n", "line 2 of .*metadata.csv has 3 values, its first line has 2 names"),
        ("file_name,label\n../0.png,a\n", r"names '../0.png', expected a file beside it"),
        ("file_name,label\n/0.png,a\n", r"names '/0.png', expected a file beside it"),
        ("file_name,label\nfile://0.png,a\n", r"names 'file://0.png', expected a file beside it"),
    ],
)
def test_a_file_that_cannot_be_understood(text: str, message: str, tmp_path: Path) -> None:
    folder(tmp_path, ["a"])
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match=f"^data: .*{message}") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_each_split_needs_a_file(tmp_path: Path) -> None:
    folder(tmp_path / "train", ["a", "b"])
    folder(tmp_path / "test", ["a", "b"])
    (tmp_path / "test" / "metadata.csv").unlink()
    with pytest.raises(UserError, match=r"^data: split 'test' of .* has no metadata.csv"):
        opened(tmp_path)


def test_columns_of_several_files_in_several_folders(tmp_path: Path) -> None:
    folder(tmp_path / "a", ["x,0.5"], "file_name,label,weight")
    folder(tmp_path / "b", ["y"], "mask_file_name,label")
    table = read_metadata(tmp_path, {"train": ["a/metadata.csv", "b/metadata.csv"]}, "data")["train"]
    kinds = {name: type(feature).__name__ for name, feature in table.features.items()}
    assert kinds == {"image": "Image", "label": "Value", "weight": "Value", "mask": "Image"}
    assert (table["label"][:], table["weight"][:]) == (["x", "y"], [0.5, None])
    assert table[0]["image"].getpixel((0, 0)) == (0, 0, 0)
    assert table[1]["image"] is None
