"""Images and their labels one at a time: of a table, or of the user's own torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from feature_gan_kd.data.convert import ImageError, convert_channels
from feature_gan_kd.data.decode import decode_error, decode_image
from feature_gan_kd.data.image_transforms import ImageTransform, check_tensor
from feature_gan_kd.data.labels import NO_LABEL, UNKNOWN_CLASS, is_missing, plain_label
from feature_gan_kd.data.rng import permutation, seeded
from feature_gan_kd.data.stated_labels import stated_labels
from feature_gan_kd.data.table import Table
from feature_gan_kd.utils.errors import UserError

ItemKey = tuple[int, int | None]
"""Index of an image and the seed of its augmentation; None in evaluation."""

Item = tuple[Tensor, int]
"""An image, uint8 `(H, W, C)` or float `(C, H, W)` that is normalised already, and its label or `NO_LABEL`."""


class ItemSource(Protocol):
    """Labelled images by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: ItemKey) -> Item | UserError:
        """Returns an image and its label.

        Returns the error of a bad image instead of raising it: an exception raised in a worker process would reach
        the user with the worker's traceback in its text.
        """
        ...

    @property
    def split(self) -> str:
        """Name of the split, for messages."""
        ...

    def describe_image(self, index: int) -> str:
        """Names an image in messages."""
        ...


@dataclass(frozen=True)
class TableImages:
    """Images of a `Table`, decoded when they are asked for."""

    table: Table
    transform: ImageTransform

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: ItemKey) -> Item | UserError:
        index, seed = key
        where = self.describe_image(index)
        try:
            value = self.table.rows[index][self.table.image]
            image = decode_image(value, self.transform.channels, where, self.table.mode_of(index))
            with seeded(seed or 0):
                pixels = self.transform(image, train=seed is not None, where=where)
        except UserError as error:
            return error
        return pixels, int(self.table.labels[index])

    @property
    def split(self) -> str:
        """See `ItemSource`."""
        return self.table.split

    def describe_image(self, index: int) -> str:
        """See `ItemSource`."""
        return self.table.describe_image(index)


@dataclass(frozen=True)
class DecodedImages:
    """Images that are decoded and resized already, as PIL images for transforms that need one.

    Attributes:
        pixels: uint8 `(N, H, W, C)`.
        labels: int64 `(N,)`.
        transform: of PIL images.
        split: name of the split, for messages.
    """

    pixels: Tensor
    labels: Tensor
    transform: ImageTransform
    split: str

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: ItemKey) -> Item:
        from PIL.Image import fromarray

        index, seed = key
        if seed is None:
            return self.pixels[index], int(self.labels[index])
        values = self.pixels[index].numpy()
        with seeded(seed):
            image = self.transform(fromarray(values[..., 0] if values.shape[-1] == 1 else values), train=True)
        return image, int(self.labels[index])

    def describe_image(self, index: int) -> str:
        """See `ItemSource`."""
        return f"image {index} of split {self.split!r}"


@dataclass(frozen=True)
class TorchDatasetImages:
    """Images of a map-style torch `Dataset`: tensors as they are, PIL images through `transform`.

    Attributes:
        data: the data set.
        transform: of PIL images.
        class_names: None where the data set has none.
        num_classes: None where the data set does not say.
        label_limit: labels must be below it; None for no limit.
        split: name of the split, for messages.
        setting: that named the data, for messages.
        positions: int64 `(N,)`, indices into `data`.
        labels: whether each item must be a pair of an image and a label, and not an image alone.
        places: the class that each label means; None where it is the label itself.
    """

    data: Any
    transform: ImageTransform
    class_names: list[str] | None
    num_classes: int | None
    label_limit: int | None
    split: str
    setting: str
    positions: Tensor
    labels: bool = True
    places: list[int] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, indices: Tensor) -> TorchDatasetImages:
        """Returns the images at `indices`, int64 `(n,)`."""
        return replace(self, positions=self.positions[indices])

    def holds_pil_images(self) -> bool:
        """Whether the items are PIL images, which this project augments, and not tensors."""
        from PIL.Image import Image

        with seeded(0):
            try:
                image, _ = self._load(0)
            except ImageError:
                return True
        return isinstance(image, Image)

    def has_labels(self) -> bool:
        """Whether an image has a label: reads images in random order until the first that has one.

        Raises:
            UserError: for an item that is none, and where no image can be decoded.
        """
        bad = 0
        for index in permutation(len(self), 0, 0).tolist():
            item = self[index, None]
            if isinstance(item, tuple) and item[1] != NO_LABEL:
                return True
            bad += isinstance(item, ImageError)
            if isinstance(item, UserError) and (bad == len(self) or not isinstance(item, ImageError)):
                raise item
        return False

    def may_have_label(self) -> Tensor:
        """Which images may have a label, bool `(N,)`: all but those of which the data set lists that they have none.

        A transform may make labels of what it lists, so its list counts only if such an image has none when it is read.
        """
        missing = torch.tensor([is_missing(label) for label in self.stated_labels()] or [False] * len(self))
        first = self[int(missing.int().argmax()), None] if missing.any() else None
        return ~missing if isinstance(first, tuple) and first[1] == NO_LABEL else torch.ones_like(missing)

    def stated_labels(self) -> list[Any]:
        """Returns the labels as the data set lists them, see `stated_labels`; none where it lists none."""
        labels = stated_labels(self.data)
        return [] if labels is None else [labels[position] for position in self.positions.tolist()]

    def describe_image(self, index: int) -> str:
        """See `ItemSource`."""
        return f"image {int(self.positions[index])} of split {self.split!r}"

    def _load(self, index: int) -> tuple[Any, Any]:
        """Returns an image and its label as the data set gives them; None is no label.

        Reads PIL images whole: PIL finds a broken file only then.
        """
        from PIL.Image import Image

        where = self.describe_image(index)
        try:
            item = self.data[int(self.positions[index])]
            parts = item if isinstance(item, Sequence) else [item]
            if len(parts) != 2 and (self.labels or len(parts) != 1):
                alone = ", or set labels=False (--no-labels) to learn from images alone" * (len(parts) == 1)
                raise UserError(f"{self.setting}: {where} is not a pair of an image and a label: give both{alone}")
            image, label = parts if len(parts) == 2 else (parts[0], None)
            if isinstance(image, Image):
                image.load()
        except (OSError, SyntaxError) as error:  # what PIL raises for broken files; others are bugs in the data set
            raise decode_error(where, error) from error
        return image, label

    def __getitem__(self, key: ItemKey) -> Item | UserError:
        from PIL.Image import Image

        index, seed = key
        where = self.describe_image(index)
        try:
            # The user's own transforms may draw from any of the global generators: seed them per image.
            with seeded(seed or 0):
                image, label = self._load(index)
                if isinstance(image, Image):
                    image = convert_channels(image, self.transform.channels, where)
                    image = self.transform(image, train=seed is not None, where=where)
                else:
                    image = check_tensor(image, self.transform.channels, where)
            known = _check_label(label, self.label_limit, where)
            if self.places is not None and known != NO_LABEL:
                known = self.places[known]
                if known == UNKNOWN_CLASS:
                    raise UserError(f"labels: {where} has the label {label}, which names no class")
            return image, known
        except UserError as error:
            return error


def _check_label(label: Any, limit: int | None, where: str) -> int:
    """Returns a user's label as a class index, or `NO_LABEL`."""
    label = plain_label(label)
    if is_missing(label):
        return NO_LABEL
    if not isinstance(label, int) or label < 0 or (limit is not None and label >= limit):
        expected = "a whole number from 0" if limit is None else f"0 to {limit - 1}"
        raise UserError(f"labels: {where} has the label {label!r}, expected {expected}")
    return label
