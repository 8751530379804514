from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.open import open_data
from feature_gan_kd.data.sources import choose_splits
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import random_images

CONFIG = DistillConfig()


def folder(root: Path, *files: str) -> Path:
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_images(1, seed=number)[0]).save(root / name)
    return root


def read(root: Path, **settings: Any) -> dict[str, list[tuple[str, str]]]:
    """The class and the file of each image, by split."""
    splits = {}
    for split in choose_splits(root, None, CONFIG.replace(**settings), []):
        if split is not None:
            names = split.data.features["label"].names
            undecoded = split.data.with_format("arrow")
            rows = itertools.chain.from_iterable(table.to_pylist() for table in undecoded.iter(8))
            splits[split.name] = [
                (names[row["label"]], Path(row["image"]["path"]).relative_to(root).as_posix()) for row in rows
            ]
    return splits


def classes(root: Path) -> list[str]:
    names: list[str] = choose_splits(root, None, CONFIG, [])[0].data.features["label"].names
    return names


def test_splits_and_classes(tmp_path: Path) -> None:
    folder(tmp_path, "train/dog/1.png", "train/cat/2.png", "train/cat/1.png", "val/dog/1.png")
    assert read(tmp_path) == {
        "train": [("cat", "train/cat/1.png"), ("cat", "train/cat/2.png"), ("dog", "train/dog/1.png")],
        "validation": [("dog", "val/dog/1.png")],
    }


@pytest.mark.parametrize(
    ("names", "expected", "split"),
    [
        (["train/cat", "train/dog", "test/cat"], ["cat", "dog"], "test"),
        (["Train/cat", "Train/dog", "Val/cat"], ["cat", "dog"], "validation"),
        (["bus", "car", "train"], ["bus", "car", "train"], None),
        (["bottle", "test tube", "validation"], ["bottle", "test tube", "validation"], None),
        (["cat/train", "dog/test"], ["cat", "dog"], None),
        (["10", "2", "1"], ["1", "10", "2"], None),
        (["train/n1/images", "train/n2/images", "val/n2/images"], ["n1", "n2"], "validation"),
        (["train/cat/2021", "train/cat/2022", "train/dog/2021", "test/dog"], ["cat", "dog"], "test"),
        (["train/cat", "train/dog", "test/images"], ["cat", "dog"], "test"),
    ],
)
def test_only_folders_at_the_top_are_splits_and_those_below_are_classes(
    names: list[str], expected: list[str], split: str | None, tmp_path: Path
) -> None:
    folder(tmp_path, *(f"{name}/a train in Train.JPEG" for name in names))
    found = read(tmp_path)
    assert classes(tmp_path) == expected
    assert list(found) == ["train"] + [split] * (split is not None)
    assert sum(map(len, found.values())) == len(names)


def test_words_in_file_names_leave_no_image_out(tmp_path: Path) -> None:
    files = [f"{name}/{'train' * (k < 2)}{k}.png" for name in ("cat", "dog", "eel") for k in range(15)]
    assert len(read(folder(tmp_path, *files))["train"]) == 45
    assert len(read(tmp_path, streaming=True)["train"]) == 45


def test_a_stream_of_a_folder_mixes_its_classes(tmp_path: Path) -> None:
    files = [f"{name}/{k}.png" for name in ("cat", "dog") for k in range(8)]
    streamed = read(folder(tmp_path, *files), streaming=True)["train"]
    assert sorted(streamed) == read(tmp_path)["train"] != streamed
    config = CONFIG.replace(streaming=True, max_train_samples=8, max_eval_samples=4)
    data = open_data(tmp_path, tmp_path, config, image_size=8, in_chans=3, num_classes=2)
    assert (len(data.train), data.class_names) == (8, ["cat", "dog"])


def test_links_are_followed_and_hidden_files_are_not_images(tmp_path: Path) -> None:
    folder(tmp_path / "there", "dog/1.png")
    folder(tmp_path / "data", "cat/1.png", "cat/._1.png", ".cache/x/1.png", "__MACOSX/cat/1.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "there" / "dog")
    (tmp_path / "data" / "cat" / "again").symlink_to(tmp_path / "data")
    assert read(tmp_path / "data")["train"] == [("cat", "cat/1.png"), ("dog", "dog/1.png")]


def test_the_first_lines_of_a_run_name_the_classes(tmp_path: Path) -> None:
    folder(tmp_path, *(f"{split}/{k:02}/1.png" for split in ("train", "test") for k in range(12)), "logo.png")
    notes = open_data(tmp_path, None, CONFIG, image_size=8, in_chans=3).notes
    names = ", ".join(f"'{k:02}'" for k in range(10))
    assert f"classes: {names}, ..." in notes
    assert f"1 image files of {tmp_path} are in no split folder and left out; one is logo.png" in notes


def metadata(place: Path, **labels: str) -> None:
    """Writes a metadata file; `datasets` leaves one of CSV open, which the tests would report as a warning."""
    rows = [{"file_name": f"{name}.png", "label_quality": 1, "label": label} for name, label in labels.items()]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


LABELS = {"train0": "dog", "test1": "cat", "val2": "dog", "x3": "cat"}


def test_metadata_files_give_the_labels_of_the_images_beside_them(tmp_path: Path) -> None:
    for split in ("Train", "Test"):
        folder(tmp_path, *(f"{split}/{name}.png" for name in LABELS))
        metadata(tmp_path / split, **LABELS)
    data = open_data(tmp_path, None, CONFIG, image_size=8, in_chans=3)
    assert (len(data.train), len(data.evaluation), data.class_names) == (4, 4, ["cat", "dog"])
    metadata(tmp_path, **LABELS)
    with pytest.raises(UserError, match=r"metadata.jsonl describes the images of several splits"):
        choose_splits(tmp_path, None, CONFIG, [])


def test_metadata_of_a_folder_without_splits(tmp_path: Path) -> None:
    metadata(folder(tmp_path, *(f"{name}.png" for name in LABELS)), **LABELS)
    assert len(choose_splits(tmp_path, None, CONFIG, [])[0].data) == 4


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_images_that_no_metadata_file_names_are_said(ending: str, tmp_path: Path) -> None:
    names = ["0.png", "1.png", "deep/2.png", "3.png"]
    folder(tmp_path, *names)
    rows = [{"file_name": name, "label": "ab"[k % 2]} for k, name in enumerate(names[:3])]
    lines = ["file_name,label", *(",".join(row.values()) for row in rows)] if ending == "csv" else map(json.dumps, rows)
    (tmp_path / f"metadata.{ending}").write_text("\n".join(lines))
    notes: list[str] = []
    assert len(choose_splits(tmp_path, None, CONFIG, notes)[0].data) == 3
    assert notes == [f"1 image files of {tmp_path} are in no metadata file and left out; one is 3.png"]


def test_a_card_that_names_the_files_of_the_splits_is_followed(tmp_path: Path) -> None:
    folder(tmp_path, "a/cat/1.png", "a/dog/1.png", "b/dog/1.png")
    files = ["  - split: train", "    path: a/**", "  - split: test", "    path: b/**"]
    card = ["---", "configs:", "- config_name: default", "  data_files:", *files, "---"]
    (tmp_path / "README.md").write_text("\n".join(card))
    assert {name: len(rows) for name, rows in read(tmp_path).items()} == {"train": 2, "test": 1}


def card_of(*splits: str) -> str:
    """A card that gives each split the files of the folder of its name."""
    files = [line for name in splits for line in (f"  - split: {name}", f"    path: {name}/**")]
    return "\n".join(["---", "configs:", "- config_name: default", "  data_files:", *files, "---"])


def test_folders_of_one_name_with_cards_are_told_apart(tmp_path: Path) -> None:
    """Also a folder from itself after its files have changed: `datasets` caches both by the name alone."""
    for parent, count in (("one", 2), ("two", 3), ("one", 4)):
        path = folder(tmp_path / parent / "same", *(f"train/{k}.png" for k in range(count)))
        metadata(path / "train", **{str(k): "cat" for k in range(count)})
        (path / "README.md").write_text(card_of("train"))
        assert len(choose_splits(path, None, CONFIG, [])[0].data) == count


@pytest.mark.parametrize("streaming", [False, True])
def test_a_metadata_csv_behind_a_card_is_read_as_without(streaming: bool, tmp_path: Path) -> None:
    """Of the columns that could be labels the same is taken, and 007 stays 007."""
    folder(tmp_path, *(f"{split}/{k}.png" for split in ("train", "test") for k in range(2)))
    for split in ("train", "test"):
        lines = ["file_name,class_id,label_quality,label", "0.png,1,5,007", "1.png,2,6,7"]
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines))
    (tmp_path / "README.md").write_text(card_of("train", "test"))
    split, _ = choose_splits(tmp_path, None, DistillConfig(streaming=streaming), [])
    assert sorted(row["label"] for row in split.data) == ["007", "7"]
    if not streaming:
        assert open_data(tmp_path, None, CONFIG, image_size=8, in_chans=3).class_names == ["007", "7"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train/1.png", "test/cat/1.png"],
            r"train/1.png lies directly in .*, expected one folder per class there: move",
        ),
        (["1.png", "cat/1.png", "dog/1.png"], r"1.png lies directly in .*, expected one folder per class"),
        (["train/cat/1.png", "car/2021/1.png"], "folder 'train' of .* is named as a split and 'car' is not"),
        (["val/cat/1.png", "valid/cat/1.png"], "the folders 'val' and 'valid' of .* both mean split 'validation'"),
    ],
)
def test_what_is_no_split_and_no_class_is_refused(files: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^data: {message}") as caught:
        choose_splits(folder(tmp_path, *files), None, CONFIG, [])
    assert "\n" not in str(caught.value)


def test_class_folders_that_differ_in_letter_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^labels: the folders of split 'train' of .* has 'Cat' and 'cat', which"):
        choose_splits(folder(tmp_path, "Cat/1.png", "cat/1.png"), None, CONFIG, [])


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ([], None),
        ([".DS_Store", "cat/.hidden", "__MACOSX/x.avif"], None),
        (["cat/notes.txt"], "1 file is left out, since the ending of the name is none of an image: cat/notes.txt"),
        (
            ["eel/9.avif", "dog/8", "eel/10.avif"],
            "3 files are left out, since the ending of the name is none of an image; the first is dog/8",
        ),
    ],
)
def test_files_that_are_left_out_are_noted(files: list[str], note: str | None, tmp_path: Path) -> None:
    folder(tmp_path, *(f"{name}/{k}.png" for name in ("cat", "dog") for k in range(5)))
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    notes: list[str] = []
    split, _ = choose_splits(tmp_path, None, CONFIG, notes)
    assert len(split.data) == 10
    assert [line for line in notes if "left out" in line] == ([] if note is None else [f"{tmp_path}: {note}"])
