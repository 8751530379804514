"""From what the user named to two sources of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.data.augment import CropFlip, PixelNormaliser
from feature_gan_kd.data.batches import ImageSource
from feature_gan_kd.data.decode import decode_all, passed_over
from feature_gan_kd.data.in_memory import MemoryImages
from feature_gan_kd.data.items import ImageTransform, TableItems, TorchItems
from feature_gan_kd.data.lazy import LazyImages
from feature_gan_kd.data.rng import permutation
from feature_gan_kd.data.sources import Part, choose_evaluation, choose_parts, is_of_datasets, is_stream
from feature_gan_kd.data.streaming import IterableImages, Stream, read_stream
from feature_gan_kd.data.table import Classes, Table, read_table
from feature_gan_kd.data.user_loader import UserLoader
from feature_gan_kd.utils.errors import UserError

# Decoded images that are held in memory, at most, per split.
MEMORY_LIMIT = 4 * 2**30
# Larger images are cropped at random sizes, as is usual for ImageNet.
SMALL = 96

Labelled = Table | Stream | TorchItems | UserLoader
"""What a part is after its columns are found and before its images are decoded."""
Source = MemoryImages | LazyImages | IterableImages | UserLoader


@dataclass(frozen=True)
class Data:
    """Training and evaluation images of one run.

    Attributes:
        train: training images.
        evaluation: evaluation images.
        class_names: by class index, where the data have names.
        num_classes: number of classes; None where the data do not say.
        mean: per channel, of pixels in [0, 1]: what the images are normalised with.
        std: likewise.
        skipped_images: images left out of both because they cannot be decoded; of those that are decoded as they are
            read it is not known beforehand.
        notes: lines that tell the user what was chosen.
        fingerprint: of the training images and labels; of the data set's origin where they are not in memory.
    """

    train: ImageSource
    evaluation: ImageSource
    class_names: list[str] | None
    num_classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped_images: int
    notes: list[str]
    fingerprint: str

    def description(self) -> dict[str, Any]:
        """What a run's folder says of them, as JSON values."""
        return {
            "fingerprint": self.fingerprint,
            "train_images": len(self.train),
            "evaluation_images": len(self.evaluation),
            "skipped_images": self.skipped_images,
            "mean": self.mean,
            "std": self.std,
        }


@dataclass(frozen=True)
class _Form:
    """How images are to come out."""

    config: DistillConfig
    views: ImageTransform
    augment: CropFlip | None


def open_data(
    train_data: Any,
    eval_data: Any,
    config: DistillConfig,
    *,
    image_size: int,
    in_chans: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_classes: int | None = None,
) -> Data:
    """Opens the training and the evaluation images.

    Args:
        train_data: None (the bundled digits), a hub name, a local folder (parquet, image folder, `save_to_disk`), a
            parquet or arrow file, a `Dataset`, `IterableDataset` or mapping of splits of `datasets`, a map-style
            torch `Dataset`, or a torch `DataLoader`, which is used as it is.
        eval_data: likewise; None takes the split `config.eval_split`, else test, else validation, else a fixed fifth
            of the training split, of each class alike, which is then not trained on.
        config: names columns and splits, the augmentation, the limits and the workers.
        image_size: side of the square images in pixels.
        in_chans: 3 (RGB) or 1 (grey).
        mean: per channel, of pixels in [0, 1]; None for the training images' own.
        std: likewise.
        num_classes: classes of the models; bounds the labels where the data do not say how many they have.

    Raises:
        UserError: for data, columns, splits, labels or images that cannot be used; the line says which and where.
    """
    _check_channels(in_chans)
    notes: list[str] = []
    train_part, eval_part = choose_parts(train_data, eval_data, config)
    if eval_data is None and eval_part is not None and eval_part.split == train_part.split:
        raise UserError(f"eval_split: {eval_part.split!r} is the split that is trained on: name another")
    form = _form(config, image_size, in_chans, flip=train_data is not None)
    train = _labelled(train_part, form, notes, num_classes)
    if eval_part is None:
        train, evaluation = _held_out(train, notes)
    else:
        known = Classes(train.class_names, train.num_classes, train.split)
        evaluation = _labelled(eval_part, form, notes, num_classes, known)
    train = _limited(train, config.max_train_samples, "max_train_samples")
    evaluation = _limited(evaluation, config.max_eval_samples, "max_eval_samples")
    _check_training(train, train.split, config.max_train_samples)
    _note_missing_classes(train, notes)
    train_source, eval_source = _source(train, form, notes), _source(evaluation, form, notes)
    _check_training(train_source, train.split)  # bad images may have been left out
    skipped = len(train) - len(train_source) + len(evaluation) - len(eval_source)
    own = train_source.statistics() if mean is None or std is None else (mean, std)
    if own == ((0.0,) * in_chans, (1.0,) * in_chans):
        notes.append("the images are floats, taken as normalised already; mean 0 and std 1 are recorded for them")
    normalise = PixelNormaliser(mean or own[0], std or own[1], config.channels_last)
    train_source.normalise = eval_source.normalise = normalise
    return Data(
        train=train_source,
        evaluation=eval_source,
        class_names=train.class_names,
        num_classes=train.num_classes,
        mean=normalise.mean,
        std=normalise.std,
        skipped_images=skipped,
        notes=notes,
        fingerprint=train_source.fingerprint(),
    )


def open_evaluation(
    eval_data: Any,
    config: DistillConfig,
    *,
    image_size: int,
    in_chans: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: list[str] | None = None,
    num_classes: int | None = None,
    trained_on: bool = False,
) -> tuple[ImageSource, list[str]]:
    """Opens images to evaluate on, without opening training images.

    Args:
        eval_data: as for `open_data`; None is the bundled digits, on which some models were trained.
        config: as for `open_data`.
        image_size: side in pixels.
        in_chans: 3 or 1.
        mean: what the models' images are normalised with, per channel, of pixels in [0, 1].
        std: likewise.
        class_names: of the models, by class index, where they are known.
        num_classes: of the models.
        trained_on: whether the models were trained on `eval_data`: where these have no split for evaluation, the
            fifth is taken that training holds out.

    Returns:
        The images, and lines that tell the user what was chosen.

    Raises:
        UserError: as `open_data`; also for classes other than the models'.
    """
    _check_channels(in_chans)
    notes: list[str] = []
    form = _form(config, image_size, in_chans, flip=False)
    known = Classes(class_names, num_classes, "networks")
    if eval_data is None or trained_on:
        train_part, part = choose_parts(eval_data, None, config)
        evaluation = _labelled(part or train_part, form, notes, num_classes, known)
        if part is None:
            _, evaluation = _held_out(evaluation, notes)
    else:
        evaluation = _labelled(choose_evaluation(eval_data, config), form, notes, num_classes, known)
    source = _source(_limited(evaluation, config.max_eval_samples, "max_eval_samples"), form, notes)
    source.normalise = PixelNormaliser(mean, std, config.channels_last)
    return source, notes


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise UserError(f"in_chans: images have 1 or 3 channels, the models take {channels}")


def _form(config: DistillConfig, size: int, channels: int, *, flip: bool) -> _Form:
    kind = config.augmentation
    if kind == "auto":
        kind = "resized-crop" if size > SMALL else "crop-flip" if flip else "crop"
    augment = CropFlip(size // 8, flip=kind == "crop-flip") if kind in ("crop", "crop-flip") else None
    return _Form(config, ImageTransform(size, channels, resized_crop=kind == "resized-crop"), augment)


def _labelled(part: Part, form: _Form, notes: list[str], classes: int | None, train: Classes | None = None) -> Labelled:
    """Finds columns and classes of a part; `train` is given for an evaluation part, which shares its classes."""
    if is_of_datasets(part.data):
        read = read_stream if is_stream(part.data) else read_table
        return read(part, form.config, notes, classes, train)
    names = _declared_names(part.data)
    if train is not None:
        names = train.agree(names, part.split)
    known = train.count if train is not None and train.count is not None else len(names) if names else None
    bound = known if known is not None else classes
    if isinstance(part.data, DataLoader):
        if form.config.skip_bad_images:
            raise UserError("skip_bad_images: a DataLoader is used as it is: skip them in its data set instead")
        notes.append(f"split {part.split!r}: batches as the DataLoader gives them; batch_size is not used")
        return UserLoader(part.data, form.views.channels, names, known, bound, part.split)
    if not hasattr(part.data, "__len__"):
        raise UserError(f"data: the {type(part.data).__name__} of split {part.split!r} has no length")
    if len(part.data) == 0:
        raise UserError(f"data: split {part.split!r} is empty")
    notes.append(f"split {part.split!r}: {len(part.data)} images of a torch {type(part.data).__name__}")
    return TorchItems(part.data, form.views, names, known, bound, part.split, torch.arange(len(part.data)))


def _declared_names(data: Any) -> list[str] | None:
    """The class names that a torch data set carries, as torchvision's do, or the one that it wraps."""
    while not hasattr(data, "classes") and hasattr(data, "dataset"):
        data = data.dataset
    names = getattr(data, "classes", None)
    return [str(name) for name in names] if names else None


def _held_out(train: Labelled, notes: list[str]) -> tuple[Labelled, Labelled]:
    """A fixed fifth of the training images for evaluation, of each class alike where the labels are known."""
    if isinstance(train, UserLoader):
        raise UserError("eval_data: a DataLoader has no other split: give images to evaluate on")
    if isinstance(train, Stream):
        raise UserError(f"eval_data: the stream has no split but {train.split!r}: give images to evaluate on")
    order = permutation(len(train), 0, 0)
    classes = train.labels[order] if isinstance(train, Table) else torch.zeros(len(train), dtype=torch.int64)
    chosen = [group[: (len(group) + 2) // 5] for group in (order[classes == k] for k in torch.unique(classes))]
    held = torch.cat(chosen).sort().values
    kept = torch.ones(len(train), dtype=torch.bool).index_fill(0, held, False).nonzero()[:, 0]
    if len(held) == 0:
        raise UserError(f"data: split {train.split!r} has {len(train)} images, too few to hold out a fifth")
    notes.append(f"no split to evaluate on: {len(held)} of the {len(train)} images of {train.split!r} are held out")
    return train.select(kept), train.select(held)


def _limited(part: Labelled, limit: int | None, option: str) -> Labelled:
    if limit is None or limit >= len(part) or isinstance(part, Stream):  # a stream knows its limit
        return part
    if isinstance(part, UserLoader):
        raise UserError(f"{option}: a DataLoader is used as it is: limit its data set instead")
    return part.select(torch.arange(limit))


def _check_training(train: Labelled | Source, split: str, limit: int | None = None) -> None:
    if len(train) < 2:
        raise UserError(f"data: split {split!r} has 1 image to train on, at least 2 are needed")
    if isinstance(train, Table | MemoryImages) and len(torch.unique(train.labels)) == 1:
        only = int(train.labels[0])
        remedy = "" if limit is None else ": --max-train-samples takes the first, name more of them or shuffle the data"
        raise UserError(
            f"labels: all {len(train)} images to train on are of class {only}, at least 2 classes are needed{remedy}"
        )


def _note_missing_classes(train: Labelled, notes: list[str]) -> None:
    """Says which classes have no image to train on: those of other splits, or behind `max_train_samples`."""
    if not isinstance(train, Table) or train.class_names is None:
        return
    there = set(train.labels.tolist())
    missing = [repr(name) for k, name in enumerate(train.class_names) if k not in there]
    if missing:
        shown = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
        notes.append(f"no image to train on for {len(missing)} of the {len(train.class_names)} classes: {shown}")


def _source(part: Labelled, form: _Form, notes: list[str]) -> Source:
    if isinstance(part, UserLoader):
        return part
    views, num_workers, skip = form.views, form.config.num_workers, form.config.skip_bad_images
    if isinstance(part, Stream):
        return IterableImages(part, views, form.augment, skip=skip)
    if isinstance(part, TorchItems):
        return LazyImages(part, views, form.augment if part.holds_pictures() else None, num_workers, skip=skip)
    if views.resized_crop or len(part) * views.size**2 * views.channels > MEMORY_LIMIT:
        where = (
            f"in {num_workers} worker processes" if num_workers else "in the training process (more with --num-workers)"
        )
        note = f"split {part.split!r}: decoded as it is read, {where}"
        notes.extend([note] if note not in notes else [])  # what is held out is of the same split
        return LazyImages(TableItems(part, views), views, form.augment, num_workers, skip=skip)
    names = [part.where(row) for row in range(len(part))]
    pixels, bad, resized = decode_all(part.undecoded(), names, views.size, views.channels, skip=skip)
    note = f"images resized to {views.size} x {views.size} (largest centred square, bicubic)"
    if resized and note not in notes:
        notes.append(note)
    if bad:
        notes.append(passed_over(len(bad), "left out", part.found(bad[0])))
    if len(bad) == len(part):
        raise UserError(f"images: not one image of split {part.split!r} can be decoded: check the data")
    good = torch.ones(len(part), dtype=torch.bool).index_fill(0, torch.tensor(bad, dtype=torch.int64), False)
    return MemoryImages(pixels, part.labels[good], form.augment)


def count_classes(train_data: Any, config: DistillConfig) -> int | None:
    """The number of classes of the training images, without decoding one; None where the data do not say.

    Raises:
        UserError: as `open_data`.
    """
    part, _ = choose_parts(train_data, None, config)
    labelled = _labelled(part, _form(config, SMALL, 3, flip=False), [], None, None)
    _check_training(labelled, part.split)
    return labelled.num_classes
