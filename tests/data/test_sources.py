from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.sources import choose_evaluation, choose_splits
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import make

CONFIG = DistillConfig()


def chosen(data: Any, evaluation: Any = None, **settings: Any) -> list[tuple[str, int] | None]:
    parts = choose_splits(data, evaluation, CONFIG.replace(**settings), [])
    return [part and (part.name, len(part.data)) for part in parts]


def test_no_name_is_the_bundled_digits() -> None:
    assert chosen(None) == [("train", 1797), None]
    assert len(choose_evaluation(None, CONFIG, []).data) == 1797


def test_a_folder_of_parquet(parquet: Path) -> None:
    assert chosen(parquet) == [("train", 20), ("test", 6)]
    assert chosen(str(parquet)) == [("train", 20), ("test", 6)]
    assert chosen(parquet, train_split="test") == [("test", 6), None]
    assert chosen(parquet, eval_split="train") == [("train", 20), ("train", 20)]


def test_one_file(parquet: Path) -> None:
    assert chosen(next(parquet.glob("train*"))) == [("train", 20), None]


def test_a_saved_data_set_and_a_saved_dictionary(tmp_path: Path) -> None:
    make(5).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=make(5), validation=make(4)).save_to_disk(tmp_path / "two")
    assert chosen(tmp_path / "one") == [("train", 5), None]
    assert chosen(tmp_path / "two") == [("train", 5), ("validation", 4)]


def test_objects_are_taken_as_they_are() -> None:
    tensors = TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    for data in (make(4), tensors, DataLoader(tensors, batch_size=1)):
        assert choose_splits(data, None, CONFIG, [])[0].data is data
        assert choose_evaluation(data, CONFIG, []).data is data


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "validation", "test"], "test"),
        (["train", "val"], "val"),
        (["train", "dev"], "dev"),
        (["train", "extra"], None),
        (["only"], None),
    ],
)
def test_the_evaluation_split_of_a_dictionary(splits: list[str], expected: str | None) -> None:
    data = datasets.DatasetDict({name: make(4) for name in splits})
    part = choose_splits(data, None, CONFIG, [])[1]
    assert (part and part.name) == expected


def test_data_for_evaluation_of_their_own(parquet: Path) -> None:
    assert chosen(make(7), parquet) == [("train", 7), ("test", 6)]
    assert chosen(make(7), make(3)) == [("train", 7), ("evaluation", 3)]
    assert chosen(make(7), datasets.DatasetDict(only=make(2))) == [("train", 7), ("only", 2)]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


THREE = datasets.DatasetDict(one=make(2), two=make(2), three=make(2))


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (Stream(), {}, "torch's IterableDataset has no order to resume"),
        ([1, 2], {}, "list cannot be read: expected a hub name, a folder or file"),
        (np.zeros(3), {}, "ndarray cannot be read"),
        (datasets.DatasetDict(), {}, "there is no split in it"),
        (THREE, {}, "train_split: there is no split 'train'; name one of one, two, three"),
        (THREE, {"train_split": "four"}, "train_split: there is no split 'four'; the splits are one, two, three"),
        (THREE, {"train_split": "one", "eval_split": "x"}, "eval_split: there is no split 'x'; the splits are one, "),
        (make(4), {"eval_split": "test"}, "eval_split: the data have one split only, there is no 'test'"),
    ],
)
def test_data_and_splits_that_cannot_be_used(data: Any, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(data, **settings)


def test_evaluation_data_with_several_unknown_splits() -> None:
    with pytest.raises(UserError, match="eval_split: name the split to evaluate on, there are one, two, three"):
        choose_evaluation(THREE, CONFIG, [])


def _nothing(folder: Path) -> Path:
    return folder


def _text(folder: Path) -> Path:
    (folder / "notes.md").write_text("no images")
    return folder


def _broken(folder: Path) -> Path:
    (folder / "train.parquet").write_text("junk")
    return folder


def _broken_file(folder: Path) -> Path:
    return _broken(folder) / "train.parquet"


def _unknown_kind(folder: Path) -> Path:
    (folder / "images.h5").write_text("junk")
    return folder / "images.h5"


def _loop(folder: Path) -> Path:
    os.symlink(folder / "loop", folder / "loop")
    return folder / "loop"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (_nothing, "holds no images that can be read"),
        (_text, "holds no images that can be read"),
        (_broken, "holds no images that can be read"),
        (_broken_file, "holds no images that can be read"),
        (_unknown_kind, "is of no known kind, expected .parquet or .arrow, or a folder"),
        (_loop, "leads nowhere: repair it"),
        (lambda folder: folder / "not there", "there is no file or folder"),
        (lambda folder: "../../etc/nothing", "there is no file or folder"),
        (lambda folder: "a/../b", "there is no file or folder"),
        (lambda folder: "x" * 5000, "cannot be read"),
        (lambda folder: "train.parquet", "there is no file or folder"),
    ],
)
def test_a_path_without_images_is_one_line(
    place: Any, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=f"^data: .*{message}") as caught:
        chosen(place(tmp_path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_hub_name_without_a_model_fails_at_once_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    begin = time.monotonic()
    with pytest.raises(
        UserError, match=r"'someone/images' .*\(no internet access\?\): name a local folder, or .*--local-dir"
    ) as caught:
        chosen("someone/images")
    assert time.monotonic() - begin < 10
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_reading_is_quiet_and_leaves_the_progress_bars_as_they_were(
    parquet: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not datasets.are_progress_bars_disabled()
    chosen(parquet)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.parquet", "there is no file or folder 'nowhere.parquet'"),
        (object(), "object cannot be read: expected a hub name"),
        ("folder", "holds no images that can be read"),
        ("images.h5", "is of no known kind"),
    ],
)
def test_an_error_names_the_setting_that_the_data_came_from(
    name: Any, message: str, parquet: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "images.h5").write_text("junk")
    given = tmp_path / name if isinstance(name, str) and name != "nowhere.parquet" else name
    with pytest.raises(UserError, match=rf"^eval_data: .*{message}"):
        choose_splits(parquet, given, CONFIG, [])
    for choose in (lambda: choose_splits(given, parquet, CONFIG, []), lambda: choose_evaluation(given, CONFIG, [])):
        with pytest.raises(UserError, match=rf"^data: .*{message}"):
            choose()
