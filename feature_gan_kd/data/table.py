"""A split of a `datasets` data set as undecoded images with class indices."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.sources import Split
from feature_gan_kd.utils.errors import UserError

# Plain numbers are class indices. A larger one is an identifier: no model has so many logits.
MAX_CLASSES = 1_000_000

# Usual names of label columns, the likeliest first, and parts of such names.
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "classes", "category", "y")
_LABEL_NAME_PARTS = ("label", "target", "class")


@dataclass(frozen=True)
class Classes:
    """What is known about the classes of a split, or of the models.

    Attributes:
        names: by class index; None where the data have none.
        count: number of classes; None where the data do not say.
        owner: whose classes they are, for messages: "split 'train'" or "the models".
    """

    names: list[str] | None
    count: int | None
    owner: str

    def resolve_names(self, names: list[str] | None, split: str) -> list[str] | None:
        """Returns the class names of another split, which itself declares `names` (None: declares none).

        Raises:
            UserError: where the split has other classes, or the same in another order.
        """
        if names is None:
            return self.names
        count = len(self.names) if self.names is not None else self.count
        if count is not None and len(names) != count:
            raise UserError(
                f"labels: split {split!r} has {len(names)} classes, expected {count} as in {self.owner}: give both "
                "the same"
            )
        if self.names is not None and names != self.names:
            at = next(k for k, pair in enumerate(zip(names, self.names, strict=True)) if pair[0] != pair[1])
            raise UserError(
                f"labels: class {at} is {names[at]!r} in split {split!r} and {self.names[at]!r} in {self.owner}: "
                "give both the same names in the same order"
            )
        return names


@dataclass(frozen=True)
class Table:
    """One split of a data set: undecoded images, and labels as class indices.

    Attributes:
        rows: `datasets.Dataset` with the one column `image`, not decoded.
        image: name of the column of images.
        labels: int64 `(N,)`.
        class_names: by class index; None where the data have none.
        num_classes: number of classes.
        positions: int64 `(N,)`, each row's index in the split, for messages.
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
        """Returns the rows at `indices`, int64 `(n,)`."""
        return replace(
            self,
            rows=self.rows.select(indices.tolist(), keep_in_memory=True),
            labels=self.labels[indices],
            positions=self.positions[indices],
        )

    def describe_image(self, row: int) -> str:
        """Names the image of a row in messages."""
        return f"image {int(self.positions[row])} of split {self.split!r}"

    def describe_file(self, row: int) -> str:
        """Names the image of a row with its file, if it has one."""
        image = self.rows[row][self.image]
        path = image and image["path"]
        return f"{self.describe_image(row)} ({path})" if path else self.describe_image(row)

    def undecoded_images(self, rows: int = 1000) -> Iterator[list[Any]]:
        """Yields the images as the column holds them, in lists of `rows`."""
        for part in self.rows.iter(batch_size=rows):
            yield part[self.image]


def read_table(
    split: Split, config: DistillConfig, notes: list[str], num_classes: int | None, known: Classes | None = None
) -> Table:
    """Finds the columns of a split and reads its labels.

    Args:
        split: holds a `datasets.Dataset`.
        config: may name the columns.
        notes: gets a line for the user.
        num_classes: of the models; counts where neither the data nor `known` say.
        known: for an evaluation split the classes that it must have, those of the training split or of the models.

    Raises:
        UserError: for an empty split, columns that are not there, bad labels, or classes unlike those `known`.
    """
    from datasets import Image

    dataset = split.data.with_format(None)
    if len(dataset) == 0:
        raise UserError(f"{split.setting}: split {split.name!r} is empty")
    image = find_image_column(dataset.features, config.image_column, split.name)
    label, others = find_label_column(dataset.features, config.label_column, image, split.name)
    values = dataset.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
    names = class_names_of(dataset.features[label], values)
    if known is not None:
        # Texts become names by themselves; a split in which some class has no image would then have other names.
        texts = any(isinstance(value, str) for value in values)
        names = known.names if texts and known.names else known.resolve_names(names, split.name)
    limit = known.count if known is not None and known.count is not None else len(names) if names else num_classes
    labels = encode_labels(values, label, split.name, names, limit)
    others_note = f" (also there: {', '.join(others)}; choose with --label-column)" if others else ""
    count = limit or int(labels.max()) + 1
    notes.append(
        f"split {split.name!r}: {len(dataset)} images of {count} classes in column {image!r}, labels in {label!r}"
        f"{others_note}"
    )
    return Table(
        rows=dataset.select_columns([image]).cast_column(image, Image(decode=False)),
        image=image,
        labels=labels,
        class_names=names,
        num_classes=count,
        positions=torch.arange(len(dataset)),
        split=split.name,
    )


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, Mapping):  # parquet that was not written by `datasets`
        return set(feature) == {"bytes", "path"}
    return type(feature).__name__ == "Image" or _is_value(feature, ("binary", "large_binary"))


def _is_value(feature: Any, kinds: tuple[str, ...]) -> bool:
    """Whether a column holds plain values, of a type whose name starts with one of `kinds`."""
    return type(feature).__name__ == "Value" and str(feature.dtype).startswith(kinds)


def _list_columns(features: Mapping[str, Any]) -> str:
    kinds = {name: getattr(feature, "dtype", "struct") for name, feature in features.items()}
    return ", ".join(
        f"{name} ({type(features[name]).__name__ if type(features[name]).__name__ != 'Value' else kind})"
        for name, kind in kinds.items()
    )


def class_names_of(feature: Any, values: Sequence[Any]) -> list[str] | None:
    """Returns the class names: those of a `ClassLabel`, or the sorted distinct texts; None for plain numbers."""
    if type(feature).__name__ == "ClassLabel":
        return list(feature.names)
    texts = [value for value in values if value is not None]
    return sorted(set(texts)) if texts and all(isinstance(value, str) for value in texts) else None


def encode_labels(
    values: Sequence[Any], column: str, split: str, names: list[str] | None, classes: int | None, *, begin: int = 0
) -> Tensor:
    """Turns a column of labels into class indices, int64 `(N,)`.

    Args:
        values: whole numbers, or texts that are in `names`.
        column: for errors.
        split: for errors.
        names: class names; None where there are none.
        classes: number of classes; None allows every index below `MAX_CLASSES`.
        begin: index of the first row, for errors.

    Raises:
        UserError: for a label that is missing, not a whole number, negative or outside the classes; the first
            such row is named.
    """
    index_of = {name: index for index, name in enumerate(names or [])}
    limit = len(names) if names is not None else classes or MAX_CLASSES
    indices = []
    for row, value in enumerate(values, begin):
        index = index_of.get(value, value) if isinstance(value, str) else value
        if not isinstance(index, int) or not 0 <= index < limit:
            shown = "no label" if value is None else f"the label {reprlib.repr(value)}"
            wanted = f"0 to {limit - 1}" if isinstance(value, int) else f"a whole number from 0 to {limit - 1}"
            wanted = wanted if names is None or isinstance(value, int) else f"one of the {limit} classes"
            remedy = "cast the column to int64" if isinstance(value, float) else "correct the label or remove the row"
            raise UserError(
                f"labels: image {row} of split {split!r} has {shown} in column {column!r}, expected {wanted}: {remedy}"
            )
        indices.append(int(index))
    return torch.tensor(indices, dtype=torch.int64)


def find_image_column(features: Mapping[str, Any], named: str | None, split: str) -> str:
    """Finds the column of images: the one named, else the first whose type is that of images.

    Raises:
        UserError: where there is none, or the named one does not exist or holds something else.
    """
    found = [name for name, feature in features.items() if _holds_images(feature)]
    if named is None and found:
        return found[0]
    listed = _list_columns(features)
    if named is None:
        raise UserError(f"image_column: split {split!r} has no column of images; its columns are {listed}")
    if named not in features:
        raise UserError(f"image_column: split {split!r} has no column {named!r}; its columns are {listed}")
    if named not in found and not _is_value(features[named], ("string", "large_string")):
        raise UserError(f"image_column: column {named!r} of split {split!r} holds no images; columns: {listed}")
    return named


def find_label_column(features: Mapping[str, Any], named: str | None, image: str, split: str) -> tuple[str, list[str]]:
    """Finds the column of labels, and lists the other columns that could be meant.

    Takes the named one; else the first `ClassLabel`, else the whole numbers or texts with the likeliest name.

    Raises:
        UserError: where there is none, or the named one does not exist.
    """
    if named is not None:
        if named not in features:
            raise UserError(
                f"label_column: split {split!r} has no column {named!r}; its columns are {_list_columns(features)}"
            )
        if named == image:
            raise UserError(f"label_column: column {named!r} of split {split!r} holds the images: name another")
        return named, []
    found = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if not found:
        plain = [n for n, f in features.items() if n != image and _is_value(f, ("int", "uint", "bool", "string"))]
        exact = [n for likely in _LABEL_NAMES for n in plain if n.lower() == likely]
        found = exact or [n for n in plain if any(part in n.lower() for part in _LABEL_NAME_PARTS)]
    if not found and len(features) == 1:
        raise UserError(
            f"label_column: split {split!r} has images alone ({image}): give data with labels; in an image folder each "
            "class has a folder of its own"
        )
    if not found:
        raise UserError(
            f"label_column: split {split!r} has no column of whole numbers or texts that looks like labels; its "
            f"columns are {_list_columns(features)}: name one, or change its type"
        )
    return found[0], found[1:]
