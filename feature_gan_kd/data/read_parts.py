"""What the user named as data, to the images to train on and those to evaluate on, not decoded yet."""

from __future__ import annotations

from typing import Any

import torch

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.augmentation import ImageOptions
from feature_gan_kd.data.labelled import (
    LabelledSplit,
    ModelClasses,
    check_training_images,
    has_labels,
    hold_out_fifth,
    keep_labelled,
    limit_images,
    no_training_labels,
    note_classes,
    note_labels,
    read_split,
)
from feature_gan_kd.data.repeated_images import note_evaluated, note_same_items
from feature_gan_kd.data.sources import Split, check_joinable, choose_splits, choose_unlabeled
from feature_gan_kd.data.table import Classes, Table, join_unlabeled, read_unlabeled
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.image_files import real_paths


def read_both(
    train_data: Any,
    eval_data: Any,
    unlabeled_data: Any,
    config: DistillConfig,
    options: ImageOptions,
    notes: list[str],
    classes: ModelClasses,
) -> tuple[LabelledSplit, LabelledSplit | None]:
    """Reads the labels of the training and the evaluation images, the latter of classes of the former.

    Args:
        train_data: see `open_data`; likewise `eval_data` and `unlabeled_data`.
        eval_data: see there.
        unlabeled_data: see there.
        config: of the run.
        options: of the images.
        notes: gets lines for the user.
        classes: of the models.

    Returns:
        The images to train on, and those to evaluate on; None where none has a label.

    Raises:
        UserError: for data, splits or labels that cannot be used.
    """
    train_split, eval_split = choose_splits(train_data, eval_data, config, notes)
    if eval_data is None and eval_split is not None and eval_split.name == train_split.name:
        raise UserError(f"eval_split: {eval_split.name!r} is the split that is trained on: name another")
    if unlabeled_data is not None:
        check_joinable(train_split)
    train = read_split(train_split, config, options.transform, notes, classes)
    if config.labels and not has_labels(train):
        raise no_training_labels(f"none of the {len(train):,} training images")
    order_declared = not isinstance(train, Table) or train.order_declared
    known = Classes(train.class_names, train.num_classes, f"split {train.split!r}", order_declared)
    evaluation = read_evaluation(eval_split, config, options, notes, classes, known)
    if evaluation is not None and eval_split is not None:
        note_same_items(train_split, eval_split, notes)
    if evaluation is None:
        train, evaluation = hold_out_fifth(train, notes, labels=config.labels)
    if isinstance(train, Table) and isinstance(evaluation, Table):
        note_evaluated(train, evaluation, notes)
    if unlabeled_data is not None:
        assert isinstance(train, Table)
        found = [read_unlabeled(split, config, notes) for split in choose_unlabeled(unlabeled_data, config, notes)]
        found = [_without_evaluated(one, evaluation, notes) for one in found]
        train = join_unlabeled(train, [_without_files(one, train, "in the training data, too", notes) for one in found])
    train = limit_images(train, config.max_train_samples, "max_train_samples", config.seed)
    evaluation = None if evaluation is None else limit_evaluation(evaluation, config)
    labels = train.labels if config.labels and isinstance(train, Table) else None
    check_training_images(train, labels, len(train))
    note_classes(train, notes)
    note_labels(train, notes, labels=config.labels)
    return train, evaluation


def _without_evaluated(unlabeled: Table, evaluation: LabelledSplit | None, notes: list[str]) -> Table:
    """Leaves out the files that are evaluated on: nothing may be learned from them, with or without their labels.

    Images that are no files of their own, as those in parquet, are not compared.
    """
    evaluated = evaluation.files() if isinstance(evaluation, Table) else None
    own = unlabeled.files()
    if evaluated is None or own is None:
        if evaluation is not None:
            notes.append("unlabeled_data: whether images of it are evaluated on is not known, since not all are files")
        return unlabeled
    return _without_files(unlabeled, evaluation, "evaluated on", notes)


def _without_files(unlabeled: Table, other: LabelledSplit | None, where: str, notes: list[str]) -> Table:
    """Leaves out the files that are in another split, in `where` for the user; those that are no files are kept.

    Raises:
        UserError: where none is left.
    """
    own, others = unlabeled.files(), other.files() if isinstance(other, Table) else None
    if own is None or others is None:
        return unlabeled
    known = set(real_paths(others))
    kept = [k for k, file in enumerate(real_paths(own)) if file not in known]
    if len(kept) < len(own):
        notes.append(f"unlabeled_data: {len(own) - len(kept)} images are {where}, and left out")
    if not kept:
        raise UserError(f"unlabeled_data: all its images are {where}: give others")
    return unlabeled.select(torch.tensor(kept))


def read_evaluation(
    split: Split | None,
    config: DistillConfig,
    options: ImageOptions,
    notes: list[str],
    classes: ModelClasses,
    known: Classes,
) -> LabelledSplit | None:
    """Reads the first of the splits to evaluate on that has labels; None where none has.

    Raises:
        UserError: where the user named a split without labels.
    """
    for one in () if split is None else (split, *split.others):
        evaluation = read_split(one, config, options.transform, notes, classes, known)
        if has_labels(evaluation):
            return keep_labelled(evaluation, notes)
        if one.named:
            setting = one.setting if config.eval_split is None else "eval_split"
            raise UserError(
                f"{setting}: no image of split {one.name!r} has a label, and images are evaluated by their labels: "
                "give labelled ones"
            )
        notes.append(f"split {one.name!r}: no image has a label, so it is not evaluated on")
    return None


def limit_evaluation(split: LabelledSplit, config: DistillConfig) -> LabelledSplit:
    """Applies `max_eval_samples`; runs with other seeds are evaluated on the same images."""
    return limit_images(split, config.max_eval_samples, "max_eval_samples", seed=0)
