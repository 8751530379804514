from __future__ import annotations

import random
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.batch_transforms import CropFlip, PixelNormaliser
from feature_gan_kd.data.decode import channel_statistics
from feature_gan_kd.data.image_transforms import ImageTransform
from feature_gan_kd.data.items import TableImages, TorchDatasetImages
from feature_gan_kd.data.lazy import LazyImages
from feature_gan_kd.data.rng import permutation
from feature_gan_kd.data.sources import Split
from feature_gan_kd.data.table import read_table
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import make, random_images

COUNT, SIZE = 13, 16
LARGE = make(COUNT, size=24)


def streamed(num_workers: int = 0, data: Any = LARGE, skip: bool = False) -> LazyImages:
    transform = ImageTransform(SIZE, 3, resized_crop=True)
    table = read_table(Split(data, "train"), DistillConfig(), [], None)
    return LazyImages(TableImages(table, transform), transform, None, num_workers, skip=skip)


def of_torch(
    data: Any, *, label_limit: int | None = None, augment: CropFlip | None = None, skip: bool = False
) -> LazyImages:
    transform = ImageTransform(8, 3, resized_crop=False)
    items = TorchDatasetImages(data, transform, None, None, label_limit, "train", "data", torch.arange(len(data)))
    return LazyImages(items, transform, augment, 0, skip=skip)


def epoch_of(images: LazyImages, **options: int | bool) -> list[tuple[Tensor, Tensor]]:
    arguments = {"batch_size": 4, "seed": 0, "epoch": 0, "train": True, **options}
    return list(images.batches(device="cpu", **arguments))  # type: ignore[arg-type]


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(first), joined(second), strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_the_images_do_not_depend_on_workers_processes_or_start() -> None:
    whole = epoch_of(streamed())
    assert joined(whole)[0].shape == (12, 3, SIZE, SIZE)  # 13 images in fours leave a single one
    assert same(whole, epoch_of(streamed(num_workers=2)))
    assert same(whole[2:], epoch_of(streamed(), start=2))
    shares = [epoch_of(streamed(), rank=rank, world_size=3) for rank in range(3)]
    assert same(whole, [joined([part[k] for part in shares]) for k in range(3)])


def test_each_image_once_and_epochs_differ() -> None:
    images = streamed()
    order = permutation(COUNT, 0, 0)[:12]
    first, second = joined(epoch_of(images)), joined(epoch_of(images, epoch=1))
    assert torch.equal(first[1], images.items.table.labels[order])  # type: ignore[attr-defined]
    assert not torch.equal(first[0].sort(0).values, second[0].sort(0).values)


def test_evaluation_is_timms_and_counts_each_image_once() -> None:
    from timm.data import create_transform

    transform = create_transform(SIZE, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3)
    images = streamed()
    images.normalise = PixelNormaliser((0.5,) * 3, (0.25,) * 3)
    shares = [epoch_of(images, train=False, rank=rank, world_size=2) for rank in range(2)]
    pixels, labels = joined([joined([part[k] for part in shares]) for k in range(4)])
    assert labels.tolist() == LARGE["fine_label"][:]
    expected = torch.stack([transform(image) for image in LARGE["img"]])
    torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-5)


def test_reading_leaves_the_generators_alone() -> None:
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(3), random.random()
    torch.manual_seed(0)
    random.seed(0)
    epoch_of(streamed())
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def broken(*rows: int) -> Any:
    """The images, those of some rows undecodable."""
    table = LARGE.cast_column("img", LARGE.features["img"].__class__(decode=False)).to_list()
    for row in rows:
        table[row]["img"] = {"bytes": b"broken", "path": None}
    return type(LARGE).from_list(table, features=LARGE.features)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_undecodable_image_is_named_in_one_line(num_workers: int) -> None:
    with pytest.raises(UserError, match=r"^images: image 5 of split 'train' cannot be decoded") as caught:
        epoch_of(streamed(num_workers, broken(5)), train=False)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
def test_in_training_the_next_image_stands_in_for_a_bad_one(capfd: pytest.CaptureFixture[str]) -> None:
    """All other images are as ever, with any number of workers and processes and wherever the epoch begins."""
    images = streamed(data=broken(5, 11, 12), skip=True)
    whole, clean = epoch_of(images), epoch_of(streamed())
    order = permutation(COUNT, 0, 0)[:12]
    stand_in = {5: 6, 11: 0, 12: 0}
    labels = torch.tensor(LARGE["fine_label"][:])
    assert joined(whole)[1].tolist() == [int(labels[stand_in.get(k, k)]) for k in order.tolist()]
    good = torch.tensor([k not in stand_in for k in order.tolist()])
    assert torch.equal(joined(whole)[0][good], joined(clean)[0][good])
    seen = int((~good).sum())
    assert capfd.readouterr().err == (
        f"images that cannot be decoded: {seen}, replaced by the next; the first is image 5 of split 'train'\n"
    )
    assert same(whole[1:], epoch_of(images, start=1))
    assert same(whole, epoch_of(streamed(2, broken(5, 11, 12), skip=True)))
    shares = [epoch_of(streamed(data=broken(5, 11, 12), skip=True), rank=rank, world_size=2) for rank in range(2)]
    assert same(whole, [joined([part[k] for part in shares]) for k in range(3)])
    assert "2, replaced by the next by process" in capfd.readouterr().err
    epoch_of(images, epoch=1)
    assert capfd.readouterr().err == ""  # said once


def test_in_evaluation_a_bad_image_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    kept = [k for k in range(COUNT) if k not in (0, 5)]
    _, labels = joined(epoch_of(streamed(data=broken(0, 5), skip=True), train=False))
    assert labels.tolist() == [LARGE["fine_label"][k] for k in kept]
    assert "2, left out; the first is image 0" in capfd.readouterr().err
    pixels = torch.stack([streamed().items[k, None][0] for k in kept])  # type: ignore[index]
    assert streamed(data=broken(0, 5), skip=True).statistics() == channel_statistics(pixels)


def test_skipping_passes_over_nothing_else() -> None:
    with pytest.raises(UserError, match="labels: image 0"):
        epoch_of(of_torch(Pictures(label=-2), skip=True))
    nothing = streamed(data=broken(*range(COUNT)), skip=True)
    with pytest.raises(UserError, match="cannot be decoded"):
        epoch_of(nothing)
    with pytest.raises(UserError, match="none of the 13 images of split 'train' that were tried can be decoded"):
        nothing.statistics()


def test_statistics_of_a_few_images_are_those_of_all_where_all_are_few() -> None:
    images = streamed()
    pixels = torch.stack([images.items[k, None][0] for k in range(COUNT)])  # type: ignore[index]
    assert images.statistics() == channel_statistics(pixels)
    assert images.fingerprint() == streamed().fingerprint()
    assert images.fingerprint() != streamed(data=make(COUNT, size=24, seed=1)).fingerprint()


class Pictures(Dataset[tuple[Any, int]]):
    """PIL images, or what `change` makes of them."""

    def __init__(self, change: Any = lambda image: image, label: Any = 0) -> None:
        self.images = [PIL.Image.fromarray(image) for image in random_images(9)]
        self.change = change
        self.label = label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.change(self.images[index]), self.label


def test_pictures_of_a_torch_data_set_are_cropped_and_flipped() -> None:
    augment = CropFlip(1, flip=True)
    images, _ = joined(epoch_of(of_torch(Pictures(), augment=augment)))
    order = permutation(9, 0, 0)[:8]
    pixels = torch.from_numpy(np.stack(random_images(9)))[order]
    expected = augment(pixels, 0, 0, order).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(images, expected)
    assert of_torch(Pictures()).items.holds_pil_images()  # type: ignore[attr-defined]


def test_a_broken_file_of_a_torch_data_set_is_named() -> None:
    def unreadable(image: Any) -> Any:
        raise PIL.UnidentifiedImageError("cannot identify image file")

    images = of_torch(Pictures(change=unreadable))
    assert images.items.holds_pil_images()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"^images: image 0 of split 'train' cannot be decoded"):
        epoch_of(images, train=False)

    def mistaken(image: Any) -> Any:
        raise KeyError("a mistake in the data set's own code")

    with pytest.raises(KeyError):
        epoch_of(of_torch(Pictures(change=mistaken)), train=False)


def test_float_tensors_stay_and_bytes_are_normalised() -> None:
    tensors = torch.randn(6, 3, 8, 8)
    floats = of_torch(TensorDataset(tensors, torch.arange(6)))
    floats.normalise = PixelNormaliser((0.5,) * 3, (0.5,) * 3)
    assert torch.equal(joined(epoch_of(floats, train=False))[0], tensors)
    assert floats.holds_floats()
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    whole = of_torch(TensorDataset(pixels, torch.arange(6)))
    assert not whole.items.holds_pil_images()  # type: ignore[attr-defined]
    torch.testing.assert_close(joined(epoch_of(whole, train=False))[0], pixels / 255)
    assert not whole.holds_floats()
    assert whole.statistics() == channel_statistics(pixels.permute(0, 2, 3, 1))


def test_the_users_random_transforms_follow_seed_epoch_and_index() -> None:
    data = Pictures(
        change=lambda image: torch.full((3, 8, 8), random.random() + np.random.rand() + torch.rand(()).item())
    )
    whole = epoch_of(of_torch(data))
    assert same(whole, epoch_of(of_torch(data)))
    assert same(whole[1:], epoch_of(of_torch(data), start=1))
    assert not same(whole, epoch_of(of_torch(data), epoch=1))


def test_labels_may_be_of_any_whole_number_type() -> None:
    for label in (3, np.int32(3), torch.tensor(3)):
        assert joined(epoch_of(of_torch(Pictures(label=label))))[1].tolist() == [3] * 8


def test_an_empty_share() -> None:
    images, labels = epoch_of(of_torch(Pictures()), batch_size=7, rank=0, world_size=5)[-1]
    assert (images.shape, labels.shape) == ((0, 3, 8, 8), (0,))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Pictures(label=-2), r"^labels: image 0 of split 'train' has the label -2, expected 0 to 4$"),
        (Pictures(label=5), r"^labels: image 0 .* the label 5, expected 0 to 4$"),
        (Pictures(label=0.5), r"^labels: image 0 .* the label 0.5"),
        (Pictures(label="a"), r"^labels: image 0 .* the label 'a'"),
        (
            Pictures(change=np.asarray),
            r"^images: image 0 .* is ndarray, expected a PIL image or a uint8 or float tensor",
        ),
        (Pictures(change=lambda _: torch.zeros(3, 8, 8).long()), r"^images: image 0 .* is torch.int64, expected"),
        (Pictures(change=lambda _: torch.zeros(1, 8, 8)), r"^images: image 0 .* the shape \(1, 8, 8\), expected \(3, "),
        (
            Pictures(change=lambda _: torch.zeros(3, *[random.randint(1, 50)] * 2)),
            "^images: tensors of different shapes",
        ),
        (
            TensorDataset(torch.zeros(4, 3, 8, 8)),
            "^data: image 0 of split 'train' is not a pair of an image and a label: give both, or set labels=False",
        ),
    ],
)
def test_bad_items_are_one_line(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        epoch_of(of_torch(data, label_limit=5), train=False) if "shapes" not in message else epoch_of(of_torch(data))
    assert "\n" not in str(caught.value)


class Kinds(Dataset[Any]):
    """Images of the given types, in turn or in halves."""

    def __init__(self, *kinds: torch.dtype) -> None:
        self.kinds = kinds

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3, 8, 8, dtype=self.kinds[index]), 0


@pytest.mark.parametrize("kinds", [(torch.uint8, torch.float32) * 4, (torch.uint8,) * 4 + (torch.float32,) * 4])
def test_floats_and_bytes_in_one_data_set_are_refused(kinds: tuple[torch.dtype, ...]) -> None:
    """In one batch, and in batches of one kind each."""
    with pytest.raises(UserError, match=r"^images: some are tensors of floats and others of bytes \(uint8\), and only"):
        epoch_of(of_torch(Kinds(*kinds)), train=False)
    assert len(epoch_of(of_torch(Kinds(*[torch.float32, torch.float64] * 4)), train=False)) == 2


def test_all_labels_that_a_data_set_lists_count_for_the_fingerprint() -> None:
    images = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
    labels = torch.zeros(200, dtype=torch.int64)
    other = labels.clone()
    other[1] = 1  # of 50 that are looked at, the second is 4
    prints = {of_torch(TensorDataset(images, own)).fingerprint() for own in (labels, other, labels)}
    assert len(prints) == 2
