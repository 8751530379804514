from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feature_gan_kd.data.batch_transforms import CropFlip, PixelNormaliser
from feature_gan_kd.data.batches import batch_bounds, count_steps, rank_slice
from feature_gan_kd.data.in_memory import MemoryImages
from feature_gan_kd.data.rng import permutation

COUNT, SIZE = 37, 8


def source(channels: int = 3, augment: CropFlip | None = None) -> MemoryImages:
    pixels = torch.randint(0, 256, (COUNT, SIZE, SIZE, channels), generator=torch.Generator().manual_seed(0))
    return MemoryImages(pixels.to(torch.uint8), torch.arange(COUNT), augment)


def epoch_of(images: MemoryImages, **options: int | bool) -> list[tuple[Tensor, Tensor]]:
    arguments = {"batch_size": 8, "seed": 0, "epoch": 0, "train": True, **options}
    return list(images.batches(device="cpu", **arguments))  # type: ignore[arg-type]


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


@given(st.integers(0, 300), st.integers(1, 9))
def test_shares_partition_a_batch(size: int, world: int) -> None:
    parts = [list(range(size))[rank_slice(size, rank, world)] for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 200), st.integers(2, 20), st.booleans())
def test_steps_are_the_batches_and_no_training_batch_has_one_image(length: int, size: int, train: bool) -> None:
    bounds = list(batch_bounds(length, size, train=train))
    assert len(bounds) == count_steps(length, size, train=train)
    covered = [index for begin, end in bounds for index in range(begin, end)]
    assert covered == list(range(length - (train and length % size == 1)))
    assert not (train and any(end - begin == 1 for begin, end in bounds))


def test_each_image_once_in_an_epoch_in_the_order_of_seed_and_epoch() -> None:
    for seed, epoch in [(0, 0), (0, 1), (5, 0)]:
        _, labels = joined(epoch_of(source(), seed=seed, epoch=epoch))
        assert labels.tolist() == permutation(COUNT, seed, epoch).tolist()


def test_epochs_differ_in_order_and_in_augmentation() -> None:
    images = source(augment=CropFlip(2, flip=True))
    (first, first_labels), (second, second_labels) = joined(epoch_of(images)), joined(epoch_of(images, epoch=1))
    assert not torch.equal(first_labels, second_labels)
    assert not torch.equal(first[first_labels.argsort()], second[second_labels.argsort()])


@pytest.mark.parametrize("world", [2, 3, 11])
@pytest.mark.parametrize("train", [True, False])
def test_the_processes_shares_make_up_the_batches_of_one_process(world: int, train: bool) -> None:
    images = source(augment=CropFlip(2, flip=True))
    whole = epoch_of(images, train=train)
    shares = [epoch_of(images, train=train, rank=rank, world_size=world) for rank in range(world)]
    assert {len(part) for part in shares} == {len(whole)}
    for number, batch in enumerate(whole):
        parts = joined([part[number] for part in shares])
        assert torch.equal(parts[0], batch[0])
        assert torch.equal(parts[1], batch[1])


def test_an_empty_share_has_the_shape_of_an_image() -> None:
    images, labels = epoch_of(source(augment=CropFlip(2, flip=True)), rank=0, world_size=6)[-1]
    assert images.shape == (0, 3, SIZE, SIZE)
    assert labels.shape == (0,)


def test_an_epoch_that_is_resumed_goes_on_as_it_was() -> None:
    images = source(augment=CropFlip(2, flip=True))
    whole = joined(epoch_of(images)[3:])
    rest = joined(epoch_of(images, start=3))
    assert torch.equal(whole[0], rest[0])
    assert torch.equal(whole[1], rest[1])
    assert epoch_of(images, start=images.steps(8)) == []


def test_evaluation_is_in_order_and_not_augmented() -> None:
    images = source(augment=CropFlip(2, flip=True))
    pixels, labels = joined(epoch_of(images, train=False, batch_size=9))
    assert labels.tolist() == list(range(COUNT))
    assert torch.equal((pixels * 255).round().to(torch.uint8), images.pixels.permute(0, 3, 1, 2))
    assert images.steps(9, train=False) == 5
    assert images.steps(9) == 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("padding", "flip"), [(0, True), (1, False), (3, True)])
def test_augmented_images_are_windows_of_the_padded_image(channels: int, padding: int, flip: bool) -> None:
    pixels = source(channels).pixels
    augment, indices = CropFlip(padding, flip), torch.arange(COUNT) * 7
    top, left, mirrored = augment.draw(3, 4, indices)
    for k, image in enumerate(augment(pixels, 3, 4, indices)):
        padded = torch.zeros(SIZE + 2 * padding, SIZE + 2 * padding, channels, dtype=torch.uint8)
        padded[padding : padding + SIZE, padding : padding + SIZE] = pixels[k]
        if mirrored[k]:
            padded = torch.flip(padded, [1])
        assert torch.equal(image, padded[top[k] : top[k] + SIZE, left[k] : left[k] + SIZE])


def test_every_window_is_drawn_equally_often_and_half_are_mirrored() -> None:
    top, left, mirrored = CropFlip(2, flip=True).draw(0, 0, torch.arange(50_000))
    counts = torch.bincount((top * 5 + left) * 2 + mirrored, minlength=50)
    assert len(counts) == 50
    assert (counts / 1000 - 1).abs().max() < 0.2  # over 6 standard deviations
    assert CropFlip(2, flip=False).draw(0, 0, torch.arange(100))[2].sum() == 0


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalisation_is_the_formula_in_the_memory_order_asked_for(channels_last: bool) -> None:
    pixels = source().pixels
    mean, std = (0.1, 0.5, 0.9), (0.2, 1.0, 0.3)
    result = PixelNormaliser(mean, std, channels_last)(pixels)
    expected = (pixels.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    torch.testing.assert_close(result.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)
    assert result.dtype == torch.float32


def test_fingerprint_sees_images_and_labels() -> None:
    images = source()
    same, other, relabelled = source(), source(), source()
    other.pixels[5, 0, 0, 0] ^= 1
    relabelled.labels[5] = 0
    assert images.fingerprint() == same.fingerprint()
    assert len({images.fingerprint(), other.fingerprint(), relabelled.fingerprint()}) == 3
