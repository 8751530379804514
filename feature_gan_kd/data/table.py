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
