from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from feature_gan_kd.data.batch_transforms import PixelNormaliser
from feature_gan_kd.data.decode import channel_statistics
from feature_gan_kd.data.loader_parts import check_length
from feature_gan_kd.data.user_loader import UserLoader
from feature_gan_kd.utils.errors import UserError

PIXELS = torch.randint(0, 256, (13, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BYTES = TensorDataset(PIXELS, torch.arange(13))
FLOATS = TensorDataset(PIXELS.float(), torch.arange(13))


def source(data: Any = BYTES, *, label_limit: int | None = None, **options: Any) -> UserLoader:
    loader = DataLoader(data, **{"batch_size": 5, "shuffle": True, **options})
    return UserLoader(loader, 3, None, None, label_limit, "train")


def epoch_of(batches: UserLoader, **options: int | bool) -> list[tuple[Tensor, Tensor]]:
    arguments = {"batch_size": 99, "seed": 0, "epoch": 0, "train": True, **options}
    return list(batches.batches(device="cpu", **arguments))  # type: ignore[arg-type]


def labels_of(batches: list[tuple[Tensor, Tensor]]) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"generator": torch.Generator()}])
def test_every_process_and_a_resumed_one_see_one_order(options: dict[str, Any]) -> None:
    whole = labels_of(epoch_of(source(**options)))
    assert sorted(chain(*whole)) == list(range(13))
    assert [len(batch) for batch in whole] == [5, 5, 3]
    assert labels_of(epoch_of(source(**options), start=1)) == whole[1:]
    shares = [labels_of(epoch_of(source(**options), rank=rank, world_size=4)) for rank in range(4)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    assert labels_of(epoch_of(source(**options), epoch=1)) != whole
    assert labels_of(epoch_of(source(**options), seed=1)) != whole


class NumpySampler(Sampler[int]):
    def __init__(self) -> None:
        self.generator, self.epoch = np.random.default_rng(), -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 13

    def __iter__(self) -> Iterator[int]:
        yield from self.generator.permutation(13).tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"sampler": RandomSampler(BYTES, generator=torch.Generator())},
        lambda: {"sampler": NumpySampler()},
        lambda: {
            "batch_sampler": BatchSampler(RandomSampler(BYTES, generator=torch.Generator()), 5, False),
            "batch_size": 1,
        },
    ],
)
def test_a_sampler_with_a_generator_of_its_own_resumes_in_the_same_order(make: Any) -> None:
    batches = source(shuffle=None, **make())
    whole = labels_of(epoch_of(batches))
    assert labels_of(epoch_of(batches)) == whole
    assert labels_of(epoch_of(source(shuffle=None, **make()), start=1)) == whole[1:]
    assert labels_of(epoch_of(batches, epoch=1)) != whole


def test_a_sampler_inside_a_batch_sampler_learns_the_epoch() -> None:
    sampler = NumpySampler()
    epoch_of(source(shuffle=None, batch_size=1, batch_sampler=BatchSampler(sampler, 5, False)), epoch=3)
    assert sampler.epoch == 3


def test_a_loader_that_gives_each_process_a_part_is_refused() -> None:
    half = DistributedSampler(BYTES, num_replicas=2, rank=0)
    for options in ({"sampler": half}, {"batch_sampler": BatchSampler(half, 5, False), "batch_size": 1}):
        with pytest.raises(UserError, match=r"^data: the DataLoader of split 'train' has a DistributedSampler, which"):
            source(shuffle=None, **options)
    assert len(source(shuffle=None, sampler=DistributedSampler(BYTES, num_replicas=1, rank=0))) == 13
    prepared = Accelerator(cpu=True).prepare(DataLoader(BYTES, batch_size=5))
    with pytest.raises(UserError, match=r"^data: .* is prepared by Accelerate, .*before accelerator.prepare"):
        UserLoader(prepared, 3, None, None, None, "train")


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"batch_size": 5}, (5, 3)),
        ({"batch_size": 4}, (4,)),
        ({"batch_size": 5, "drop_last": True}, (5,)),
        ({"batch_size": 99}, (13,)),
        ({"batch_size": 1}, (1,)),
        ({"batch_size": 1, "shuffle": None, "batch_sampler": BatchSampler(SequentialSampler(BYTES), 5, False)}, (5, 3)),
        ({"batch_size": 1, "shuffle": None, "batch_sampler": [[0, 1], [2]]}, ()),
    ],
)
def test_the_sizes_of_the_batches_are_known_beforehand(options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    batches = source(**options)
    assert batches.batch_sizes(99) == sizes
    if len(sizes) > 1 or sizes == (5,):
        assert {len(images) for images, _ in epoch_of(batches)} == set(sizes)


def test_the_generators_of_the_run_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    epoch_of(source())
    assert torch.equal(torch.rand(3), expected)


def test_bytes_are_normalised_and_floats_are_not() -> None:
    batches = source(shuffle=False)
    batches.normalise = PixelNormaliser((0.5,) * 3, (0.25,) * 3)
    images = torch.cat([images for images, _ in epoch_of(batches)])
    torch.testing.assert_close(images, (PIXELS / 255 - 0.5) / 0.25)
    assert source(shuffle=False).statistics() == channel_statistics(PIXELS.permute(0, 2, 3, 1))
    floats = source(FLOATS, shuffle=False)
    floats.normalise = batches.normalise
    assert torch.equal(torch.cat([images for images, _ in epoch_of(floats)]), PIXELS.float())
    assert (floats.holds_floats(), batches.holds_floats()) == (True, False)


@pytest.mark.parametrize(
    ("options", "images", "steps", "evaluation_steps"),
    [
        ({"batch_size": 5}, 13, 3, 3),
        ({"batch_size": 5, "drop_last": True}, 10, 2, 2),
        ({"batch_size": 4}, 13, 3, 4),
        ({"batch_size": 4, "drop_last": True}, 12, 3, 3),
        ({"batch_size": 13}, 13, 1, 1),
        (
            {"batch_sampler": BatchSampler(SequentialSampler(BYTES), 6, True), "batch_size": 1, "shuffle": None},
            12,
            2,
            2,
        ),
    ],
)
def test_steps_are_the_batches(options: dict[str, Any], images: int, steps: int, evaluation_steps: int) -> None:
    batches = source(**options)
    assert len(batches) == images
    assert batches.steps(99) == len(epoch_of(batches)) == steps
    assert batches.steps(99, train=False) == len(epoch_of(batches, train=False)) == evaluation_steps


def test_fingerprint_sees_the_images() -> None:
    other = PIXELS.clone()
    other[0] ^= 1
    assert source().fingerprint() == source().fingerprint()
    assert (
        source(shuffle=False).fingerprint()
        != source(TensorDataset(other, torch.arange(13)), shuffle=False).fingerprint()
    )


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(3, 8, 8), 0)] * 4)


class SizedStream(Stream):
    def __len__(self) -> int:
        return 4


def test_a_stream_with_a_length() -> None:
    batches = source(SizedStream(), batch_size=2, shuffle=None)
    assert (len(batches), batches.steps(99), len(epoch_of(batches))) == (4, 2, 2)


def test_loaders_without_length_or_images() -> None:
    with pytest.raises(UserError, match="DataLoader has no length"):
        source(Stream(), shuffle=None)
    with pytest.raises(UserError, match="DataLoader of split 'train' is empty"):
        source(batch_size=99, drop_last=True)


LABELS = torch.zeros(4, dtype=torch.int64)
IMAGES = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TensorDataset(IMAGES), "^data: batch 0 of split 'train' is not a pair of tensors"),
        (TensorDataset(IMAGES[:, :1], LABELS), r"^images: batch 0 .* shape \(4, 1, 8, 8\), expected \(n, 3, height"),
        (TensorDataset(IMAGES.long(), LABELS), "^images: batch 0 .* is torch.int64, expected uint8 or float"),
        (TensorDataset(IMAGES, LABELS.float()), "^labels: batch 0 .* torch.float32 of shape"),
        (TensorDataset(IMAGES, torch.zeros(4, 2).long()), r"^labels: batch 0 .* of shape \(4, 2\)"),
        (TensorDataset(IMAGES, LABELS - 2), "^labels: image 0 of batch 0 .* the label -2, expected 0 to 4"),
        (TensorDataset(IMAGES, LABELS + 5), "^labels: image 0 of batch 0 .* the label 5, expected 0 to 4"),
    ],
)
def test_bad_batches_are_one_line(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        epoch_of(source(data, label_limit=5))
    assert "\n" not in str(caught.value)


def test_a_single_image_cannot_be_trained_on() -> None:
    with pytest.raises(UserError, match="batch 0 is a single image"):
        epoch_of(source(batch_size=1))


class Switching(TensorDataset):
    """Gives floats from some image on and bytes before it, or the other way round."""

    def __init__(self, *kinds: torch.dtype) -> None:
        super().__init__(PIXELS, torch.arange(13))
        self.kinds = kinds

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return PIXELS[index].to(self.kinds[index >= 10]), torch.tensor(index)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ((torch.uint8, torch.float32), r"holds floats, the first batch held bytes \(uint8\), and only bytes are"),
        ((torch.float32, torch.uint8), r"holds bytes \(uint8\), the first batch held floats, and only bytes are"),
    ],
)
def test_all_batches_are_of_one_kind(kinds: tuple[torch.dtype, ...], message: str) -> None:
    batches = source(Switching(*kinds), shuffle=False)
    assert batches.holds_floats() == kinds[0].is_floating_point
    with pytest.raises(UserError, match=f"^images: batch 2 of split 'train' {message}"):
        epoch_of(batches)
    with pytest.raises(UserError, match=f"^images: batch 2 of split 'train' {message}"):
        epoch_of(batches, start=2)
    assert len(epoch_of(source(Switching(torch.float32, torch.float64), shuffle=False))) == 3


class Short(Sampler[int]):
    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        yield from range(13)


DROPS = "leaves out the last 3 of 13 images, and each image is to be evaluated: give one with drop_last=False"
EXCEEDS = "gives more than the 2 batches that its length says, and each image is to be evaluated: correct __len__"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5, "drop_last": True}, DROPS),
        ({"batch_sampler": BatchSampler(SequentialSampler(BYTES), 5, True)}, DROPS),
        ({"batch_size": 5, "sampler": Short()}, EXCEEDS),
        ({"batch_sampler": BatchSampler(Short(), 5, False)}, EXCEEDS),
        ({"sampler": WeightedRandomSampler([0.0] * 4 + [1.0] + [0.0] * 8, 13)}, "gives image 4 more than once"),
        ({"batch_sampler": [[0, 1], [2, 0]]}, "gives image 0 more than once, and each image is to be evaluated once"),
    ],
)
def test_no_image_is_left_out_of_an_evaluation(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^eval_data: the DataLoader of split 'test' {message}"):
        check_length(DataLoader(BYTES, **options), "test", "eval_data", evaluation=True)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 13, "drop_last": True},
        {"batch_size": 5, "shuffle": True},
        {"batch_size": 5, "sampler": SubsetRandomSampler(range(7))},
        {"batch_size": None},
        {"batch_sampler": [[0, 1], [2]]},
    ],
)
def test_an_evaluation_of_all_that_a_sampler_chooses(options: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    check_length(DataLoader(BYTES, **options), "test", "eval_data", evaluation=True)
    assert torch.equal(torch.get_rng_state(), state)
    check_length(DataLoader(SizedStream(), batch_size=2), "test", "eval_data", evaluation=True)


def test_rectangles_are_refused() -> None:
    """Resized to the models' squares, they would be squeezed in silence."""
    loader = DataLoader(TensorDataset(torch.rand(6, 3, 8, 16), torch.arange(6)), batch_size=3)
    with pytest.raises(UserError, match=r"^images: batch 0 of split .* has 8x16 pixels, expected squares"):
        UserLoader(loader, 3, None, None, None, "train").holds_floats()


def test_the_first_batch_is_read_once() -> None:
    read: list[int] = []

    class Counting(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Counting(PIXELS, torch.arange(len(PIXELS))), batch_size=5)
    source = UserLoader(loader, 3, None, None, None, "train")
    assert not source.holds_floats()
    source.fingerprint()
    assert read == [0, 1, 2, 3, 4]
    source.statistics()
    assert read[5:] == list(range(len(PIXELS)))


class Told(IterableDataset[Any]):
    """Gives `given` images and says that it has `told`; all of them in each worker."""

    def __init__(self, given: int, told: int) -> None:
        self.given, self.told = given, told

    def __len__(self) -> int:
        return self.told

    def __iter__(self) -> Iterator[Any]:
        return ((PIXELS[k], k) for k in range(self.given))


FEWER = "gives 3 batches, its length says 4: correct __len__ of its data set"


@pytest.mark.parametrize("train", [True, False])
def test_a_loader_that_gives_fewer_batches_than_it_says(train: bool) -> None:
    batches = source(Told(10, 13), batch_size=4, shuffle=None)
    with pytest.raises(UserError, match=f"^data: the DataLoader of split 'train' {FEWER}$"):
        epoch_of(batches, train=train)
    with pytest.raises(UserError, match=f"^data: the DataLoader of split 'train' {FEWER}$"):
        batches.statistics()
    assert len(epoch_of(source(Told(10, 10), batch_size=4, shuffle=None), train=train)) == 3


def test_a_loader_that_gives_more_batches_than_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """In training an endless data set may say how long an epoch is."""
    batches = source(Told(13, 8), batch_size=4, shuffle=None)
    for _ in range(2):
        assert labels_of(epoch_of(batches)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert capsys.readouterr().err == (
        "data: the DataLoader of split 'train' gives more than its 2 batches, which end an epoch\n"
    )
    with pytest.raises(UserError, match="gives more than the 2 batches that its length says, and each image is to be"):
        epoch_of(batches, train=False)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("evaluation", [True, False])
def test_workers_that_all_read_the_same_images(evaluation: bool) -> None:
    loader = DataLoader(Told(8, 8), batch_size=1, num_workers=2)
    if not evaluation:
        check_length(loader, "train", "data", evaluation=False)  # counted as it is read
        return
    with pytest.raises(UserError, match=r"more than the 8 batches .* or divide its images among the workers"):
        check_length(loader, "test", "eval_data", evaluation=True)


class Long(Sampler[int]):
    def __len__(self) -> int:
        return 13

    def __iter__(self) -> Iterator[int]:
        yield from range(8)


@pytest.mark.parametrize("evaluation", [True, False])
def test_a_sampler_that_gives_fewer_images_than_it_says(evaluation: bool) -> None:
    loader = DataLoader(BYTES, batch_size=5, sampler=Long())
    with pytest.raises(UserError, match=r"gives 2 batches, its length says 3: correct __len__ of its sampler$"):
        check_length(loader, "train", "data", evaluation=evaluation)
    check_length(DataLoader(BYTES, batch_size=5, sampler=Short()), "train", "data", evaluation=False)


def test_a_loader_without_a_batch() -> None:
    with pytest.raises(UserError, match=r"^data: the DataLoader of split 'train' gives no batch$"):
        source(Told(0, 8), batch_size=4, shuffle=None).holds_floats()


def test_a_resumed_run_compares_all_labels_and_the_number_of_images() -> None:
    other, more = torch.arange(13), torch.cat([PIXELS, PIXELS])
    other[5:] = 0
    options: dict[str, Any] = {"shuffle": False}
    prints = [
        source(data, **options).fingerprint()
        for data in (BYTES, TensorDataset(PIXELS, other), TensorDataset(more, torch.arange(26)), BYTES)
    ]
    assert prints[0] == prints[3]
    assert len(set(prints)) == 3


def test_images_of_pil_are_no_batch() -> None:
    data: Any = [(PIL.Image.new("RGB", (8, 8)), 0)] * 4
    with pytest.raises(UserError, match=r"^data: the DataLoader of split 'train' cannot make batches of PIL.Image.Ima"):
        source(data).holds_floats()
