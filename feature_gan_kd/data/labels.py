"""Values of a label column to class names and class indices."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.utils.errors import UserError

NO_LABEL = -1
"""In the place of a class index: the image has no label."""

# Plain numbers are class indices. A larger one is an identifier: no model has so many logits.
MAX_CLASSES = 1_000_000
UNKNOWN_CLASS = -2
"""In place of the class of a number that names none."""


# How libraries write a missing value as a text. `NA` is left out: it is the name of a class as often.
TEXTS_OF_MISSING = ("N/A", "n/a", "NaN", "nan", "NULL", "null", "None")


def is_missing(label: Any) -> bool:
    """Whether a value of a user's data says that an image has no label: None, -1 (also as a text) or NaN."""
    if isinstance(label, str):
        return label == str(NO_LABEL)
    return label is None or (isinstance(label, (int, float)) and (label == NO_LABEL or math.isnan(label)))


def class_names_of(feature: Any, values: Sequence[Any], where: str, num_classes: int | None) -> list[str] | None:
    """Returns the names of the classes of a column; None where its numbers are class indices, or it has no label.

    A `ClassLabel` has names. Distinct texts are names, sorted. Whole numbers are class indices if they are 0 to their
    largest, or below `num_classes`. Otherwise each distinct number is the name of a class, in rising order.

    Args:
        feature: of the column.
        values: its values.
        where: names the column in errors.
        num_classes: of the models; None where they are to be built for the data.

    Raises:
        UserError: for texts that cannot be told apart, see `check_class_names`, and one that may mean "no label".
    """
    if type(feature).__name__ == "ClassLabel":
        return list(feature.names)
    present = [value for value in values if not is_missing(value)]
    if present and all(isinstance(value, str) for value in present):
        names = sorted(set(present))
        unclear = next((name for name in names if name in TEXTS_OF_MISSING), None)
        if unclear is not None:
            raise UserError(
                f"labels: {where} has the text {unclear!r}, and it is not known whether it is a class or means that "
                "an image has no label: leave the value empty (None), or rename the class"
            )
        check_class_names(names, where)
        return names
    if not present or not all(isinstance(value, int) for value in present):
        return None
    numbers = sorted({int(value) for value in present})
    if numbers[0] < 0 or numbers[-1] >= MAX_CLASSES:
        return None
    are_indices = len(numbers) == numbers[-1] + 1 if num_classes is None else numbers[-1] < num_classes
    if are_indices or num_classes not in (None, len(numbers)):
        return None
    return [str(number) for number in numbers]


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all classes are named by whole numbers, so that a plain number means the name, not the index."""
    return all(name.isdecimal() for name in names)


def numbers_as_names(values: Sequence[Any]) -> list[Any]:
    """Returns whole numbers as texts, other values, and -1 (no label), as they are."""
    return [str(int(value)) if isinstance(value, int) and not is_missing(value) else value for value in values]


def check_class_names(names: Sequence[str], where: str) -> None:
    """Checks that nobody could take one class for another.

    Args:
        names: of the classes, distinct.
        where: they come from, for errors.

    Raises:
        UserError: for an empty name, and for names that differ only in letter case, spaces or Unicode form.
    """
    seen: dict[str, str] = {}
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if not plain:
            raise UserError(f"labels: {where} has the empty label {name!r}: name the class or remove the rows")
        if plain in seen:
            raise UserError(
                f"labels: {where} has {seen[plain]!r} and {name!r}, which differ only in letter case, spaces or "
                "Unicode form: write them the same if they are one class, else rename one"
            )
        seen[plain] = name


def plain_label(label: Any) -> Any:
    """Returns a scalar of torch or numpy as a number of Python, and everything else as it is."""
    return label.item() if getattr(label, "ndim", None) == 0 else label


def first_difference(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns the first class to which two lists give different names; the shorter's length where one goes on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((k for k, (own, others) in pairs if own != others), min(len(one), len(other)))


def encode_labels(
    values: Sequence[Any],
    column: str,
    split: str,
    names: list[str] | None,
    classes: int | None,
    places: list[int] | None = None,
    *,
    begin: int = 0,
) -> Tensor:
    """Turns a column of labels into class indices, int64 `(N,)`; `NO_LABEL` where there is none, see `is_missing`.

    Args:
        values: whole numbers, texts that are in `names`, or none.
        column: for errors.
        split: for errors.
        names: class names; None where there are none.
        classes: number of classes; None allows every index below `MAX_CLASSES`.
        places: the class that each number means; None where it is the number itself.
        begin: index of the first row, for errors.

    Raises:
        UserError: for a label that is not a whole number, negative or outside the classes; the first such row is
            named.
    """
    index_of = {name: index for index, name in enumerate(names or [])}
    limit = len(places or names or ()) or classes or MAX_CLASSES
    indices = []
    for row, given in enumerate(values, begin):
        value = plain_label(given)
        if is_missing(value):
            indices.append(NO_LABEL)
            continue
        index = index_of.get(value, value) if isinstance(value, str) else value
        if not isinstance(index, int) or not 0 <= index < limit:
            wanted = f"0 to {limit - 1}" if isinstance(value, int) else f"a whole number from 0 to {limit - 1}"
            wanted = wanted if names is None or isinstance(value, int) else f"one of the {limit} classes"
            remedy = "cast the column to int64" if isinstance(value, float) else "correct the label or remove the row"
            raise UserError(
                f"labels: image {row} of split {split!r} has the label {reprlib.repr(value)} in column {column!r}, "
                f"expected {wanted}: {remedy}"
            )
        indices.append(int(index) if places is None else places[index])
    return torch.tensor(indices, dtype=torch.int64)
