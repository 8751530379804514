"""Labelled images one at a time: of a table, or of the user's own torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from feature_gan_kd.data.convert import ImageError, convert_channels
from feature_gan_kd.data.decode import decode_error, decode_image
from feature_gan_kd.data.image_transforms import ImageTransform, check_tensor
from feature_gan_kd.data.labels import plain_label
from feature_gan_kd.data.rng import seeded
from feature_gan_kd.data.stated_labels import stated_labels
from feature_gan_kd.data.table import Table
from feature_gan_kd.utils.errors import UserError

ItemKey = tuple[int, int | None]
"""Index of an image and the seed of its augmentation; None in evaluation."""

Item = tuple[Tensor, int]
"""An image, uint8 `(H, W, C)` or float `(C, H, W)` that is normalised already, and its label."""


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
            image = decode_image(value, self.transform.channels, where, self.table.mode)
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
                item = self._load(0)
            except ImageError:
                return True
        return isinstance(item, Sequence) and isinstance(item[0], Image)

    def stated_labels(self) -> list[Any]:
        """Returns the labels as the data set lists them, see `stated_labels`; none where it lists none."""
        labels = stated_labels(self.data)
        return [] if labels is None else [labels[position] for position in self.positions.tolist()]

    def describe_image(self, index: int) -> str:
        """See `ItemSource`."""
        return f"image {int(self.positions[index])} of split {self.split!r}"

    def _load(self, index: int) -> Any:
        """Returns what the data set gives, after reading PIL images whole: PIL finds a broken file only then."""
        from PIL.Image import Image

        try:
            item = self.data[int(self.positions[index])]
            if isinstance(item, Sequence) and item and isinstance(item[0], Image):
                item[0].load()
        except (OSError, SyntaxError) as error:  # what PIL raises for broken files; others are bugs in the data set
            raise decode_error(self.describe_image(index), error) from error
        return item

    def __getitem__(self, key: ItemKey) -> Item | UserError:
        from PIL.Image import Image

        index, seed = key
        where = self.describe_image(index)
        try:
            # The user's own transforms may draw from any of the global generators: seed them per image.
            with seeded(seed or 0):
                item = self._load(index)
                if not isinstance(item, Sequence) or len(item) != 2:
                    raise UserError(f"{self.setting}: {where} is not a pair of an image and a label")
                image, label = item
                if isinstance(image, Image):
                    image = convert_channels(image, self.transform.channels, where)
                    image = self.transform(image, train=seed is not None, where=where)
                else:
                    image = check_tensor(image, self.transform.channels, where)
            index = _check_label(label, self.label_limit, where)
            return image, index if self.places is None else self.places[index]
        except UserError as error:
            return error


def _check_label(label: Any, limit: int | None, where: str) -> int:
    """Returns a user's label as a class index."""
    label = plain_label(label)
    if not isinstance(label, int) or label < 0 or (limit is not None and label >= limit):
        expected = "a whole number from 0" if limit is None else f"0 to {limit - 1}"
        raise UserError(f"labels: {where} has the label {label!r}, expected {expected}")
    return label
