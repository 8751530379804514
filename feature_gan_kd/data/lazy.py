"""Images that are not held in memory: decoded item by item through torch's DataLoader, anew in every epoch."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from feature_gan_kd.data.batch_transforms import CropFlip, Erasing, PixelNormaliser
from feature_gan_kd.data.batches import Batch, batch_bounds, batch_sizes, count_steps, rank_slice
from feature_gan_kd.data.convert import ImageError
from feature_gan_kd.data.decode import channel_statistics, hash_images, skipped_images_note
from feature_gan_kd.data.epoch_order import EpochOrder, OnceOrder
from feature_gan_kd.data.image_transforms import ImageTransform
from feature_gan_kd.data.items import DecodedImages, Item, ItemKey, ItemSource, TableImages, TorchDatasetImages
from feature_gan_kd.data.rng import item_seeds
from feature_gan_kd.data.unlabeled import UnlabeledRule
from feature_gan_kd.utils.errors import UserError

# Number of images that mean and std are computed from, where not all images are decoded anyway.
STATISTICS_SAMPLE = 500
_MIXED_KINDS = (
    "some are tensors of floats and others of bytes (uint8), and only bytes are normalised here: give all images in "
    "one of the two"
)

ReadItem = tuple[Item | UserError | None, int | None]
"""An item (None: left out), and the index of the image that was skipped for it, if one was."""

CollatedBatch = tuple[Tensor, Tensor, list[int]]
"""Images, labels, and the indices of those that were skipped."""


@dataclass(frozen=True)
class ItemReader:
    """Reads items for a batch and, with `skip`, replaces images that cannot be decoded.

    In training the next good image in the order of the data takes the place of a bad one, with its own label and the
    augmentation seed of the bad one: the number of updates and all other images stay the same, and a resumed run
    makes the same replacements. In evaluation a bad image is left out, since each image must count once.

    Attributes:
        items: the images.
        skip: skip images that cannot be decoded.
    """

    items: ItemSource
    skip: bool

    def __getitem__(self, key: ItemKey) -> ReadItem:
        index, seed = key
        item = self.items[key]
        if not (self.skip and isinstance(item, ImageError)):
            return item, None
        if seed is None:
            return None, index
        for other in range(index + 1, index + len(self.items)):
            item = self.items[other % len(self.items), seed]
            if not isinstance(item, ImageError):
                return item, index
        return item, None


def collate(read: list[ReadItem]) -> CollatedBatch:
    """Stacks the items of a batch.

    Raises:
        UserError: for an item that is an error, or images of different shapes.
    """
    batch = _collate_in_worker(read)
    if isinstance(batch, UserError):
        raise batch
    return batch


def _collate_in_worker(read: list[ReadItem]) -> CollatedBatch | UserError:
    """As `collate`, but returns errors: an exception raised in a worker would come with the worker's traceback."""
    for item, _ in read:
        if isinstance(item, UserError):
            return item
    pairs = [item for item, _ in read if isinstance(item, tuple)]
    if len({image.is_floating_point() for image, _ in pairs}) > 1:
        return UserError(f"images: {_MIXED_KINDS}")
    shapes = {tuple(image.shape) for image, _ in pairs}
    if len(shapes) > 1:
        return UserError(f"images: tensors of different shapes, {sorted(shapes)[:2]}: resize them to one")
    images = torch.stack([image for image, _ in pairs]) if pairs else torch.empty(0)
    labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
    return images, labels, [bad for _, bad in read if bad is not None]


class OnDemandImages:
    """Base of the sources that decode their images anew in every epoch.

    Args:
        transform: size and channels of the images.
        augment: applied to whole batches of uint8 pixels in training; None for none.
        split: its name, for messages.

    Attributes:
        normalise: the run sets it to the normalisation that its models share.
        erase: applied last in training; the run sets it.
        unlabeled: what becomes of images without a label.
    """

    def __init__(self, transform: ImageTransform, augment: CropFlip | None, split: str) -> None:
        self.transform = transform
        self.augment = augment
        self.normalise = PixelNormaliser.identity(transform.channels)
        self.erase: Erasing | None = None
        self.unlabeled = UnlabeledRule(split)
        self._gives_floats: bool | None = None  # as the first batch that was read

    def __len__(self) -> int:
        raise NotImplementedError

    def _sample(self, count: int) -> Batch:
        """Returns at most `count` images, as evaluation sees them, and their labels."""
        raise NotImplementedError

    def sample(self) -> Tensor:
        """Returns some of the images, as evaluation sees them: uint8 `(n, H, W, C)`, or floats `(n, C, H, W)`.

        Raises:
            UserError: for an image that cannot be read.
        """
        return self._sample(50)[0]

    def side(self) -> int:
        """Side in pixels of the first image, which is a square.

        Raises:
            UserError: where it cannot be read.
        """
        return self._sample(1)[0].shape[2]

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`."""
        return count_steps(len(self), batch_size, train=train)

    def holds_floats(self) -> bool:
        """See `ImageSource`; looks at the first image."""
        return self._sample(1)[0].is_floating_point()

    def batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """See `ImageSource`."""
        return batch_sizes(len(self), batch_size)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Computes mean and std of a sample of the images, which must not be floats.

        Raises:
            UserError: for an image that cannot be read.
        """
        return channel_statistics(self._sample(STATISTICS_SAMPLE)[0])

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the number of images and of a few of them.

        Raises:
            UserError: for an image that cannot be read.
        """
        images, labels = self._sample(50)
        return hash_images(images, torch.cat([labels, torch.tensor([len(self)])]))

    def augment_and_normalise(self, images: Tensor, seed: int, epoch: int, indices: Tensor, *, train: bool) -> Tensor:
        """Turns uint8 `(n, H, W, C)` into float32 `(n, C, H, W)`; floats are neither cropped nor normalised.

        Raises:
            UserError: for floats after bytes, or the other way round.
        """
        if not len(images):
            channels = self.transform.training_channels if train else self.transform.channels
            return images.new_empty((0, channels, self.transform.size, self.transform.size))
        if self._gives_floats not in (None, images.is_floating_point()):
            raise UserError(f"images: {_MIXED_KINDS}")
        self._gives_floats = images.is_floating_point()
        if not images.is_floating_point():
            if train and self.augment is not None:
                images = self.augment(images, seed, epoch, indices)
            images = self.normalise(images)
        return self.erase(images, seed, epoch, indices) if train and self.erase is not None else images


class LazyImages(OnDemandImages):
    """Images read item by item, in `num_workers` worker processes, or in this process if that is 0.

    Args:
        items: the images.
        transform: their size and channels.
        augment: applied to whole batches of uint8 pixels in training; None for none.
        num_workers: number of worker processes.
        skip: skip images that cannot be decoded, see `ItemReader`; the first whole pass says on stderr how many.

    Attributes:
        order: of training; the run may set another than that of each image once.
    """

    def __init__(
        self,
        items: ItemSource,
        transform: ImageTransform,
        augment: CropFlip | None,
        num_workers: int,
        *,
        skip: bool = False,
    ) -> None:
        super().__init__(transform, augment, items.split)
        self.items = items
        self.reader = ItemReader(items, skip)
        self.num_workers = num_workers
        self.order: EpochOrder = OnceOrder(len(items))
        self._skips_reported = False

    def __len__(self) -> int:
        return len(self.items)

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`."""
        return count_steps(self.order.length(batch_size) if train else len(self), batch_size, train=train)

    def batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """See `ImageSource`."""
        return batch_sizes(self.order.length(batch_size), batch_size)

    def holds_floats(self) -> bool:
        """See `ImageSource`; looks at the first image, as a transform of the user's own makes it in training."""
        if self.transform.own is None:
            return super().holds_floats()
        return collate([self.reader[0, 0]])[0].is_floating_point()

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Computes mean and std of all images if they are in memory, else of a sample; they must not be floats.

        Raises:
            UserError: for an image that cannot be read.
        """
        if isinstance(self.items, DecodedImages):
            return channel_statistics(self.items.pixels)
        return super().statistics()

    def known_labels(self) -> Tensor | None:
        """Returns all labels where they are known without reading the images, int64 `(N,)`."""
        if isinstance(self.items, TableImages):
            return self.items.table.labels
        return self.items.labels if isinstance(self.items, DecodedImages) else None

    def fingerprint(self) -> str:
        """Returns the SHA-256 of a few images, and of all labels where they are known without reading the images.

        Raises:
            UserError: for an image that cannot be read.
        """
        labels = self.known_labels()
        known = [] if labels is None else labels.tolist()
        if isinstance(self.items, TorchDatasetImages):
            known = self.items.stated_labels()
        return hashlib.sha256(f"{super().fingerprint()} {known}".encode()).hexdigest()

    def _sample(self, count: int) -> Batch:
        indices = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        images, labels, _ = collate([self.reader[index, None] for index in indices])
        if not len(images):
            raise UserError(
                f"images: none of the {len(indices)} images of split {self.items.split!r} that were tried can be "
                "decoded: check the data"
            )
        return images, labels

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str,
        train: bool,
    ) -> Iterator[Batch]:
        """See `ImageSource`."""
        keys = self.order.draw(seed, epoch, batch_size) if train else torch.arange(len(self))
        bounds = batch_bounds(len(keys), batch_size, train=train, start=start)
        shares = [range(begin, end)[rank_slice(end - begin, rank, world_size)] for begin, end in bounds]
        seeds = item_seeds(seed, epoch, keys) if train else None
        loader = self._loader(shares, keys % len(self), seeds, torch.device(device))
        skipped: set[int] = set()
        for share, read in zip(shares, loader, strict=True):
            if isinstance(read, UserError):
                raise read
            images, labels, bad = read
            images, labels = self.unlabeled.apply(images, labels, train=train)
            skipped.update(bad)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            indices = keys[share.start : share.stop].to(device, non_blocking=True)
            yield self.augment_and_normalise(images, seed, epoch, indices, train=train), labels
        self.unlabeled.report(rank, world_size)
        if skipped and not self._skips_reported:
            action = "replaced by the next" if train else "left out"
            whose = f" by process {rank}, of its share" if world_size > 1 else ""
            first = self.items.describe_image(min(skipped))
            print(skipped_images_note(len(skipped), action + whose, first), file=sys.stderr)
            self._skips_reported = True

    def _loader(
        self, shares: list[range], order: Tensor, seeds: list[int] | None, device: torch.device
    ) -> DataLoader[Any]:
        """Loads one batch per share: a range of positions in `order` (and in `seeds`, None in evaluation)."""
        indices = order.tolist()
        return DataLoader(
            self.reader,  # type: ignore[arg-type]
            batch_sampler=[[(indices[k], seeds[k] if seeds else None) for k in share] for share in shares],
            num_workers=min(self.num_workers, len(shares)),
            collate_fn=_collate_in_worker,
            worker_init_fn=_ignore_signals,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # without one the loader draws from the generator that dropout uses
        )


def _ignore_signals(worker: int) -> None:
    """Leaves Ctrl-C and a scheduler's SIGTERM, which reach every process of a run, to the main process alone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
