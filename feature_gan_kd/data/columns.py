"""Which column holds the images, which the labels, and the labels as class indices."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.errors import UserError

# Usual names of label columns where the type does not tell, the likeliest first.
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "classes", "category", "y")
_LABEL_PARTS = ("label", "target", "class")
# Plain numbers are class indices; a larger one is an identifier, for which no network could have the logits.
MOST_CLASSES = 1_000_000


def image_column(features: Mapping[str, Any], named: str | None, split: str) -> str:
    """The column of images: the one named, else the first that holds images by its type.

    Raises:
        UserError: where there is none, or the named one does not exist or holds something else.
    """
    found = [name for name, feature in features.items() if _holds_images(feature)]
    if named is None and found:
        return found[0]
    listed = _listed(features)
    if named is None:
        raise UserError(f"image_column: split {split!r} has no column of images; its columns are {listed}")
    if named not in features:
        raise UserError(f"image_column: split {split!r} has no column {named!r}; its columns are {listed}")
    if named not in found and not _is_value(features[named], ("string", "large_string")):
        raise UserError(f"image_column: column {named!r} of split {split!r} holds no images; columns: {listed}")
    return named


def label_column(features: Mapping[str, Any], named: str | None, image: str, split: str) -> tuple[str, list[str]]:
    """The column of labels, and the other columns that could be meant.

    The named one is taken; else the first `ClassLabel`, else the whole numbers or texts with the likeliest name.

    Raises:
        UserError: where there is none, or the named one does not exist.
    """
    if named is not None:
        if named not in features:
            raise UserError(
                f"label_column: split {split!r} has no column {named!r}; its columns are {_listed(features)}"
            )
        if named == image:
            raise UserError(f"label_column: column {named!r} of split {split!r} holds the images: name another")
        return named, []
    found = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if not found:
        plain = [n for n, f in features.items() if n != image and _is_value(f, ("int", "uint", "bool", "string"))]
        exact = [n for likely in _LABEL_NAMES for n in plain if n.lower() == likely]
        found = exact or [n for n in plain if any(part in n.lower() for part in _LABEL_PARTS)]
    if not found and len(features) == 1:
        raise UserError(
            f"label_column: split {split!r} has images alone ({image}): give data with labels; in an image folder each "
            "class has a folder of its own"
        )
    if not found:
        raise UserError(
            f"label_column: split {split!r} has no column of whole numbers or texts that looks like labels; its "
            f"columns are {_listed(features)}: name one, or change its type"
        )
    return found[0], found[1:]


def class_names_of(feature: Any, values: Sequence[Any]) -> list[str] | None:
    """The names of the classes: of a `ClassLabel`, or the sorted different texts; None for plain numbers."""
    if type(feature).__name__ == "ClassLabel":
        return list(feature.names)
    texts = [value for value in values if value is not None]
    return sorted(set(texts)) if texts and all(isinstance(value, str) for value in texts) else None


def encoded(
    values: Sequence[Any], column: str, split: str, names: list[str] | None, classes: int | None, *, begin: int = 0
) -> Tensor:
    """Class indices, int64 `(N,)`, of a column of labels.

    Args:
        values: whole numbers, or texts out of `names`.
        column: for errors.
        split: for errors.
        names: class names, where there are any.
        classes: number of classes; None admits every index below `MOST_CLASSES`.
        begin: number of the first row, for errors.

    Raises:
        UserError: for a label that is missing, not a whole number, negative or outside the classes; the first
            such row is named.
    """
    index_of = {name: index for index, name in enumerate(names or [])}
    limit = len(names) if names is not None else classes or MOST_CLASSES
    indices = []
    for row, value in enumerate(values, begin):
        index = index_of.get(value, value) if isinstance(value, str) else value
        if not isinstance(index, int) or not 0 <= index < limit:
            shown = "no label" if value is None else f"the label {reprlib.repr(value)}"
            wanted = f"0 to {limit - 1}" if isinstance(value, int) else f"a whole number from 0 to {limit - 1}"
            wanted = wanted if names is None or isinstance(value, int) else f"one of the {limit} classes"
            remedy = "cast the column to int64" if isinstance(value, float) else "mend the label or remove the row"
            raise UserError(
                f"labels: image {row} of split {split!r} has {shown} in column {column!r}, expected {wanted}: {remedy}"
            )
        indices.append(int(index))
    return torch.tensor(indices, dtype=torch.int64)


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, Mapping):  # parquet that was not written by `datasets`
        return set(feature) == {"bytes", "path"}
    return type(feature).__name__ == "Image" or _is_value(feature, ("binary", "large_binary"))


def _is_value(feature: Any, kinds: tuple[str, ...]) -> bool:
    return type(feature).__name__ == "Value" and str(feature.dtype).startswith(kinds)


def _listed(features: Mapping[str, Any]) -> str:
    kinds = {name: getattr(feature, "dtype", "struct") for name, feature in features.items()}
    return ", ".join(
        f"{name} ({type(features[name]).__name__ if type(features[name]).__name__ != 'Value' else kind})"
        for name, kind in kinds.items()
    )
