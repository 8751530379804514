"""Opens what the user named as data: two sources of images, for training and for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.augmentation import (
    MAX_CROP_FLIP_SIZE,
    check_training,
    idle_settings,
    image_options,
    note_idle_preset,
)
from feature_gan_kd.data.batch_transforms import PixelNormaliser
from feature_gan_kd.data.batches import ImageSource
from feature_gan_kd.data.image_sources import Source, build_source, known_labels, note_resized, refuse_mixing, set_order
from feature_gan_kd.data.image_transforms import OwnTransform, describe_transform
from feature_gan_kd.data.in_memory import MemoryImages
from feature_gan_kd.data.items import TorchDatasetImages
from feature_gan_kd.data.labelled import (
    LabelledSplit,
    ModelClasses,
    check_training_images,
    read_split,
)
from feature_gan_kd.data.read_parts import read_both
from feature_gan_kd.data.sources import choose_splits
from feature_gan_kd.data.table import Table
from feature_gan_kd.data.user_loader import UserLoader
from feature_gan_kd.models.normalisation import Normalisation, check_stated
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Data:
    """Training and evaluation images of one run.

    Attributes:
        train: training images.
        evaluation: evaluation images.
        class_names: by class index; None where the data have none.
        num_classes: number of classes; None where the data do not say.
        normalisation: what the images are normalised with; None for floats of which the user does not state it.
        skipped_images: number of images left out of both because they cannot be decoded. Does not count images that
            are decoded while the run reads them: which of these are bad is not known beforehand.
        notes: lines that tell the user what was chosen.
        fingerprint: of the images and labels of both; of a sample of them where they are not in memory. It names a
            transform of the user's own, too.
        evaluation_fingerprint: of those to evaluate on alone; empty where there are none.
        crop_pct: share of each side of the images to evaluate on that was kept. Of tensors and of a `DataLoader` it is
            what the user states, else all.
        idle_settings: those of the augmentation that do not act on these training images.
        train_labels: class indices of the training images, int64 `(N,)`, -1 for no label; None where they are not known
            beforehand.
        unlabeled_images: number of training images without a label; None where it is not known beforehand.
    """

    train: ImageSource
    evaluation: ImageSource | None
    class_names: list[str] | None
    num_classes: int | None
    normalisation: Normalisation | None
    skipped_images: int
    notes: list[str]
    fingerprint: str
    evaluation_fingerprint: str
    crop_pct: float
    idle_settings: list[str]
    train_labels: Tensor | None = None
    unlabeled_images: int | None = None

    def description(self) -> dict[str, Any]:
        """Returns what a run's folder says about the data, as JSON values."""
        return {
            "fingerprint": self.fingerprint,
            "train_images": len(self.train),
            "unlabeled_images": self.unlabeled_images,
            "evaluation_images": 0 if self.evaluation is None else len(self.evaluation),
            "skipped_images": self.skipped_images,
            "mean": self.normalisation and self.normalisation.mean,
            "std": self.normalisation and self.normalisation.std,
        }


def open_data(
    train_data: Any,
    eval_data: Any,
    config: DistillConfig,
    *,
    unlabeled_data: Any = None,
    image_size: int,
    in_chans: int,
    stated: Normalisation | None = None,
    common: Normalisation | None = None,
    num_classes: int | None = None,
    num_classes_given: bool = False,
    train_transform: OwnTransform | None = None,
    for_training: bool = True,
) -> Data:
    """Opens the training and the evaluation images.

    Args:
        train_data: None (the bundled digits), a hub name, a local folder (parquet, image folder, `save_to_disk`), a
            parquet or arrow file, a `Dataset`, `IterableDataset` or mapping of splits of `datasets`, a map-style
            torch `Dataset`, or a torch `DataLoader`, which is used as it is.
        eval_data: likewise; None takes the split `config.eval_split`, else test, else validation, else holds out a
            fixed fifth of the training split, the same share of each class, which is then not trained on.
        config: names columns and splits, the augmentation, the limits and the workers, and says whether labels are
            learned from.
        unlabeled_data: images that are trained on besides; labels that they may have are not read. As `train_data`, but
            no stream, torch `Dataset` or `DataLoader`; None for none.
        image_size: side of the square images in pixels.
        in_chans: 3 (RGB) or 1 (grey); another number only for data that are tensors.
        stated: what the user says that the images are normalised with.
        common: what pixels are normalised with where the user does not say: that of all models' trained weights; None
            for the training images' own.
        num_classes: of the models; limits the labels where the data do not say how many classes they have.
        num_classes_given: whether the user gave it; then it counts more than the `classes` of a torch data set.
        train_transform: of the user's own for training images, in place of the augmentation that `config` names.
        for_training: whether the training images are trained on; otherwise they are measured, and cropped as those to
            evaluate on.

    Raises:
        UserError: for data, columns, splits, labels or images that cannot be used, naming the place; for settings of
            the augmentation that cannot act on them.
    """
    notes: list[str] = []
    options = image_options(config, image_size, in_chans, flip=train_data is not None, own=train_transform)
    classes = ModelClasses(num_classes, num_classes_given)
    train, evaluation = read_both(train_data, eval_data, unlabeled_data, config, options, notes, classes)
    given_as = _given_as(train)
    check_training(config, image_size, own=train_transform, given_as=given_as)
    notes += note_idle_preset(config, own=train_transform, given_as=given_as)
    train_source = build_source(train, options, notes, training=for_training)
    eval_source = None if evaluation is None else build_source(evaluation, options, notes)
    if eval_source is not None and not isinstance(eval_source, MemoryImages):
        eval_source.unlabeled.left_out = True
    if not isinstance(train_source, UserLoader):
        train_source.erase = options.erase
    labels = known_labels(train_source)
    # Once more: bad images may have been left out.
    check_training_images(train, labels if config.labels else None, len(train_source))
    refuse_mixing(train_source, labels, config)
    set_order(train_source, labels, config, notes)
    normalisation = _choose_normalisation(train_source, eval_source, stated, common, notes)
    sources = [train_source] if eval_source is None else [train_source, eval_source]
    parts = [train] if evaluation is None else [train, evaluation]
    for source, part in zip(sources, parts, strict=True):
        note_resized(source, part, image_size, notes)
    if normalisation is not None:
        normalise = PixelNormaliser(normalisation.mean, normalisation.std, config.channels_last)
        for source in sources:
            source.normalise = normalise
    evaluated = "" if eval_source is None else eval_source.fingerprint()
    known = train if train.num_classes is not None or evaluation is None else evaluation
    given = _given_as(train if evaluation is None else evaluation)
    return Data(
        train=train_source,
        evaluation=eval_source,
        class_names=known.class_names,
        num_classes=known.num_classes,
        normalisation=normalisation,
        skipped_images=sum(map(len, parts)) - sum(map(len, sources)),
        notes=notes,
        fingerprint=_fingerprint(train_source, evaluated, train_transform),
        evaluation_fingerprint=evaluated,
        crop_pct=options.transform.evaluation_crop_pct if given is None else config.crop_pct or 1.0,
        idle_settings=idle_settings(config, own=train_transform, given_as=given_as),
        train_labels=labels,
        unlabeled_images=None if labels is None else int((labels < 0).sum()),
    )


def _fingerprint(train: Source, evaluated: str, own: OwnTransform | None) -> str:
    digest = hashlib.sha256(f"{train.fingerprint()} {evaluated}".encode()).hexdigest()
    return digest if own is None else f"{digest}, train_transform {describe_transform(own)}"


def _given_as(split: LabelledSplit) -> str | None:
    """What images cannot be changed of, in words; None for images."""
    if isinstance(split, UserLoader):
        return "a DataLoader"
    tensors = isinstance(split, TorchDatasetImages) and not split.holds_pil_images()
    return "a data set of tensors" if tensors else None


def _choose_normalisation(
    train: Source,
    evaluation: Source | None,
    stated: Normalisation | None,
    common: Normalisation | None,
    notes: list[str],
) -> Normalisation | None:
    """What the images of both sources are normalised with, see `open_data`; None for floats of which it is not known.

    Raises:
        UserError: where only one of the sources holds floats, and the user does not state their normalisation.
    """
    floats = train.holds_floats()
    kind = "tensors of floats" if floats else "pixels"
    if stated is not None:
        if floats and not isinstance(train, MemoryImages) and (sample := train.sample()).is_floating_point():
            check_stated(sample, stated)
        notes.append(f"{kind}, normalised with the given {stated}")
        return stated
    if evaluation is not None and floats != evaluation.holds_floats():
        other = "pixels" if floats else "tensors of floats"
        raise UserError(
            f"eval_data: its images are {other}, those to train on are {kind}: give mean and std, which the tensors of "
            "floats were normalised with (0 and 1 for pixels / 255)"
        )
    if floats:
        notes.append("tensors of floats, given to every model as they are (mean and std state their normalisation)")
        return None
    chosen = common or Normalisation(*train.statistics())
    owner = "that of all models' trained weights" if common else "the training images' own"
    notes.append(f"pixels normalised with {chosen}: {owner}")
    return chosen


def count_classes(train_data: Any, config: DistillConfig) -> int | None:
    """Counts the classes of the training images without decoding any; None where the data do not say.

    Also None where labels are not learned from: the models need no classes then.

    Raises:
        UserError: as `open_data`.
    """
    if not config.labels:
        return None
    split, _ = choose_splits(train_data, None, config, [])
    transform = image_options(config, MAX_CROP_FLIP_SIZE, 3, flip=False).transform
    train = read_split(split, config, transform, [], ModelClasses(None))
    check_training_images(train, train.labels if isinstance(train, Table) else None, len(train))
    return train.num_classes
