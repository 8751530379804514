"""A split whose labels are known and whose images are not decoded yet: read, divided, limited and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.declared_names import declared_names
from feature_gan_kd.data.draws import draw_balanced, draw_fifth
from feature_gan_kd.data.image_transforms import ImageTransform
from feature_gan_kd.data.items import TorchDatasetImages
from feature_gan_kd.data.loader_parts import check_length
from feature_gan_kd.data.repeated_images import note_repeated
from feature_gan_kd.data.sources import Split, has_transform, is_hf_dataset, is_stream
from feature_gan_kd.data.streaming import Stream, read_stream
from feature_gan_kd.data.table import Classes, Table, read_table
from feature_gan_kd.data.transformed import TransformedRows
from feature_gan_kd.data.user_loader import UserLoader
from feature_gan_kd.utils.errors import UserError

LabelledSplit = Table | Stream | TorchDatasetImages | UserLoader


@dataclass(frozen=True)
class ModelClasses:
    """How many classes the models have.

    Attributes:
        count: None where they are to be built for the data.
        given: whether the user gave the number; then it counts more than the `classes` of a torch data set.
    """

    count: int | None
    given: bool = False


def read_split(
    split: Split,
    config: DistillConfig,
    transform: ImageTransform,
    notes: list[str],
    classes: ModelClasses,
    known: Classes | None = None,
) -> LabelledSplit:
    """Finds the columns and the classes of a split.

    Args:
        split: to read.
        config: may name the columns, and says what a stream's length is.
        transform: size and channels of the images.
        notes: gets a line for the user.
        classes: of the models; limit the labels where neither the data nor `known` say how many classes there are.
        known: for an evaluation split the classes that it must have, those of the training split or of the models.

    Raises:
        UserError: for data, columns or classes that cannot be used.
    """
    if is_hf_dataset(split.data) and has_transform(split.data):
        split = replace(split, data=TransformedRows(split, config, notes))
    if is_hf_dataset(split.data):
        if transform.channels not in (1, 3):
            raise _channels_error(split, transform)
        if is_stream(split.data):
            return read_stream(split, config, notes, classes.count, known)
        table = read_table(split, config, notes, classes.count, known)
        note_repeated(table, notes)
        return table
    names = declared_names(split, notes)
    by_name = known is not None and known.names is not None and set(names or ()) <= set(known.names)
    if names is not None and classes.given and len(names) != classes.count and not by_name:
        notes.append(
            f"split {split.name!r}: its {len(names)} class names are not used, since num_classes is {classes.count}"
        )
        names = None
    own, places = names, None
    if known is not None:
        names = known.resolve_names(own, split.name, notes)
        places = known.places(own) if own is not None or known.names is None else known.places_of_numbers()
    count = known.count if known is not None and known.count is not None else len(names) if names else None
    limit = len(places) if places is not None else count if count is not None else classes.count
    if isinstance(split.data, DataLoader):
        if config.skip_bad_images:
            raise UserError("skip_bad_images: a DataLoader is used as it is: skip them in its data set instead")
        notes.append(f"split {split.name!r}: batches as the DataLoader gives them; batch_size is not used")
        loader = UserLoader(
            split.data,
            transform.channels,
            names,
            count,
            limit,
            split.name,
            split.setting,
            places,
            labels=config.labels,
        )
        check_length(split.data, split.name, split.setting, evaluation=known is not None)
        return loader
    images = _read_torch_dataset(split, config, transform, notes, names, count, limit)
    return replace(images, places=places)


def _read_torch_dataset(
    split: Split,
    config: DistillConfig,
    transform: ImageTransform,
    notes: list[str],
    names: list[str] | None,
    count: int | None,
    limit: int | None,
) -> TorchDatasetImages:
    kind = type(split.data).__name__
    if not hasattr(split.data, "__len__"):
        raise UserError(f"{split.setting}: the {kind} of split {split.name!r} has no length")
    if len(split.data) == 0:
        raise UserError(f"{split.setting}: split {split.name!r} is empty")
    if not isinstance(split.data, TransformedRows):
        notes.append(f"split {split.name!r}: {len(split.data)} images of a torch {kind}")
    positions = torch.arange(len(split.data))
    images = TorchDatasetImages(
        split.data, transform, names, count, limit, split.name, split.setting, positions, config.labels
    )
    if transform.channels not in (1, 3) and images.holds_pil_images():
        raise _channels_error(split, transform)
    return images


def _channels_error(split: Split, transform: ImageTransform) -> UserError:
    return UserError(
        f"{split.setting}: the images of split {split.name!r} are decoded to 1 or 3 channels, the models take "
        f"{transform.channels} (in_chans): give a torch Dataset or DataLoader of tensors"
    )


def has_labels(split: LabelledSplit) -> bool:
    """Whether an image of a split has a label; where that is not known beforehand, reads until the first that has."""
    return bool((split.labels >= 0).any()) if isinstance(split, Table) else split.has_labels()


def keep_labelled(split: LabelledSplit, notes: list[str]) -> LabelledSplit:
    """Leaves the images without a label out of those to evaluate on, or has them left out as they are read.

    Args:
        split: to evaluate on, with at least one label.
        notes: gets a line where it is known how many they are.
    """
    if not isinstance(split, Table):
        return split
    missing = int((split.labels < 0).sum())
    if not missing:
        return split
    notes.append(
        f"split {split.split!r}: {missing:,} of {len(split):,} images have no label: they are not evaluated on"
    )
    return split.select(torch.where(split.labels >= 0)[0])


def hold_out_fifth(
    train: LabelledSplit, notes: list[str], *, labels: bool = True
) -> tuple[LabelledSplit, LabelledSplit | None]:
    """Divides the training images into a part to train on and a fixed fifth of those with labels to evaluate on.

    The fifth holds out the same share of each class where the labels are known, see `draw_fifth`. It depends on nothing
    but the data, so that runs with other seeds are evaluated on the same images.

    Args:
        train: the training images.
        notes: gets a line for the user.
        labels: whether labels are learned from. Otherwise nothing is held out where that is not possible.

    Returns:
        The two parts; the second is None where nothing is held out.

    Raises:
        UserError: for a DataLoader or a stream, which cannot be divided, and for too few images.
    """
    if isinstance(train, UserLoader | Stream):
        if not labels:
            notes.append("no images to evaluate on: nothing is evaluated")
            return train, None
        kind = "a DataLoader has no other split" if isinstance(train, UserLoader) else None
        raise UserError(
            f"eval_data: {kind or f'the stream has no split but {train.split!r}'}: give images to evaluate on"
        )
    if not has_labels(train):
        if labels:
            raise no_training_labels(f"none of the {len(train):,} images of split {train.split!r}")
        notes.append("no image has a label, so none is held out to evaluate on: nothing is evaluated")
        return train, None
    labelled = torch.where(train.labels >= 0 if isinstance(train, Table) else train.may_have_label())[0]
    held = labelled[draw_fifth(train.labels[labelled] if isinstance(train, Table) else torch.zeros_like(labelled))]
    kept = torch.ones(len(train), dtype=torch.bool).index_fill(0, held, False).nonzero()[:, 0]
    if len(held) == 0:
        raise UserError(f"data: split {train.split!r} has {len(labelled)} images, too few to hold out a fifth")
    which = "" if len(labelled) == len(train) else "labelled "
    notes.append(
        f"no split to evaluate on: {len(held)} of the {len(labelled)} {which}images of {train.split!r} are held out"
    )
    return train.select(kept), train.select(held)


def limit_images(split: LabelledSplit, limit: int | None, setting: str, seed: int) -> LabelledSplit:
    """Draws `limit` images, of each class the same number where the labels are known; None keeps all.

    Args:
        split: a stream stays as it is: it applies its limit itself.
        limit: at least 1.
        setting: that gave the limit, for errors.
        seed: decides which images, and nothing else does.

    Raises:
        UserError: for a DataLoader.
    """
    if limit is None or limit >= len(split) or isinstance(split, Stream):
        return split
    if isinstance(split, UserLoader):
        raise UserError(f"{setting}: a DataLoader is used as it is: limit its data set instead")
    labels = split.labels if isinstance(split, Table) else torch.zeros(len(split), dtype=torch.int64)
    return split.select(draw_balanced(labels, limit, seed))


def check_training_images(train: LabelledSplit, labels: torch.Tensor | None, count: int) -> None:
    """Checks that there are images of at least two classes to train on.

    Args:
        train: the split.
        labels: class indices of the images that are left of it, int64 `(count,)`; None where they are not known
            beforehand, or not learned from.
        count: number of these images.

    Raises:
        UserError: for a single image, no label, or a single class.
    """
    if count < 2:
        raise UserError(f"data: split {train.split!r} has 1 image to train on, at least 2 are needed")
    if labels is None:
        return
    classes = torch.unique(labels[labels >= 0])
    if not len(classes):
        raise no_training_labels(f"none of the {count:,} training images")
    if len(classes) == 1:
        only = int(classes[0]) if train.class_names is None else train.class_names[int(classes[0])]
        missing = int((labels < 0).sum())
        unlabeled = f" or have no label ({missing:,} of them: None or -1)" * bool(missing)
        raise UserError(
            f"labels: all {count} images to train on are of class {only}{unlabeled}, at least 2 classes are needed"
        )


def no_training_labels(images: str) -> UserError:
    """Makes the error for `images` that have no label, where labels are learned from."""
    return UserError(
        f"labels: {images} has a label: give labelled images, or set labels=False (--no-labels) to learn from images "
        "alone"
    )


def note_labels(train: LabelledSplit, notes: list[str], *, labels: bool) -> None:
    """Notes how many training images have no label, and what becomes of the labels.

    Args:
        train: the images to train on.
        notes: gets a line for the user.
        labels: whether labels are learned from.
    """
    if not labels:
        notes.append("labels are not learned from: the models learn from images alone")
    missing = int((train.labels < 0).sum()) if isinstance(train, Table) else 0
    if labels and missing:
        notes.append(
            f"{missing:,} of {len(train):,} training images have no label: they take part in every term but "
            "cross-entropy"
        )


def note_classes(train: LabelledSplit, notes: list[str]) -> None:
    """Notes the names of the classes, and which of them have no image to train on."""
    if train.class_names is None:
        return
    names = [repr(name) for name in train.class_names]
    notes.append(f"classes: {', '.join(names[:10])}{', ...' * (len(names) > 10)}")
    if not isinstance(train, Table):
        return
    present = set(train.labels.tolist())
    missing = [name for k, name in enumerate(names) if k not in present]
    if missing:
        shown = ", ".join(missing[:5]) + ", ..." * (len(missing) > 5)
        notes.append(f"no image to train on for {len(missing)} of the {len(names)} classes: {shown}")
