"""A split of a `datasets` data set as undecoded images with class indices."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.data.sources import Part
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Classes:
    """What is known of the classes of a split.

    Attributes:
        names: by class index; None where the data have none.
        count: number of classes; None where the data do not say.
        split: where they come from, for messages.
    """

    names: list[str] | None
    count: int | None
    split: str

    def agree(self, names: list[str] | None, split: str) -> list[str] | None:
        """The names that hold for another split, which has `names` of its own.

        Raises:
            UserError: where the two splits have other classes.
        """
        if names is None:
            return self.names
        count = len(self.names) if self.names is not None else self.count
        if count is not None and len(names) != count:
            raise UserError(
                f"labels: split {split!r} has {len(names)} classes, {self.split!r} has {count}: give both the same"
            )
        if self.names is not None and names != self.names:
            at = next(k for k, pair in enumerate(zip(names, self.names, strict=True)) if pair[0] != pair[1])
            raise UserError(
                f"labels: class {at} is {names[at]!r} in split {split!r} and {self.names[at]!r} in {self.split!r}: "
                "give both the same names in the same order"
            )
        return names


@dataclass(frozen=True)
class Table:
    """Rows of one split.

    Attributes:
        rows: `datasets.Dataset` with the one column `image`, not decoded.
        image: name of the column of images.
        labels: int64 `(N,)`.
        class_names: where the data have names.
        num_classes: number of classes.
        positions: int64 `(N,)`, each row's place in the split, for messages.
        split: name of the split.
    """

    rows: Any
    image: str
    labels: Tensor
    class_names: list[str] | None
    num_classes: int
    positions: Tensor
    split: str

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Table:
        """The rows at `indices`, int64 `(n,)`."""
        return replace(
            self,
            rows=self.rows.select(indices.tolist(), keep_in_memory=True),
            labels=self.labels[indices],
            positions=self.positions[indices],
        )

    def where(self, row: int) -> str:
        """How an error names a row."""
        return f"image {int(self.positions[row])} of split {self.split!r}"

    def found(self, row: int) -> str:
        """How the user finds a row: with its file, where it has one."""
        image = self.rows[row][self.image]
        path = image and image["path"]
        return f"{self.where(row)} ({path})" if path else self.where(row)

    def undecoded(self, rows: int = 1000) -> Iterator[list[Any]]:
        """The images as the column holds them, in lists of `rows`."""
        for part in self.rows.iter(batch_size=rows):
            yield part[self.image]


def read_table(
    part: Part, config: DistillConfig, notes: list[str], classes: int | None, train: Classes | None = None
) -> Table:
    """Finds the columns of a split and reads its labels.

    Args:
        part: holds a `datasets.Dataset`.
        config: may name the columns.
        notes: lines for the user are added to it.
        classes: number of classes where neither the data nor `train` say.
        train: the classes of the training part, which an evaluation part must share.

    Raises:
        UserError: for an empty split, columns that are not there, bad labels, or classes unlike `train`'s.
    """
    from datasets import Image

    dataset = part.data.with_format(None)
    if len(dataset) == 0:
        raise UserError(f"data: split {part.split!r} is empty")
    image = image_column(dataset.features, config.image_column, part.split)
    label, others = label_column(dataset.features, config.label_column, image, part.split)
    values = dataset.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
    names = class_names_of(dataset.features[label], values)
    if train is not None:
        texts = any(isinstance(value, str) for value in values)
        names = train.names if texts and train.names else train.agree(names, part.split)
    known = train.count if train is not None and train.count is not None else len(names) if names else classes
    labels = encoded(values, label, part.split, names, known)
    others_note = f" (also there: {', '.join(others)}; choose with --label-column)" if others else ""
    count = known or int(labels.max()) + 1
    notes.append(
        f"split {part.split!r}: {len(dataset)} images of {count} classes in column {image!r}, labels in {label!r}"
        f"{others_note}"
    )
    return Table(
        rows=dataset.select_columns([image]).cast_column(image, Image(decode=False)),
        image=image,
        labels=labels,
        class_names=names,
        num_classes=count,
        positions=torch.arange(len(dataset)),
        split=part.split,
    )


# Plain numbers are class indices; a larger one is an identifier, for which no model could have the logits.
MOST_CLASSES = 1_000_000


# Usual names of label columns where the type does not tell, the likeliest first.
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "classes", "category", "y")


_LABEL_PARTS = ("label", "target", "class")


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
