"""A data set of `datasets` with a transform of the user's own (`set_transform`, `with_transform`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.columns import find_image_column, find_label_column, list_columns, note_others
from feature_gan_kd.data.labels import plain_label
from feature_gan_kd.data.rng import seeded
from feature_gan_kd.data.sources import Split
from feature_gan_kd.utils.errors import UserError, reason

# What a transform for transformers' models calls the images that are ready, and the labels.
_READY_IMAGES, _READY_LABELS = "pixel_values", "labels"
# Of so many classes one image each is transformed before a run, to see whether the labels are changed.
_CLASSES_LOOKED_AT = 50


class TransformedRows:
    """Pairs of an image and a label, as the user's transform gives them; a map-style torch `Dataset`.

    Args:
        split: holds a `datasets.Dataset` with a transform. Its transform is called for each image in each epoch.
        config: may name the columns, as the transform calls them.
        notes: gets a line for the user.

    Attributes:
        classes: class names, where the data have some and the transform leaves the labels as they are; else None.
        targets: the labels before the transform; None where it makes the column of labels.

    Raises:
        UserError: for a transform that fails on the first row, and for columns that are not there after it.
    """

    def __init__(self, split: Split, config: DistillConfig, notes: list[str]) -> None:
        self.rows, self.split = split.data, split.name
        features = self.rows.features
        if not len(self.rows):
            raise UserError(f"{split.setting}: split {split.name!r} is empty")
        row = self._row(0, split.setting, "first row")
        self.image, images = self._find_image(row, config.image_column, split.name)
        self.label, labels = self._find_label(row, features, config, self.image, split.name)
        self.targets: list[Any] | None = None
        if self.label is not None and self.label in features:
            column = self.rows.with_format("arrow").select_columns([self.label])[:].column(self.label)
            self.targets = column.to_pylist()
        self.classes: list[str] | None = getattr(features.get(str(self.label)), "names", None)
        if self.classes is not None and self._changes_labels(split.setting):
            self.classes = None
            notes.append(
                f"split {split.name!r}: its class names are not used, because its transform changes the labels"
            )
        notes.append(
            f"split {split.name!r}: images as the data set's transform gives them, in {self.image!r}"
            f"{note_others(images, 'image_column')}, "
            f"{'without labels' if self.label is None else f'labels in {self.label!r}'}"
            f"{note_others(labels, 'label_column')}"
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.rows[index]
        if self.label is None:
            return row[self.image], None
        if self.classes is not None and self.targets is not None and self._is_changed(index, row[self.label]):
            raise UserError(
                f"labels: the transform of split {self.split!r} changes the label {self.targets[index]} of image "
                f"{index} to {plain_label(row[self.label])!r}, which may be another class: leave the labels as they "
                "are, or cast their column to datasets.Value('int64'), which has no class names"
            )
        return row[self.image], row[self.label]

    def _row(self, index: int, setting: str, which: str) -> Mapping[str, Any]:
        with seeded(0):
            try:
                row: Mapping[str, Any] = self.rows[index]
            except Exception as error:  # the user's own code
                raise UserError(
                    f"{setting}: the transform of split {self.split!r} fails on its {which} ({reason(error)}): "
                    "correct it, or remove it with reset_format()"
                ) from error
        return row

    def _is_changed(self, index: int, label: Any) -> bool:
        return self.targets is not None and bool(plain_label(label) != self.targets[index])

    def _changes_labels(self, setting: str) -> bool:
        """Whether the transform changes the label of the first image of a class; others are compared when read."""
        assert self.targets is not None
        assert self.label is not None
        first = {label: index for index, label in reversed(list(enumerate(self.targets)))}
        looked_at = sorted(first.values())[:_CLASSES_LOOKED_AT]
        return any(self._is_changed(k, self._row(k, setting, f"row {k}")[self.label]) for k in looked_at)

    @staticmethod
    def _find_image(row: Mapping[str, Any], named: str | None, split: str) -> tuple[str, list[str]]:
        from datasets import Image
        from PIL.Image import Image as PILImage

        if named is None and _READY_IMAGES in row:
            return _READY_IMAGES, []
        kinds = {
            name: Image()
            if isinstance(value, PILImage) or (isinstance(value, Tensor) and value.dim() == 3)
            else type(value).__name__
            for name, value in row.items()
        }
        return find_image_column(kinds, named, split)

    @staticmethod
    def _find_label(
        row: Mapping[str, Any], features: Mapping[str, Any], config: DistillConfig, image: str, split: str
    ) -> tuple[str | None, list[str]]:
        from datasets import Value

        named = config.label_column
        if named is None and _READY_LABELS in row:
            return _READY_LABELS, []
        plain = {name: plain_label(value) for name, value in row.items()}
        kinds = {
            name: features.get(name, Value("int64")) if isinstance(value, int) else type(value).__name__
            for name, value in plain.items()
        }
        if config.labels and len(kinds) > 1 and not any(isinstance(value, int) for value in plain.values()):
            raise UserError(
                f"label_column: the transform of split {split!r} gives no whole number for an image; it gives "
                f"{list_columns(kinds)}: give class indices, as the column of labels holds them"
            )
        return find_label_column(kinds, named, image, split, required=config.labels)
