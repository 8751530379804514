"""Streamed data sets: each image once, the same order again, shards of one's own for each process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from feature_gan_kd import UserError
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import count_classes, open_data
from feature_gan_kd.data.batch_transforms import CropFlip, PixelNormaliser
from feature_gan_kd.data.image_transforms import ImageTransform
from feature_gan_kd.data.sources import BUNDLED_DIGITS, Split
from feature_gan_kd.data.streaming import IterableImages, read_stream
from feature_gan_kd.data.table import Classes
from tests.data.image_samples import encoded, make, plain
from tests.helpers.runs import AtStep, assert_same_run, build

COUNT = 26
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=COUNT))


def opened(data: Any, *, length: int | None = None, evaluation: bool = False, skip: bool = False) -> IterableImages:
    limit = {"max_eval_samples" if evaluation else "max_train_samples": length}
    train = Classes(None, None, "split 'train'") if evaluation else None
    stream = read_stream(Split(data, "train"), DistillConfig(**limit), [], COUNT, train)
    return IterableImages(stream, ImageTransform(8, 3, resized_crop=False), CropFlip(1, flip=True), skip=skip)


def numbered(shards: int = 1, count: int = COUNT, read: list[int] | None = None) -> datasets.IterableDataset:
    """Images whose labels are their numbers, in shards of contiguous numbers; the shards that are read are noted."""

    def rows(parts: list[list[int]]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if read is not None:
                read.append(part[0])
            for number in part:
                yield {"image": encoded(np.full((8, 8, 3), 9 * number, np.uint8)), "label": number}

    parts = [part.tolist() for part in np.array_split(np.arange(count), shards)]
    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"parts": parts}, features=FEATURES)


def epoch_of(images: IterableImages, **options: Any) -> list[tuple[Tensor, Tensor]]:
    return list(images.batches(**{"batch_size": 4, "seed": 0, "epoch": 0, "device": "cpu", "train": True, **options}))


def labels_of(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


def test_each_image_once_in_an_order_of_each_epoch() -> None:
    images = opened(numbered(shards=3), length=COUNT)
    first, second = epoch_of(images), epoch_of(images, epoch=1)
    assert sorted(labels_of(first)) == sorted(labels_of(second)) == list(range(COUNT))
    assert labels_of(first) != labels_of(second)
    assert labels_of(first) != sorted(labels_of(first))
    assert first[0][0].shape == (4, 3, 8, 8)
    assert len(first) == images.steps(4) == 7
    assert same(first, epoch_of(opened(numbered(shards=3), length=COUNT)))


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_an_epoch_goes_on_where_it_was(rank: int, world: int) -> None:
    def images() -> IterableImages:
        return opened(numbered(shards=4), length=COUNT)

    whole = epoch_of(images(), rank=rank, world_size=world)
    assert same(whole[3:], epoch_of(images(), rank=rank, world_size=world, start=3))


def test_each_process_reads_shards_of_its_own() -> None:
    shares, shards = [], []
    for rank in range(2):
        read: list[int] = []
        images = opened(numbered(shards=4, count=24, read=read), length=24)
        shares.append(labels_of(epoch_of(images, rank=rank, world_size=2)))
        shards.append(set(read))
    assert [len(share) for share in shares] == [12, 12]
    assert sorted(shares[0] + shares[1]) == list(range(24))
    assert [len(mine) for mine in shards] == [2, 2]
    assert not shards[0] & shards[1]


def test_shards_that_cannot_be_divided_are_read_by_all() -> None:
    images = [opened(numbered(shards=2), length=24) for _ in range(3)]
    shares = [labels_of(epoch_of(one, rank=rank, world_size=3, batch_size=6)) for rank, one in enumerate(images)]
    assert [len(share) for share in shares] == [8, 8, 8]
    assert len(set().union(*shares)) == 24


def test_a_process_whose_shards_are_short_begins_them_again(capsys: pytest.CaptureFixture[str]) -> None:
    images = opened(numbered(shards=1, count=6), length=16)
    counts = Counter(labels_of(epoch_of(images)))
    assert sorted(counts) == list(range(6))
    assert set(counts.values()) == {2, 3}
    epoch_of(images, epoch=1)
    assert capsys.readouterr().err == "split 'train': the stream ended after 6 images and begins again\n"


@pytest.mark.parametrize(("length", "seen"), [(COUNT, COUNT), (10, 10), (40, COUNT)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_each_image_once(length: int, seen: int, world: int) -> None:
    shares = []
    for rank in range(world):
        images = opened(numbered(shards=2), length=length, evaluation=True)
        shares.append(epoch_of(images, rank=rank, world_size=world, train=False))
    assert len({len(share) for share in shares}) == 1  # the processes exchange something after every batch
    joined = [label for batches in zip(*shares, strict=True) for label in labels_of(list(batches))]
    assert joined == list(range(seen))


def test_the_length_is_the_datas_own_where_they_say_it(tmp_path: Path) -> None:
    """As a data set of the hub does in its card."""
    make(7).to_parquet(tmp_path / "train-0.parquet")
    card = ("---", "dataset_info:", "  splits:", "  - name: train", "    num_bytes: 1", "    num_examples: 7", "---")
    (tmp_path / "README.md").write_text("\n".join(card))
    stream = datasets.load_dataset(str(tmp_path), split="train", streaming=True)
    assert len(opened(stream)) == 7
    assert len(opened(stream, length=5)) == 5
    with pytest.raises(UserError, match=r"^max_train_samples: the streamed split 'train' does not say how many"):
        opened(numbered())
    with pytest.raises(UserError, match=r"^max_eval_samples: the streamed"):
        opened(numbered(), evaluation=True)
    for changed, count in (
        (stream.take(3), 3),
        (stream.take(30), 7),
        (stream.skip(2), 5),
        (stream.skip(2).take(4).shuffle(seed=0), 4),
        (stream.map(lambda row: row), 7),
        (stream.rename_column("img", "image"), 7),
        (numbered().take(5), 5),
        (make(7).to_iterable_dataset(num_shards=2), 7),
        (make(7).select(range(3)).to_iterable_dataset(), 3),
    ):
        assert len(opened(changed)) == count == sum(1 for _ in changed)
    for changed in (
        stream.filter(lambda row: True),
        stream.map(lambda rows: rows, batched=True),
        datasets.concatenate_datasets([stream, stream]),
        stream.repeat(2),
        numbered().skip(2),
    ):
        with pytest.raises(UserError, match=r"^max_train_samples: the streamed split 'train' does not say how many"):
            opened(changed)


def test_what_a_stream_cannot_be() -> None:
    with pytest.raises(
        UserError, match=r"^labels: column 'label' of the streamed split 'train' holds texts.*ClassLabel"
    ):
        opened(plain(["cat", "dog"]).to_iterable_dataset(), length=2)
    bad = opened(plain([0, 1, COUNT]).to_iterable_dataset(), length=3)
    with pytest.raises(UserError, match=f"^labels: image 2 of split 'train' has the label {COUNT} in column 'label'"):
        epoch_of(bad, train=False)
    empty = opened(numbered().filter(lambda row: False), length=3)
    for read in (empty.statistics, empty.fingerprint, lambda: epoch_of(empty)):
        with pytest.raises(UserError, match=r"^data: the streamed split 'train' has no image for one of the processes"):
            read()


def broken() -> datasets.IterableDataset:
    rows = [{"image": encoded(np.full((8, 8, 3), 9 * k, np.uint8)), "label": k} for k in range(8)]
    rows[5]["image"] = {"bytes": b"no image", "path": None}
    return datasets.Dataset.from_list(rows, features=FEATURES).to_iterable_dataset()


def test_images_that_cannot_be_decoded() -> None:
    with pytest.raises(UserError, match=r"^images: image 5 of split 'train' cannot be decoded"):
        epoch_of(opened(broken(), length=8), train=False)
    evaluated = labels_of(epoch_of(opened(broken(), length=8, evaluation=True, skip=True), train=False))
    assert evaluated == [0, 1, 2, 3, 4, 6, 7]
    images = opened(broken(), length=8, skip=True)
    trained = epoch_of(images)
    assert len(labels_of(trained)) == 8
    assert set(labels_of(trained)) == set(evaluated)
    assert same(trained[1:], epoch_of(images, start=1))


def digits(split: str) -> datasets.IterableDataset:
    """The bundled digits as a stream in four shards, of which the last fifth is for evaluation."""
    whole = datasets.load_dataset("parquet", data_files=str(BUNDLED_DIGITS), split="train")
    part = whole.select(range(1400)) if split == "train" else whole.select(range(1400, 1797))
    return part.to_iterable_dataset(num_shards=4)


def test_a_run_on_a_stream_goes_on_to_the_very_same_weights(tmp_path: Path) -> None:
    class PowerCutError(Exception):
        pass

    def cut() -> None:
        raise PowerCutError

    settings = {"mixup": 0.0, "cutmix": 0.0, "epochs": 2}
    build(**settings).fit(digits("train"), digits("test"), output_dir=tmp_path / "undisturbed")
    with pytest.raises(PowerCutError):
        build(**settings).fit(digits("train"), digits("test"), output_dir=tmp_path / "run", callbacks=[AtStep(8, cut)])
    build(**settings).fit(digits("train"), digits("test"), output_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_a_folder_is_streamed_by_name(tmp_path: Path) -> None:
    for split, count in (("train", 9), ("test", 4)):
        make(count).to_parquet(tmp_path / f"{split}-0.parquet")
    config = DistillConfig(streaming=True, max_train_samples=8, max_eval_samples=4)
    data = open_data(str(tmp_path), None, config, image_size=8, in_chans=3)
    assert (len(data.train), len(data.evaluation), data.class_names) == (8, 4, ["cat", "dog"])
    assert "a stream in 1 shards, 8 images an epoch" in data.notes[0]
    assert count_classes(str(tmp_path), config) == 2
    with pytest.raises(UserError, match=r"^eval_data: the stream has no split but 'train'"):
        open_data(str(tmp_path / "train-0.parquet"), None, config, image_size=8, in_chans=3)
    make(3).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"^streaming: .*saved is read as it is needed in any case"):
        open_data(str(tmp_path / "saved"), None, config, image_size=8, in_chans=3)


def test_what_a_label_of_an_evaluation_stream_means() -> None:
    def labels(values: list[Any], names: list[str], *, order_declared: bool) -> list[int]:
        known = Classes(names, len(names), "split 'train'", order_declared)
        stream = read_stream(
            Split(plain(values).to_iterable_dataset(), "test"), DistillConfig(max_eval_samples=2), [], None, known
        )
        result: list[int] = stream.table(list(stream.rows), 0).labels.tolist()
        return result

    assert labels(["dog", "cat"], ["cat", "dog"], order_declared=False) == [1, 0]
    assert labels([2, 10], ["1", "10", "2"], order_declared=False) == [2, 1]
    assert labels([1, 0], ["cat", "dog"], order_declared=True) == [1, 0]
    with pytest.raises(UserError, match=r"^labels: split 'test' has plain numbers, and it is not known which of the"):
        labels([1, 0], ["cat", "dog"], order_declared=False)


def mean_of(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [round(float(image.mean()) * 255) for images, _ in batches for image in images]


@pytest.mark.parametrize("declared", [True, False])
def test_a_stream_may_be_filtered_and_mapped(declared: bool) -> None:
    def inverted(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": PIL.Image.fromarray(255 - np.asarray(row["image"])), "label": np.int64(row["label"])}

    third = numbered().filter(lambda row: row["label"] % 3 == 0)
    evaluated = epoch_of(opened(third, length=COUNT, evaluation=True), train=False)
    assert (labels_of(evaluated), mean_of(evaluated)) == (list(range(0, COUNT, 3)), list(range(0, 9 * COUNT, 27)))
    mapped = numbered().map(inverted, features=FEATURES if declared else None)
    evaluated = epoch_of(opened(mapped, length=COUNT, evaluation=True), train=False)
    assert (labels_of(evaluated), mean_of(evaluated)) == (list(range(COUNT)), [255 - 9 * k for k in range(COUNT)])
    images = opened(mapped, length=COUNT)
    assert same(epoch_of(images)[2:], epoch_of(images, start=2))


def test_an_image_that_a_filter_cannot_decode() -> None:
    images = opened(broken().filter(lambda row: True), length=8, evaluation=True, skip=True)
    with pytest.raises(UserError, match=r"^images: an image of the streamed split 'train' cannot be decoded"):
        epoch_of(images, train=False)


def test_images_have_the_mode_that_their_column_states() -> None:
    red = [encoded(np.full((8, 8, 3), (255, 0, 0), np.uint8))] * 2
    table = datasets.Dataset.from_dict({"image": red, "label": [0, 1]})
    grey = table.cast_column("image", datasets.Image(mode="L"))
    assert np.asarray(grey[0]["image"]).tolist() == [[76] * 8] * 8  # (299 * 255 + 500) / 1000
    for stream in (grey.to_iterable_dataset(), grey.to_iterable_dataset().filter(lambda row: True)):
        ((images, _),) = epoch_of(opened(stream, length=2, evaluation=True), train=False)
        assert (images[0, :, 0, 0] * 255).tolist() == pytest.approx([76] * 3)
    for size in (8, 112):
        data = open_data(grey, grey, DistillConfig(max_train_samples=2), image_size=size, in_chans=3)
        data.evaluation.normalise = PixelNormaliser.identity(3)  # type: ignore[attr-defined]
        ((images, _),) = data.evaluation.batches(batch_size=2, seed=0, epoch=0, device="cpu", train=False)
        assert (images[0, :, 0, 0] * 255).tolist() == pytest.approx([76] * 3)


def test_a_part_of_a_stream_for_each_process_is_refused() -> None:
    part = split_dataset_by_node(numbered(shards=4), rank=0, world_size=2)
    with pytest.raises(UserError, match=r"^data: the stream of split 'train' is this process's part of the images"):
        opened(part, length=8)


def test_an_empty_stream_of_unknown_columns() -> None:
    with pytest.raises(UserError, match=r"^data: the streamed split 'train' is empty$"):
        opened(numbered().filter(lambda row: False).map(lambda row: row), length=8)
