"""Makes a source of batches of labelled images: held in memory, or decoded as they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.augmentation import ImageOptions
from feature_gan_kd.data.decode import decode_images, skipped_images_note
from feature_gan_kd.data.epoch_order import BalancedOrder, SharedOrder
from feature_gan_kd.data.in_memory import MemoryImages
from feature_gan_kd.data.items import DecodedImages, TableImages, TorchDatasetImages
from feature_gan_kd.data.labelled import LabelledSplit
from feature_gan_kd.data.lazy import LazyImages
from feature_gan_kd.data.streaming import IterableImages, Stream
from feature_gan_kd.data.table import Table
from feature_gan_kd.data.unlabeled import refuse_unlabeled
from feature_gan_kd.data.user_loader import UserLoader
from feature_gan_kd.data.workers import automatic_workers
from feature_gan_kd.utils.errors import UserError

# Decoded images of one split are held in memory up to this many bytes.
MEMORY_LIMIT = 4 * 2**30

Source = MemoryImages | LazyImages | IterableImages | UserLoader


def build_source(split: LabelledSplit, options: ImageOptions, notes: list[str], *, training: bool = False) -> Source:
    """Decodes the images of a table into memory if they fit there, and prepares all others to be decoded when read."""
    transform, augment, skip = options.transform, options.augment, options.skip
    if isinstance(split, UserLoader):
        return split
    if isinstance(split, Stream):
        return IterableImages(split, transform, augment, skip=skip)
    if isinstance(split, TorchDatasetImages):
        augment = augment if split.holds_pil_images() else None
        # Code of the user's own may hold what processes cannot share, such as an open file: only if the user says so.
        return LazyImages(split, transform, augment, options.num_workers or 0, skip=skip)
    workers, where = _workers(options.num_workers)
    own = training and transform.own is not None
    if own or transform.resized_crop or len(split) * transform.size**2 * transform.channels > MEMORY_LIMIT:
        _note_once(f"split {split.split!r}: decoded as it is read, {where}", notes)
        return LazyImages(TableImages(split, transform), transform, augment, workers, skip=skip)
    pixels, labels = _decode_into_memory(split, options, notes, 1.0 if training else transform.evaluation_crop_pct)
    if training and transform.changes_single_images:
        notes.append(f"split {split.split!r}: augmented image by image, {where}")
        return LazyImages(DecodedImages(pixels, labels, transform, split.split), transform, augment, workers)
    return MemoryImages(pixels, labels, augment)


def _workers(asked: int | None) -> tuple[int, str]:
    """The number of worker processes, and where images are decoded, in words."""
    workers = automatic_workers() if asked is None else asked
    if not workers:
        return 0, "in the training process (more with --num-workers)"
    chosen = ", as the cores allow (--num-workers)" if asked is None else ""
    return workers, f"in {workers} worker process{'es' * (workers > 1)}{chosen}"


def _decode_into_memory(
    table: Table, options: ImageOptions, notes: list[str], crop_pct: float
) -> tuple[Tensor, Tensor]:
    """Decodes all images of a table: their pixels and labels."""
    transform, size = options.transform, options.transform.size
    names = [table.describe_image(row) for row in range(len(table))]
    pixels, bad, resized = decode_images(
        table.undecoded_images(),
        names,
        size,
        transform.channels,
        skip=options.skip,
        crop_pct=crop_pct,
        interpolation=transform.interpolation,
        modes=[table.mode_of(row) for row in range(len(table))],
    )
    if resized:
        part = "largest centred square" if crop_pct == 1 else f"centre, {crop_pct:g} of the shorter side"
        _note_once(f"images resized to {size} x {size} ({part}, {transform.interpolation})", notes)
    if bad:
        notes.append(skipped_images_note(len(bad), "left out", table.describe_file(bad[0])))
    if len(bad) == len(table):
        raise UserError(f"images: not one image of split {table.split!r} can be decoded: check the data")
    good = torch.ones(len(table), dtype=torch.bool).index_fill(0, torch.tensor(bad, dtype=torch.int64), False)
    return pixels, table.labels[good]


def note_resized(source: Source, split: LabelledSplit, size: int, notes: list[str]) -> None:
    """Notes where tensors of the user's own are not of the models' size, in which they are seen.

    Args:
        source: of the images.
        split: that it was made from.
        size: side in pixels of the largest model's images.
        notes: gets a line for the user.
    """
    if isinstance(source, MemoryImages) or not isinstance(split, TorchDatasetImages | UserLoader):
        return
    side = source.side()
    if side != size:
        notes.append(f"split {split.split!r}: its tensors of {side} x {side} pixels are resized to {size} x {size}")


def _note_once(note: str, notes: list[str]) -> None:
    """Adds a note unless it is there: a held-out part would repeat the notes of its split."""
    if note not in notes:
        notes.append(note)


def known_labels(source: Source) -> Tensor | None:
    """Returns the labels of all images, int64 `(N,)`, where they are known before the images are read."""
    if isinstance(source, MemoryImages):
        return source.labels
    return source.known_labels() if isinstance(source, LazyImages) else None


def refuse_mixing(train: Source, labels: Tensor | None, config: DistillConfig) -> None:
    """Refuses mixup and cutmix, which mix labels, where a training image has none: now, or when it is read.

    Args:
        train: the training images.
        labels: of them, int64 `(N,)`; None where they are not known beforehand.
        config: of the run.

    Raises:
        UserError: where labels are learned from and are known to be missing.
    """
    name = "mixup" if config.mixup else "cutmix" if config.cutmix else None
    if name is None or not config.labels:
        return
    missing = 0 if labels is None else int((labels < 0).sum())
    if labels is not None and missing:
        raise refuse_unlabeled(name, f"{missing:,} of the {len(labels):,} training images have no label")
    if not isinstance(train, MemoryImages):
        train.unlabeled.refused_by = name


def set_order(train: Source, labels: Tensor | None, config: DistillConfig, notes: list[str]) -> None:
    """Lets an epoch draw all classes equally often, or a share of each batch with labels, if the user asks for it.

    Args:
        train: source of the training images.
        labels: int64 `(N,)`, below 0 for images without a label; None where they are not known.
        config: of the run.
        notes: gets a line for the user.

    Raises:
        UserError: where a setting needs labels that are not known beforehand, or that some images do not have.
    """
    asked = (name for name in ("labeled_fraction", "balanced_sampling", "class_weights") if getattr(config, name))
    name = next(asked, None)
    if name is None:
        return
    if labels is None or isinstance(train, UserLoader | IterableImages):
        raise UserError(
            f"{name}: the labels are not known before the images are read: give a folder or a data set of datasets "
            "with a column of labels"
        )
    missing = int((labels < 0).sum())
    if config.balanced_sampling:
        if missing:
            raise UserError(
                f"balanced_sampling: {missing:,} of the {len(labels):,} training images have no label, so no class: "
                "weigh the classes by class_weights, or fix the share of labelled images by labeled_fraction"
            )
        train.order = BalancedOrder(labels)
        classes = len(torch.unique(labels))
        fewest, rest = divmod(len(labels), classes)
        each = f"{fewest} or {fewest + 1}" if rest else str(fewest)
        notes.append(f"an epoch draws {len(labels)} images, {each} of each of the {classes} classes")
    if config.labeled_fraction is not None:
        train.order = _shared_order(labels, config.labeled_fraction, config.batch_size, notes)


def _shared_order(labels: Tensor, fraction: float, batch_size: int, notes: list[str]) -> SharedOrder:
    order, missing = SharedOrder(labels, fraction), int((labels < 0).sum())
    if not missing:
        raise UserError(
            "labeled_fraction: all training images have a label: leave it out, or give images without labels"
        )
    own = order.labeled_per_batch(batch_size)
    rest = batch_size - own
    if not own or not rest:
        found, bound = (
            ("no image", f"least {1 / batch_size:.3g}") if rest else ("all of it", f"most {1 - 1 / batch_size:.3g}")
        )
        raise UserError(f"labeled_fraction: {fraction:g} of a batch of {batch_size} is {found}: give at {bound}")
    updates = order.batches(batch_size)
    times = updates * own / (len(labels) - missing), updates * rest / missing
    notes.append(
        f"an epoch has {updates} updates of {own} labelled and {rest} unlabelled images: each labelled image about "
        f"{times[0]:.1f} times, each unlabelled one {times[1]:.1f} times"
    )
    return order
