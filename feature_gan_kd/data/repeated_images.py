"""Images that occur more than once, in one split or in two; two labels of one file contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from feature_gan_kd.data.labels import NO_LABEL
from feature_gan_kd.data.sources import Split
from feature_gan_kd.data.table import Table
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.image_files import real_paths


def note_repeated(table: Table, notes: list[str]) -> None:
    """Notes how many images of a split are files that another row names, too.

    Images that the rows themselves hold are not compared.

    Args:
        table: the split.
        notes: gets a line where there are some.

    Raises:
        UserError: where a file has two labels.
    """
    files = table.files()
    if files is None:
        return
    count, distinct = sum(map(bool, files)), len(_labels_by_file(table, files, {}))
    if distinct < count:
        notes.append(f"split {table.split!r}: its {count:,} images are {distinct:,} files: some come repeatedly")


def note_evaluated(train: Table, evaluation: Table, notes: list[str]) -> None:
    """Notes how many files are both trained and evaluated on, so that the figures say little of new images.

    Args:
        train: the images to train on.
        evaluation: the images to evaluate on.
        notes: gets a line where there are some.

    Raises:
        UserError: where a file has another label in the second than in the first.
    """
    own, evaluated = train.files(), evaluation.files()
    if own is None or evaluated is None:
        return
    known = _labels_by_file(train, own, {})
    both = sum(file in known for file in real_paths(evaluated))
    if both:
        _labels_by_file(evaluation, evaluated, known)
        note = f"eval_data: {both:,} of the {len(evaluation):,} images to evaluate on are trained on, too"
        notes += [] if note in notes else [note]  # see `note_same_items`


def note_same_items(train: Split, evaluation: Split, notes: list[str]) -> None:
    """Notes which items of one and the same data set are trained and evaluated on, or evaluated on repeatedly.

    Args:
        train: split to train on.
        evaluation: split to evaluate on.
        notes: gets a line where there are some.
    """
    (data, own), (other, evaluated) = _items(train.data), _items(evaluation.data)
    count = len(evaluated)
    if len(set(evaluated)) < count:
        notes.append(f"eval_data: its {count:,} images are {len(set(evaluated)):,}: some come repeatedly")
    both = len(set(own).intersection(evaluated)) if data is other else 0
    if both:
        notes.append(f"eval_data: {both:,} of the {len(set(evaluated)):,} images to evaluate on are trained on, too")


def _items(data: Any) -> tuple[Any, Sequence[int]]:
    """The data set whose items a `Subset` or a `DataLoader` gives, and their indices; none where they are not known."""
    if isinstance(data, Subset):
        base, indices = _items(data.dataset)
        return base, [indices[index] for index in data.indices]
    if isinstance(data, DataLoader):
        base, indices = _items(data.dataset)
        if data.batch_size is not None and type(data.sampler) in (SequentialSampler, RandomSampler):
            return base, indices
        chosen = getattr(data.sampler, "indices", ()) if data.batch_size is not None else ()
        return base, [indices[index] for index in chosen]
    return data, range(len(data)) if hasattr(data, "__len__") else ()


def _labels_by_file(table: Table, files: list[str], known: dict[str, int]) -> dict[str, int]:
    """Returns the class index of each file, `NO_LABEL` where it has none, with those that are `known` already."""
    found = dict(known)
    for file, label in zip(real_paths(files), table.labels.tolist(), strict=True):
        other = found.get(file, NO_LABEL)
        if label != other and NO_LABEL not in (label, other):
            one, two = (repr(table.class_names[k]) if table.class_names else k for k in (other, label))
            raise UserError(
                f"labels: {file} has the labels {one} and {two} (split {table.split!r}): remove the one that is wrong"
            )
        found[file] = max(label, other)
    found.pop("", None)  # rows without an image
    return found
