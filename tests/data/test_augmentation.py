"""timm's augmentations, own transforms and random erasing: what they do, what decides them, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from timm.data import create_transform, resolve_data_config
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.augmentation import check_auto_augment, evaluation_crop_pct
from feature_gan_kd.data.batch_transforms import CropFlip, Erasing
from feature_gan_kd.data.image_transforms import ImageChanges, ImageTransform, describe_transform
from feature_gan_kd.data.lazy import LazyImages
from feature_gan_kd.data.open import Data, open_data
from feature_gan_kd.data.rng import ERASE, item_seeds, seeded
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import make, random_images

TABLE = make(13, size=12, labels=[0] * 9 + [1] * 4)
STATED = Normalisation((0.5,) * 3, (0.25,) * 3)


def opened(data: Any = TABLE, size: int = 8, own: Any = None, **settings: Any) -> Data:
    """Training images, with others to evaluate on."""
    return open_data(
        data,
        make(6, size=12, seed=1),
        DistillConfig(**settings),
        image_size=size,
        in_chans=3,
        stated=STATED,
        train_transform=own,
    )


def epoch_of(data: Data, **options: Any) -> list[tuple[Tensor, Tensor]]:
    arguments = {"batch_size": 4, "seed": 0, "epoch": 0, "train": True, **options}
    return list(data.train.batches(device="cpu", **arguments))


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(joined(first), joined(second), strict=True))


def noisy(image: Any) -> Any:
    """A transform of the user's own that draws from all three generators."""
    assert isinstance(image, PIL.Image.Image)
    pixels = torch.from_numpy(np.asarray(image.resize((8, 8))).copy()).permute(2, 0, 1)
    return (pixels / 255 + random.random() + np.random.rand() + torch.rand(())).float()


EVERYTHING: dict[str, Any] = {"aa": "rand-m9-mstd0.5", "reprob": 0.5, "vflip": 0.5, "balanced_sampling": True}
WAYS: dict[str, dict[str, Any]] = {
    "in memory": {"reprob": 0.5, "vflip": 0.5, "balanced_sampling": True},
    "image by image": EVERYTHING,
    "augmix, jitter": {"aa": "3a", "color_jitter": 0.4, "reprob": 1, "remode": "const", "recount": 3},
    "resized-crop": {**EVERYTHING, "augmentation": "resized-crop", "scale": (0.3, 0.9), "ratio": (0.9, 1.2)},
    "own": {"own": noisy, "reprob": 0.5, "balanced_sampling": True},
}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_the_images_do_not_depend_on_workers_processes_or_start(settings: dict[str, Any]) -> None:
    whole = epoch_of(opened(**settings))
    assert joined(whole)[0].shape == (12, 3, 8, 8)  # 13 images in fours leave a single one
    assert same(whole, epoch_of(opened(**settings)))
    assert same(whole[2:], epoch_of(opened(**settings), start=2))
    for world in (2, 3):
        shares = [epoch_of(opened(**settings), rank=rank, world_size=world) for rank in range(world)]
        assert same(whole, [joined([part[k] for part in shares]) for k in range(3)])
    assert same(whole, epoch_of(opened(**settings, num_workers=2)))
    for other in ({"epoch": 1}, {"seed": 1}):
        images, _ = joined(epoch_of(opened(**settings), **other))
        assert not torch.equal(images.flatten(1).sort(0).values, joined(whole)[0].flatten(1).sort(0).values)


def test_a_stream_is_augmented_too() -> None:
    stream = TABLE.to_iterable_dataset()
    settings = {**EVERYTHING, "max_train_samples": 12}
    del settings["balanced_sampling"]
    whole = epoch_of(opened(stream, **settings))
    assert same(whole[1:], epoch_of(opened(stream, **settings), start=1))
    plain = epoch_of(opened(stream, max_train_samples=12, augmentation="crop"))
    assert torch.equal(joined(whole)[1], joined(plain)[1])
    assert not same(whole, plain)
    own = epoch_of(opened(stream, own=noisy, max_train_samples=12))
    assert joined(own)[0].max() > 1.5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("augmentation", ["crop-flip", "resized-crop"])
def test_a_plain_view_has_the_same_crop_and_flip(augmentation: str, stream: bool) -> None:
    """It lies behind the other view, which is what it is without a plain one."""
    data = TABLE.to_iterable_dataset() if stream else TABLE
    shared: dict[str, Any] = {"augmentation": augmentation, "max_train_samples": 12}
    changes: dict[str, Any] = {"aa": "rand-m9", "reprob": 0.5}
    both, _ = joined(epoch_of(opened(data, **shared, **changes, source_view="plain")))
    assert both.shape == (12, 6, 8, 8)
    assert torch.equal(both[:, :3], joined(epoch_of(opened(data, **shared, **changes)))[0])
    assert torch.equal(both[:, 3:], joined(epoch_of(opened(data, **shared)))[0])
    assert not torch.equal(both[:, 3:], both[:, :3])
    images, _ = next(iter(opened(data, **shared, **changes, source_view="plain").evaluation.batches(**EVALUATION)))
    assert images.shape == (4, 3, 8, 8)


def test_repeated_images_of_a_balanced_epoch_differ() -> None:
    keys_of_one: dict[tuple[float, ...], int] = {}
    images, labels = joined(epoch_of(opened(aa="rand-m9", augmentation="crop", balanced_sampling=True), batch_size=13))
    assert torch.bincount(labels).tolist() in ([6, 7], [7, 6])
    for image in images[labels == 1]:  # of 4 images, some come twice
        keys_of_one[tuple(image.flatten().tolist())] = 1
    assert len(keys_of_one) >= 6


def test_evaluation_is_never_augmented() -> None:
    plain, augmented = opened(), opened(**EVERYTHING)
    for one, other in zip(*(list(data.evaluation.batches(**EVALUATION)) for data in (plain, augmented)), strict=True):
        assert torch.equal(one[0], other[0])


EVALUATION: dict[str, Any] = {"batch_size": 4, "seed": 0, "epoch": 0, "device": "cpu", "train": False}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        ImageChanges(),
        ImageChanges(aa="rand-m9-mstd0.5-inc1"),
        ImageChanges(aa="augmix-m5-w2"),
        ImageChanges(aa="original", vflip=0.5, scale=(0.5, 0.6), ratio=(1.0, 1.5)),
        ImageChanges(color_jitter=0.4),
        ImageChanges(aa="3a", color_jitter=0.4),
    ],
)
def test_resized_crop_is_timms(changes: ImageChanges, channels: int) -> None:
    """The pixels of timm's whole transform, under the same draws."""
    mean = (0.485, 0.456, 0.406)
    timms = create_transform(
        16,
        is_training=True,
        interpolation="bilinear",
        normalize=False,
        auto_augment=changes.aa,
        color_jitter=changes.color_jitter or None,
        vflip=changes.vflip,
        scale=changes.scale,
        ratio=changes.ratio,
        mean=mean if channels == 3 else (sum(mean) / 3,),
    )
    ours = ImageTransform(16, channels, resized_crop=True, interpolation="bilinear", changes=changes)
    image = PIL.Image.fromarray(random_images(1, 40)[0]).convert("RGB" if channels == 3 else "L")
    for seed in range(12):
        with seeded(seed):
            expected = timms(image)
        with seeded(seed):
            assert torch.equal(ours(image, train=True), expected.permute(1, 2, 0))


def test_small_images_are_changed_before_they_are_cropped() -> None:
    data = opened(aa="rand-m9", augmentation="crop-flip")
    assert isinstance(data.train, LazyImages)
    assert data.train.augment == CropFlip(1, flip=True)
    assert any("augmented image by image" in note for note in data.notes)


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erasing_is_timms_on_normalised_images(mode: str) -> None:
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 5
    indices = torch.arange(40) * 3
    erased = Erasing(0.5, mode, 2, 3)(images.clone(), 7, 2, indices)
    timms = RandomErasing(0.5, mode=mode, max_count=2, device="cpu")
    for seed, before, after in zip(item_seeds(7, 2, indices, ERASE), images, erased, strict=True):
        with seeded(seed):
            assert torch.equal(timms(before.clone()), after)
    changed = (images != erased).flatten(1).any(1)
    assert 10 < changed.sum() < 30
    if mode == "const":
        assert (erased[images != erased] == 0).all()


def test_erasing_comes_after_normalisation() -> None:
    images, _ = joined(epoch_of(opened(reprob=1.0, remode="const", augmentation="crop")))
    assert ((images == 0).all(1).flatten(1).sum(1) > 0).all()  # no byte is normalised to 0 with a mean of 0.5


def test_upside_down() -> None:
    images, indices = torch.randint(0, 256, (3000, 4, 4, 3), dtype=torch.uint8), torch.arange(3000)
    turned = CropFlip(0, flip=False, vflip=0.25)(images, 0, 0, indices)
    drawn = CropFlip(0, flip=False, vflip=0.25).draw_vertical(0, 0, indices)
    assert 0.22 < drawn.float().mean() < 0.28
    assert torch.equal(turned, torch.where(drawn[:, None, None, None], images.flip(1), images))
    always = CropFlip(1, flip=True, vflip=1.0)(images, 0, 0, indices)
    assert torch.equal(always, CropFlip(1, flip=True)(images, 0, 0, indices).flip(1))


KNOWN = "rand-m9-mstd0.5 rand-m9-n3-mstd0.5-inc1 rand-mstd1-tweights rand-m7-mstd101-p0.7-mmax20 rand-m9-t3aw"
KNOWN += " augmix-m3-w2-d1-b1 v0 v0r-mstd0.5 original originalr 3a"


@pytest.mark.parametrize("notation", KNOWN.split())
def test_what_timm_knows(notation: str) -> None:
    check_auto_augment(notation)


@pytest.mark.parametrize(
    ("notation", "line"),
    [
        ("randaug-m9", "timm knows no 'randaug-m9', the closest are rand"),
        ("Rand-m9", "timm knows no 'Rand-m9', the closest are rand:"),
        ("", "timm knows no '', the closest are rand, augmix, v0"),
        ("rand-x9", "'x9' in 'rand-x9' is not allowed, expected mNUMBER"),
        ("rand-m", "'m' in 'rand-m' is not allowed"),
        ("rand-m9-loud", "'loud' in 'rand-m9-loud' is not allowed"),
        ("rand-tfoo", "'tfoo' in 'rand-tfoo' is not allowed"),
        ("rand-m9.5", "timm cannot use 'rand-m9.5' (invalid literal"),
        ("rand-n99-tweights", "timm cannot use 'rand-n99-tweights' (Cannot take a larger sample"),
        ("original-m9", "'m9' in 'original-m9' is not allowed, expected mstdNUMBER"),
        ("augmix-n2", "'n2' in 'augmix-n2' is not allowed"),
    ],
)
def test_what_timm_does_not_know(notation: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_auto_augment(notation)
    assert str(caught.value).startswith(f"aa: {line}")
    assert "\n" not in str(caught.value)


class Pictures(Dataset[tuple[Any, int]]):
    """PIL images, as torchvision's data sets give them."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return PIL.Image.fromarray(random_images(10, size=12)[index]), index % 2


TENSORS = TensorDataset(torch.randn(10, 3, 8, 8), torch.arange(10) % 2)


@pytest.mark.parametrize("data", [TABLE, Pictures()], ids=["table", "torch"])
def test_own_transforms_see_whole_pictures(data: Any) -> None:
    seen = []

    def own(image: Any) -> Any:
        seen.append(image.size)
        return image.crop((0, 0, 5, 5))

    images, _ = joined(epoch_of(opened(data, own=own)))
    assert set(seen) == {(12, 12)}
    assert images.shape[1:] == (3, 8, 8)  # what is left has another size and is resized


def test_own_transforms_of_torchvision_may_give_floats() -> None:
    chain = transforms.Compose(
        [
            transforms.RandomResizedCrop(8),
            transforms.ToTensor(),
            transforms.Normalize(STATED.mean, STATED.std),
        ]
    )
    data = opened(own=chain)
    assert data.train.holds_floats()
    assert joined(epoch_of(data))[0].dtype == torch.float32
    evaluated = next(iter(data.evaluation.batches(**EVALUATION)))[0]
    assert evaluated.min() < -1  # pixels, normalised with what the user says
    with pytest.raises(UserError, match=r"^eval_data: its images are pixels, those to train on are tensors of floats"):
        open_data(TABLE, make(6), DistillConfig(), image_size=8, in_chans=3, train_transform=chain)


def test_own_transforms_are_part_of_what_a_run_resumes_with() -> None:
    turn, grey = transforms.RandomRotation(5), transforms.Grayscale(3)
    prints = [opened(own=own).fingerprint for own in (None, turn, transforms.RandomRotation(5), grey)]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 3
    assert describe_transform(lambda image: image).startswith("<function ")
    assert " at 0x" not in describe_transform(lambda image: image)


def wrong(image: Any) -> Any:
    raise RuntimeError("no\nidea")


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (wrong, "train_transform: it fails on image 0 of split 'train' (no idea): correct it"),
        (np.asarray, "images: image 0 of split 'train', as train_transform makes it, is ndarray, expected a PIL image"),
        (lambda image: torch.zeros(3, 8, 9), "images: image 0 of split 'train', as train_transform makes it, has 8x9"),
        (lambda image: torch.zeros(1, 8, 8), "images: image 0 of split 'train', as train_transform makes it, has the"),
        (7, "train_transform: int cannot be called"),
    ],
)
def test_own_transforms_that_cannot_be_used(own: Any, line: str) -> None:
    with pytest.raises(UserError) as caught:
        epoch_of(opened(own=own))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scale of small images": ({"scale": (0.1, 1.0)}, "scale: acts with augmentation resized-crop alone, and this is"),
    "aa of a loader": ({"data": DataLoader(TENSORS, 4), "aa": "rand-m9"}, "aa: a DataLoader is used as it is"),
    "erasing of a loader": ({"data": DataLoader(TENSORS, 4), "reprob": 0.1}, "reprob: a DataLoader is used as it is"),
    "crops of a loader": ({"data": DataLoader(TENSORS, 4), "augmentation": "crop"}, "augmentation: a DataLoader"),
    "jitter of tensors": ({"data": TENSORS, "color_jitter": 0.4}, "color_jitter: a data set of tensors is used as it"),
    "own of tensors": ({"data": TENSORS, "own": noisy}, "train_transform: a data set of tensors is used as it is"),
    "own of a loader": ({"data": DataLoader(TENSORS, 4), "own": noisy}, "train_transform: a DataLoader is used as it"),
    "own and aa": ({"own": noisy, "aa": "rand-m9"}, "train_transform: it takes the place of aa, which is given too"),
    "own and a plain view": (
        {"own": noisy, "recipe": "scratch", "source_view": "plain"},
        "train_transform: it takes the place of source_view",
    ),
    "a plain view of a loader": (
        {"data": DataLoader(TENSORS, 4), "recipe": "scratch", "source_view": "plain"},
        "source_view: a DataLoader is used as it is",
    ),
    "own and crops": ({"own": noisy, "augmentation": "crop"}, "train_transform: it takes the place of augmentation"),
    "balance of a torch data set": (
        {"data": Pictures(), "balanced_sampling": True},
        "balanced_sampling: the labels are not known before the images are read",
    ),
    "weights of a stream": (
        {"data": TABLE.to_iterable_dataset(), "max_train_samples": 12, "class_weights": True},
        "class_weights: the labels are not known before the images are read",
    ),
}


@pytest.mark.parametrize(("given", "line"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_without_effect_is_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(**given)
    assert str(caught.value).startswith(line)


def test_a_preset_that_does_not_act_is_said() -> None:
    """Also after a round trip through a file, where every setting counts as given."""
    again = DistillConfig.from_dict(DistillConfig(recipe="scratch").to_dict()).to_dict()
    for settings in ({"recipe": "scratch"}, again):
        notes = opened(DataLoader(TENSORS, 4), **settings).notes
        assert "the recipe's rand-m9-mstd0.5 does not act: a DataLoader is used as it is" in notes
        notes = opened(own=noisy, **settings).notes
        assert "the recipe's rand-m9-mstd0.5 does not act: train_transform takes its place" in notes
    assert "does not act" not in " ".join(opened(recipe="scratch").notes)


def test_settings_that_do_not_act_on_the_images_are_told_for_the_card() -> None:
    erasing, whole = ["remode", "recount"], ["augmentation", "scale", "ratio", "vflip", "color_jitter", "aa"]
    assert opened().idle_settings == erasing
    assert opened(reprob=0.5).idle_settings == []
    assert opened(TENSORS, reprob=0.5).idle_settings == whole
    assert opened(own=noisy).idle_settings == [*whole, *erasing]
    assert opened(DataLoader(TENSORS, 4)).idle_settings == [*whole, "reprob", *erasing]


def test_erasing_acts_on_tensors_too() -> None:
    images, _ = joined(epoch_of(opened(TENSORS, reprob=1.0, remode="const")))
    assert ((images == 0).all(1).flatten(1).sum(1) > 0).all()


# Evaluation, and what is published about it.


@pytest.mark.parametrize(
    "settings", [{}, {"augmentation": "resized-crop"}, {"crop_pct": 0.8, "interpolation": "lanczos"}]
)
@pytest.mark.parametrize("size", [16, 104])
def test_timm_gives_the_pixels_of_evaluation_from_what_is_published(
    size: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Photographs of any shape, in memory or decoded as they are read."""
    shapes = [(37, 120), (300, 111), (104, 104), (16, 16), (50, 51)]
    rng = np.random.default_rng(0)
    images = [PIL.Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1, 0]})
    config = DistillConfig(**settings)
    data = open_data(table, table, config, image_size=size, in_chans=3, stated=STATED)
    seen = torch.cat([batch for batch, _ in data.evaluation.batches(**EVALUATION)])
    published = {
        "input_size": (3, size, size),
        "crop_pct": evaluation_crop_pct(config, size),
        "interpolation": config.interpolation,
        "crop_mode": "center",
        "mean": STATED.mean,
        "std": STATED.std,
    }
    timms = create_transform(**resolve_data_config({}, pretrained_cfg=published))
    torch.testing.assert_close(seen, torch.stack([timms(image) for image in images]), rtol=0, atol=1e-5)


def test_a_very_long_image_is_not_resized_whole() -> None:
    array = np.zeros((2, 60_001, 3), dtype=np.uint8)
    array[:, 29_990:30_010] = 255
    pixels = ImageTransform(64, 3, resized_crop=False)(PIL.Image.fromarray(array), train=False)
    assert pixels.shape == (64, 64, 3)
    assert pixels[:, 10:-10].min() == 255
