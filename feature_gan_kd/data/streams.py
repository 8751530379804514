"""Images that are not held in memory: read item by item through torch's DataLoader, or from the user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from feature_gan_kd.data.batches import (
    Batch,
    CropFlip,
    Normalisation,
    batch_bounds,
    count_steps,
    share,
)
from feature_gan_kd.data.draws import item_seeds, permutation, seeded
from feature_gan_kd.data.images import as_pixels, decode, fingerprint, fitted, statistics, with_channels
from feature_gan_kd.data.table import Table
from feature_gan_kd.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Images looked at for mean and std where not all are decoded.
SAMPLE = 500
# Index of an image and the seed of its augmentation; None in evaluation.
Key = tuple[int, int | None]


@dataclass(frozen=True)
class Views:
    """A PIL image as pixels of one size, uint8 `(size, size, channels)`.

    Attributes:
        size: side in pixels.
        channels: 1 or 3.
        resized_crop: timm's transforms (random resized crop and flip in training, resize and centre crop in
            evaluation); else the largest centred square, resized.
    """

    size: int
    channels: int
    resized_crop: bool

    def __call__(self, image: Image, *, train: bool) -> Tensor:
        """An RGB or L image as its pixels; draws from the global generators where `train`."""
        if self.resized_crop:
            image = _transforms(self.size, train)(image)
        return torch.from_numpy(as_pixels(fitted(image, self.size), self.channels))


@functools.lru_cache(maxsize=4)
def _transforms(size: int, train: bool) -> Callable[[Image], Image]:
    from timm.data import create_transform

    chain = create_transform(size, is_training=train, color_jitter=None, interpolation="bicubic", normalize=False)
    # The last transform makes a tensor; pixels are normalised on the device.
    return type(chain)(chain.transforms[:-1])  # type: ignore[no-any-return]


class Items(Protocol):
    """Labelled images by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | UserError:
        """uint8 `(H, W, C)`, or float `(C, H, W)` that is normalised already, and the label.

        A bad image is returned as its error and not raised: a worker's exception would reach the user with the
        worker's traceback in its text.
        """
        ...


@dataclass(frozen=True)
class TableItems:
    """Images of a `Table`, decoded when they are asked for."""

    table: Table
    views: Views

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | UserError:
        index, seed = key
        try:
            value = self.table.rows[index][self.table.image]
            image = decode(value, self.views.channels, self.table.where(index))
        except UserError as error:
            return error
        with seeded(seed or 0):
            return self.views(image, train=seed is not None), int(self.table.labels[index])


@dataclass(frozen=True)
class TorchItems:
    """Images of a map-style torch `Dataset`: tensors as they are, PIL images through `views`.

    Attributes:
        data: the data set.
        views: of PIL images.
        class_names: where the data set has them.
        num_classes: where the data set says.
        bound: labels must be below it; None for no bound.
        split: for messages.
        positions: int64 `(N,)`, indices into `data`.
    """

    data: Any
    views: Views
    class_names: list[str] | None
    num_classes: int | None
    bound: int | None
    split: str
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, indices: Tensor) -> TorchItems:
        """The images at `indices`, int64 `(n,)`."""
        return replace(self, positions=self.positions[indices])

    def holds_pictures(self) -> bool:
        """Whether the items are PIL images, which this project transforms, and not tensors."""
        from PIL.Image import Image

        with seeded(0):
            item = self.data[int(self.positions[0])]
        return isinstance(item, Sequence) and isinstance(item[0], Image)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | UserError:
        from PIL.Image import Image

        index, seed = key
        where = f"image {int(self.positions[index])} of split {self.split!r}"
        try:
            with seeded(seed or 0):
                item = self.data[int(self.positions[index])]
                if not isinstance(item, Sequence) or len(item) != 2:
                    raise UserError(f"data: {where} is no pair of an image and a label")
                image, label = item
                if isinstance(image, Image):
                    image = self.views(with_channels(image, self.views.channels), train=seed is not None)
                else:
                    image = _as_item(image, self.views.channels, where)
            return image, _class_index(label, self.bound, where)
        except UserError as error:
            return error


def _as_item(image: Any, channels: int, where: str) -> Tensor:
    if not isinstance(image, Tensor) or not (image.dtype == torch.uint8 or image.is_floating_point()):
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"images: {where} is {kind}, expected a PIL image or a uint8 or float tensor")
    if image.dim() != 3 or image.shape[0] != channels:
        raise UserError(f"images: {where} has the shape {tuple(image.shape)}, expected ({channels}, height, width)")
    return image.permute(1, 2, 0) if image.dtype == torch.uint8 else image.float()


def _class_index(label: Any, classes: int | None, where: str) -> int:
    if (isinstance(label, Tensor) and label.dim() == 0) or type(label).__module__ == "numpy":
        label = label.item()
    if not isinstance(label, int) or label < 0 or (classes is not None and label >= classes):
        expected = "a whole number from 0" if classes is None else f"0 to {classes - 1}"
        raise UserError(f"labels: {where} has the label {label!r}, expected {expected}")
    return label


def _collate(items: list[tuple[Tensor, int] | UserError]) -> Batch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    pairs = [item for item in items if not isinstance(item, UserError)]
    shapes = {tuple(image.shape) for image, _ in pairs}
    if len(shapes) > 1:
        return UserError(f"images: tensors of different shapes, {sorted(shapes)[:2]}: resize them to one")
    images = torch.stack([image for image, _ in pairs]) if pairs else torch.empty(0)
    return images, torch.tensor([label for _, label in pairs], dtype=torch.int64)


class StreamedImages:
    """Images read item by item, in `workers` processes, in this process where that is 0.

    Args:
        items: the images.
        views: their size and channels.
        augment: on whole batches of uint8 pixels, in training; None for none.
        workers: processes.
    """

    def __init__(self, items: Items, views: Views, augment: CropFlip | None, workers: int) -> None:
        self.items = items
        self.views = views
        self.augment = augment
        self.workers = workers
        self.normalise = Normalisation.identity(views.channels)

    def __len__(self) -> int:
        return len(self.items)

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`."""
        return count_steps(len(self), batch_size, train=train)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of evenly spread images; 0 and 1 for images that are normalised already.

        Raises:
            UserError: for an image that cannot be read.
        """
        images, _ = self._sample(SAMPLE)
        if images.is_floating_point():
            return (0.0,) * self.views.channels, (1.0,) * self.views.channels
        return statistics(images)

    def fingerprint(self) -> str:
        """SHA-256 of the number of images and of a few, evenly spread.

        Raises:
            UserError: for an image that cannot be read.
        """
        images, labels = self._sample(50)
        return fingerprint(images, torch.cat([labels, torch.tensor([len(self)])]))

    def _sample(self, count: int) -> Batch:
        indices = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        return _checked(_collate([self.items[index, None] for index in indices]))

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str,
        train: bool,
    ) -> Iterator[Batch]:
        """See `ImageSource`."""
        order = permutation(len(self), seed, epoch) if train else torch.arange(len(self))
        seeds = item_seeds(seed, epoch, order) if train else [None] * len(self)
        bounds = batch_bounds(len(self), batch_size, train=train, start=start)
        spans = [range(begin, end)[share(end - begin, rank, world)] for begin, end in bounds]
        places = order.tolist()
        loader: DataLoader[Any] = DataLoader(
            self.items,  # type: ignore[arg-type]
            batch_sampler=[[(places[k], seeds[k]) for k in span] for span in spans],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the generator that dropout uses
        )
        for span, read in zip(spans, loader, strict=True):
            images, labels = _checked(read)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            indices = order[span.start : span.stop].to(device, non_blocking=True)
            yield self._finished(images, seed, epoch, indices, train=train), labels

    def _finished(self, images: Tensor, seed: int, epoch: int, indices: Tensor, *, train: bool) -> Tensor:
        if not len(images):
            return images.new_empty((0, self.views.channels, self.views.size, self.views.size))
        if images.is_floating_point():
            return images
        if train and self.augment is not None:
            images = self.augment(images, seed, epoch, indices)
        return self.normalise(images)


def _checked(read: Batch | UserError) -> Batch:
    if isinstance(read, UserError):
        raise read
    return read
