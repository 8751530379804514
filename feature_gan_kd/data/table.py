"""A split of a `datasets` data set as undecoded images with class indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.columns import find_image_column, find_label_column, note_others
from feature_gan_kd.data.labels import (
    MAX_CLASSES,
    NO_LABEL,
    UNKNOWN_CLASS,
    are_numbers,
    class_names_of,
    encode_labels,
    is_missing,
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
        if are_numbers(names) and self._numbers_fit(names):
            return None  # see `places`
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
        shown = ", ".join(f"{name!r} is class {k}" for k, name in enumerate(names[:3])) + ", ..." * (len(names) > 3)
        notes.append(
            f"split {split!r}: no class names are known of {self.owner}, so these are taken in their order: {shown}"
        )
        return names

    def _numbers_fit(self, names: list[str]) -> bool:
        """Whether names that are numbers can be the numbers of these classes, which have no names."""
        return len({int(name) for name in names}) == len(names) and max(map(int, names)) < (self.count or len(names))

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

    def places_of_numbers(self) -> list[int] | None:
        """Returns the class that each plain number means where the classes are named by numbers; None for its index.

        `UNKNOWN_CLASS` stands for a number that is no name.
        """
        names = self.names or []
        numbers = {int(name): k for k, name in enumerate(names)} if names and are_numbers(names) else {}
        if len(numbers) < len(names) or not numbers or max(numbers) >= MAX_CLASSES:
            return None
        if all(number == k for number, k in numbers.items()):
            return None
        return [numbers.get(number, UNKNOWN_CLASS) for number in range(max(numbers) + 1)]

    def places(self, names: list[str] | None) -> list[int] | None:
        """Returns for each class of a split its index among these; None where labels are these indices already.

        Args:
            names: of the split, as `resolve_names` has checked them.
        """
        if names is not None and self.names is None and are_numbers(names) and self._numbers_fit(names):
            numbers = [int(name) for name in names]
            return None if numbers == list(range(len(names))) else numbers
        if names is None or self.names is None or names == self.names:
            return None
        return [self.names.index(name) for name in names]


@dataclass(frozen=True)
class Table:
    """One split of a data set: undecoded images, and labels as class indices.

    Attributes:
        rows: `datasets.Dataset` with the one column `image`, not decoded.
        image: name of the column of images.
        labels: int64 `(N,)`, `NO_LABEL` for an image without one.
        class_names: by class index; None where the data have none.
        num_classes: number of classes; None where no image has a label.
        positions: int64 `(N,)`, each row's index in the split, for messages.
        split: name of the split.
        order_declared: see `Classes`.
        mode: of PIL, which the column states for its images; None for that of each file.
        joined: the splits whose images follow those of `split`, see `join_unlabeled`.
        origin: int64 `(N,)`, 0 for the images of `split`, k for those of `joined[k - 1]`; None where none is joined.
    """

    rows: Any
    image: str
    labels: Tensor
    class_names: list[str] | None
    num_classes: int | None
    positions: Tensor
    split: str
    order_declared: bool = True
    mode: str | None = None
    joined: tuple[Table, ...] = field(default=(), repr=False)
    origin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Table:
        """Returns the rows at `indices`, int64 `(n,)`."""
        return replace(
            self,
            rows=self.rows.select(indices.tolist(), keep_in_memory=True),
            labels=self.labels[indices],
            positions=self.positions[indices],
            origin=None if self.origin is None else self.origin[indices],
        )

    def _origin_of(self, row: int) -> Table:
        """The split that a row comes from."""
        return self if self.origin is None or not self.origin[row] else self.joined[int(self.origin[row]) - 1]

    def mode_of(self, row: int) -> str | None:
        """The mode that is stated for the image of a row."""
        return self._origin_of(row).mode

    def describe_image(self, row: int) -> str:
        """Names the image of a row in messages."""
        origin = self._origin_of(row)
        whose = "" if origin is self else " of unlabeled_data"
        return f"image {int(self.positions[row])} of split {origin.split!r}{whose}"

    def describe_file(self, row: int) -> str:
        """Names the image of a row with its file, if it has one."""
        image = self.rows[row][self.image]
        path = image and image["path"]
        return f"{self.describe_image(row)} ({path})" if path else self.describe_image(row)

    def files(self) -> list[str] | None:
        """The file of each image, empty for a row without one; None where the rows hold the images."""
        first = self.rows[0][self.image]
        if first is None or first["bytes"] is not None or not first["path"]:
            return None
        images = (image for part in self.undecoded_images() for image in part)
        return [image["path"] or "" if image and image["bytes"] is None else "" for image in images]

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
    dataset = _rows_of(split)
    image, other_images = find_image_column(dataset.features, config.image_column, split.name)
    label, other_labels = find_label_column(
        dataset.features, config.label_column, image, split.name, required=config.labels
    )
    if label is None:
        notes.append(
            f"split {split.name!r}: {len(dataset)} images in column {image!r}"
            f"{note_others(other_images, '--image-column')}, without labels"
        )
        return _unlabeled_table(dataset, image, split.name)
    values = dataset.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
    feature = dataset.features[label]
    values, names, places = _read_names(feature, values, label, split.name, num_classes, known, notes)
    limit = known.count if known is not None and known.count is not None else len(names) if names else num_classes
    labels = encode_labels(values, label, split.name, names, limit, places)
    count = limit or int(labels.max()) + 1 or None
    notes.append(
        f"split {split.name!r}: {len(dataset)} images{f' of {count} classes' if count else ''} in column {image!r}"
        f"{note_others(other_images, '--image-column')}, labels in {label!r}"
        f"{note_others(other_labels, '--label-column')}"
    )
    return replace(
        _unlabeled_table(dataset, image, split.name),
        labels=labels,
        class_names=names,
        num_classes=count,
        order_declared=type(feature).__name__ == "ClassLabel",
    )


def read_unlabeled(split: Split, config: DistillConfig, notes: list[str]) -> Table:
    """Reads the images of a split, and no label that they may have.

    Args:
        split: holds a `datasets.Dataset`.
        config: may name the column of images; where this split has none of that name, it is found.
        notes: gets a line for the user.

    Raises:
        UserError: for an empty split, and one without a column of images.
    """
    dataset = _rows_of(split)
    named = config.image_column if config.image_column in dataset.features else None
    image, others = find_image_column(dataset.features, named, split.name)
    label, _ = find_label_column(dataset.features, None, image, split.name, required=False)
    unread = "" if label is None else f", whose labels in {label!r} are not read"
    notes.append(
        f"{split.setting}: {len(dataset)} images of split {split.name!r} in column {image!r}"
        f"{note_others(others, '--image-column')}{unread}"
    )
    return _unlabeled_table(dataset, image, split.name)


def join_unlabeled(train: Table, others: Sequence[Table]) -> Table:
    """Adds images without labels to those that are trained on.

    Args:
        train: the images to train on.
        others: what is added, each of which has no label.
    """
    from datasets import concatenate_datasets

    parts = (train, *others)
    named = [part.rows.rename_columns({part.image: train.image} if part is not train else {}) for part in parts]
    return replace(
        train,
        rows=concatenate_datasets(named),
        labels=torch.cat([part.labels for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        joined=tuple(others),
        origin=torch.cat([torch.full((len(part),), k) for k, part in enumerate(parts)]),
    )


def _rows_of(split: Split) -> Any:
    dataset = split.data.with_format(None)
    if len(dataset) == 0:
        raise UserError(f"{split.setting}: split {split.name!r} is empty")
    return dataset


def _unlabeled_table(dataset: Any, image: str, split: str) -> Table:
    from datasets import Image

    return Table(
        rows=dataset.select_columns([image]).cast_column(image, Image(decode=False)),
        image=image,
        labels=torch.full((len(dataset),), NO_LABEL),
        class_names=None,
        num_classes=None,
        positions=torch.arange(len(dataset)),
        split=split,
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
) -> tuple[list[Any], list[str] | None, list[int] | None]:
    """Returns the labels, the names of the classes and the class that each number means, see `encode_labels`.

    The labels are texts where these name the classes, else as they are.
    """
    declared = type(feature).__name__ == "ClassLabel"
    if known is not None and all(map(is_missing, values)):
        return values, known.names, None  # such a split is passed over, whatever classes it declares
    if known is not None and known.names and not declared:
        # Texts and numbers become names by themselves. A split in which some class has no image would have others.
        texts = numbers_as_names(values) if are_numbers(known.names) else values
        if any(isinstance(value, str) for value in texts):
            return texts, known.names, None
    names = class_names_of(feature, values, f"column {column!r} of split {split!r}", None if known else num_classes)
    if names is None or declared or any(isinstance(value, str) for value in values):
        if known is None:
            return values, names, None
        resolved, places = known.resolve_names(names, split, notes, order_declared=declared), known.places(names)
        if resolved is None and not declared:  # texts that are numbers, of classes without names
            return [int(value) if isinstance(value, str) else value for value in values], None, None
        return values, resolved, places
    if known is not None:
        return values, known.resolve_names(None, split, notes), None
    notes.append(
        f"split {split!r}: the labels are not 0 to {len(names) - 1}, so each number is the name of a class; with "
        "num_classes they are class indices"
    )
    return numbers_as_names(values), names, None
