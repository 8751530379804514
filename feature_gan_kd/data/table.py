"""A split of a `datasets` data set as undecoded images with class indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.columns import find_image_column, find_label_column, note_others
from feature_gan_kd.data.labels import (
    are_numbers,
    class_names_of,
    encode_labels,
    numbers_as_names,
)
from feature_gan_kd.data.sources import Split
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Classes:
    """What is known about the classes of a split, or of the models.

    Attributes:
        names: by class index; None where the data have none.
        count: number of classes; None where the data do not say.
        owner: whose classes they are, for messages: "split 'train'" or "the models".
        order_declared: whether the order of the names is that of the data or the models, so that a number means the
            name at this index. Distinct texts or numbers of a column are sorted here, and a number means none of them.
    """

    names: list[str] | None
    count: int | None
    owner: str
    order_declared: bool = True

    def resolve_names(
        self, names: list[str] | None, split: str, notes: list[str], *, order_declared: bool = True
    ) -> list[str] | None:
        """Returns the class names of another split, which itself has `names` (None: has none).

        Its classes may be some of these, or in another order: see `places`.

        Args:
            names: of the split.
            split: its name.
            notes: gets a line where its classes are some of these, or in another order.
            order_declared: whether it declares their order, see the attribute.

        Raises:
            UserError: where the split has a class that is none of these, or numbers of which it is not known which of
                these names they mean.
        """
        if names is None and self.names is not None and not self.order_declared:
            raise UserError(
                f"labels: split {split!r} has plain numbers, and it is not known which of the classes of {self.owner} "
                f"({', '.join(map(repr, self.names[:3]))}{', ...' * (len(self.names) > 3)}) each means: give both the "
                "same names, or cast the label columns of both to datasets.ClassLabel(names=[...])"
            )
        if names is None:
            return self.names
        if self.names is not None:
            self._match(self.names, names, split, notes)
            return self.names
        if not (self.order_declared or order_declared):
            raise UserError(
                f"labels: split {split!r} has texts, {self.owner} has plain numbers, and it is not known which number "
                "each text means: give both the same, or cast the label columns of both to "
                "datasets.ClassLabel(names=[...])"
            )
        if self.count is not None and len(names) != self.count:
            raise UserError(
                f"labels: split {split!r} has {len(names)} classes, expected {self.count} as in {self.owner}: give "
                "both the same"
            )
        return names

    def _match(self, known: list[str], names: list[str], split: str, notes: list[str]) -> None:
        """Notes how the names of a split are matched with those known. Raises UserError where one cannot be."""
        if names == known:
            return
        for name in names:
            if known.count(name) != 1:
                problem = "is not among" if name not in known else "stands for several of"
                shown = ", ".join(map(repr, known[:5])) + ", ..." * (len(known) > 5)
                raise UserError(
                    f"labels: class {name!r} of split {split!r} {problem} the {len(known)} classes of {self.owner} "
                    f"({shown}): leave its images out, or name the classes as there"
                )
        lacking = [repr(name) for name in known if name not in set(names)]
        shown = ", ".join(lacking[:5]) + ", ..." * (len(lacking) > 5)
        how = f"it has no {shown}" if lacking else "they are in another order"
        notes.append(
            f"split {split!r}: {len(names)} of the {len(known)} classes of {self.owner}, matched by name; {how}"
        )

    def places(self, names: list[str] | None) -> list[int] | None:
        """Returns for each class of a split its index among these; None where labels are these indices already.

        Args:
            names: of the split, as `resolve_names` has checked them.
        """
        if names is None or self.names is None or names == self.names:
            return None
        return [self.names.index(name) for name in names]


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
        order_declared: see `Classes`.
        mode: of PIL, which the column states for its images; None for that of each file.
    """

    rows: Any
    image: str
    labels: Tensor
    class_names: list[str] | None
    num_classes: int
    positions: Tensor
    split: str
    order_declared: bool = True
    mode: str | None = None

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
    image, other_images = find_image_column(dataset.features, config.image_column, split.name)
    label, other_labels = find_label_column(dataset.features, config.label_column, image, split.name)
    values = dataset.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
    feature = dataset.features[label]
    values, names = _read_names(feature, values, label, split.name, num_classes, known, notes)
    places = known.places(getattr(feature, "names", None)) if known is not None else None
    limit = known.count if known is not None and known.count is not None else len(names) if names else num_classes
    labels = encode_labels(values, label, split.name, names, limit, places)
    count = limit or int(labels.max()) + 1
    notes.append(
        f"split {split.name!r}: {len(dataset)} images of {count} classes in column {image!r}"
        f"{note_others(other_images, '--image-column')}, labels in {label!r}"
        f"{note_others(other_labels, '--label-column')}"
    )
    return Table(
        rows=dataset.select_columns([image]).cast_column(image, Image(decode=False)),
        image=image,
        labels=labels,
        class_names=names,
        num_classes=count,
        positions=torch.arange(len(dataset)),
        split=split.name,
        order_declared=type(feature).__name__ == "ClassLabel",
        mode=getattr(dataset.features[image], "mode", None),
    )


def _read_names(
    feature: Any,
    values: list[Any],
    column: str,
    split: str,
    num_classes: int | None,
    known: Classes | None,
    notes: list[str],
) -> tuple[list[Any], list[str] | None]:
    """Returns the labels as texts where these name the classes, else as they are, and the names of the classes."""
    declared = type(feature).__name__ == "ClassLabel"
    if known is not None and known.names and not declared:
        # Texts and numbers become names by themselves. A split in which some class has no image would have others.
        texts = numbers_as_names(values) if are_numbers(known.names) else values
        if any(isinstance(value, str) for value in texts):
            return texts, known.names
    names = class_names_of(feature, values, f"column {column!r} of split {split!r}", None if known else num_classes)
    if names is None or declared or any(isinstance(value, str) for value in values):
        return values, names if known is None else known.resolve_names(names, split, notes, order_declared=declared)
    if known is not None:
        return values, known.resolve_names(None, split, notes)
    notes.append(
        f"split {split!r}: the labels are not 0 to {len(names) - 1}, so each number is the name of a class; with "
        "num_classes they are class indices"
    )
    return numbers_as_names(values), names
