"""A split of a `datasets` data set as undecoded images with class indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.config import DistillConfig
from feature_gan_kd.data.columns import class_names_of, encoded, image_column, label_column
from feature_gan_kd.data.sources import Part
from feature_gan_kd.errors import UserError


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

    def undecoded(self, rows: int = 1000) -> Iterator[list[Any]]:
        """The images as the column holds them, in lists of `rows`."""
        for part in self.rows.iter(batch_size=rows):
            yield part[self.image]


def read_table(part: Part, config: DistillConfig, notes: list[str], train: Table | None = None) -> Table:
    """Finds the columns of a split and reads its labels.

    Args:
        part: holds a `datasets.Dataset`.
        config: may name the columns.
        notes: lines for the user are added to it.
        train: the training table, whose classes an evaluation table must share.

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
        names = _shared_names(names, train, is_text=isinstance(values[0], str), split=part.split)
    labels = encoded(values, label, part.split, names, train.num_classes if train else None)
    notes.append(f"split {part.split!r}: {len(dataset)} images in column {image!r}, labels in {label!r}")
    if others:
        notes[-1] += f" (also there: {', '.join(others)}; choose with --label-column)"
    return Table(
        rows=dataset.select_columns([image]).cast_column(image, Image(decode=False)),
        image=image,
        labels=labels,
        class_names=names,
        num_classes=train.num_classes if train else len(names) if names else int(labels.max()) + 1,
        positions=torch.arange(len(dataset)),
        split=part.split,
    )


def _shared_names(names: list[str] | None, train: Table, *, is_text: bool, split: str) -> list[str] | None:
    if is_text:  # the training split's texts decide; another one is met as a bad label
        return train.class_names
    if names is None or train.class_names is None:
        if names is not None and len(names) != train.num_classes:
            raise UserError(f"labels: split {split!r} has {len(names)} classes, the training split {train.num_classes}")
        return train.class_names
    if names != train.class_names:
        pairs = zip(names, train.class_names, strict=False)
        at = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(names), len(train.class_names)))
        raise UserError(
            f"labels: split {split!r} has {len(names)} classes and split {train.split!r} "
            f"{len(train.class_names)}; their names differ from class {at} on: give both the same classes"
        )
    return names
