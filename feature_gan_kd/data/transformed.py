"""A data set of `datasets` with a transform of the user's own (`set_transform`, `with_transform`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.columns import find_image_column, find_label_column, note_others
from feature_gan_kd.data.rng import seeded
from feature_gan_kd.data.sources import Split
from feature_gan_kd.utils.errors import UserError, reason

# What a transform for transformers' models calls the images that are ready, and the labels.
_READY_IMAGES, _READY_LABELS = "pixel_values", "labels"


def has_transform(data: Any) -> bool:
    """Whether `data`, a data set of `datasets`, calls a function of the user's own when it is read."""
    return getattr(data, "format", {}).get("type") == "custom"


class TransformedRows:
    """Pairs of an image and a label, as the user's transform gives them; a map-style torch `Dataset`.

    Args:
        split: holds a `datasets.Dataset` with a transform. Its transform is called for each image in each epoch.
        config: may name the columns, as the transform calls them.
        notes: gets a line for the user.

    Attributes:
        classes: class names; None where the data have none.

    Raises:
        UserError: for a transform that fails on the first row, and for columns that are not there after it.
    """

    def __init__(self, split: Split, config: DistillConfig, notes: list[str]) -> None:
        self.rows = split.data
        features = self.rows.features
        if not len(self.rows):
            raise UserError(f"{split.setting}: split {split.name!r} is empty")
        with seeded(0):
            try:
                row = self.rows[0]
            except Exception as error:  # the user's own code
                raise UserError(
                    f"{split.setting}: the transform of split {split.name!r} fails on its first row ({reason(error)}): "
                    "correct it, or remove it with reset_format()"
                ) from error
        self.image, images = self._find_image(row, config.image_column, split.name)
        self.label, labels = self._find_label(row, features, config.label_column, self.image, split.name)
        self.classes: list[str] | None = getattr(features.get(self.label), "names", None)
        notes.append(
            f"split {split.name!r}: images as the data set's transform gives them, in {self.image!r}"
            f"{note_others(images, 'image_column')}, labels in {self.label!r}{note_others(labels, 'label_column')}"
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.rows[index]
        return row[self.image], row[self.label]

    @staticmethod
    def _find_image(row: Mapping[str, Any], named: str | None, split: str) -> tuple[str, list[str]]:
        from datasets import Image, Value
        from PIL.Image import Image as PILImage

        if named is None and _READY_IMAGES in row:
            return _READY_IMAGES, []
        kinds = {
            name: Image()
            if isinstance(value, PILImage) or (isinstance(value, Tensor) and value.dim() == 3)
            else Value("null")
            for name, value in row.items()
        }
        return find_image_column(kinds, named, split)

    @staticmethod
    def _find_label(
        row: Mapping[str, Any], features: Mapping[str, Any], named: str | None, image: str, split: str
    ) -> tuple[str, list[str]]:
        from datasets import Value

        if named is None and _READY_LABELS in row:
            return _READY_LABELS, []
        kinds = {
            name: features.get(name, Value("int64"))
            if isinstance(value, int) or (isinstance(value, Tensor) and value.dim() == 0)
            else Value("null")
            for name, value in row.items()
        }
        return find_label_column(kinds, named, image, split)
