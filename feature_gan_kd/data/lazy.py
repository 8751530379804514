"""Images that are not held in memory: read item by item through torch's DataLoader, or from the user's own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from feature_gan_kd.data.augment import CropFlip, PixelNormaliser
from feature_gan_kd.data.batches import Batch, batch_bounds, count_steps, share
from feature_gan_kd.data.decode import ImageError, fingerprint, passed_over, statistics
from feature_gan_kd.data.items import ImageTransform, Item, Items, Key
from feature_gan_kd.data.rng import item_seeds, permutation
from feature_gan_kd.utils.errors import UserError

# Images looked at for mean and std where not all are decoded.
SAMPLE = 500
# An item (None: left out), and the index of the image that was passed over for it, if one was.
Found = tuple[Item | None, int | None]
# Images, labels, and the indices of those that were passed over.
Read = tuple[Tensor, Tensor, list[int]]


@dataclass(frozen=True)
class Reader:
    """Reads items for a batch; where images are to be passed over, it finds what stands in their place.

    In training that is the next good image, in the order of the data, with its own label and the augmentation that
    was drawn for the bad one: the number of updates and all other images stay what they are, and a resumed run
    finds the same. In evaluation it is nothing: each image counts once.

    Attributes:
        items: the images.
        skip: pass over images that cannot be decoded.
    """

    items: Items
    skip: bool

    def __getitem__(self, key: Key) -> Found:
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


def collate(found: list[Found]) -> Read:
    """The items of a batch as one.

    Raises:
        UserError: for an item that is an error, or images of different shapes.
    """
    read = _collate(found)
    if isinstance(read, UserError):
        raise read
    return read


def _collate(found: list[Found]) -> Read | UserError:
    for item, _ in found:
        if isinstance(item, UserError):
            return item
    pairs = [item for item, _ in found if isinstance(item, tuple)]
    shapes = {tuple(image.shape) for image, _ in pairs}
    if len(shapes) > 1:
        return UserError(f"images: tensors of different shapes, {sorted(shapes)[:2]}: resize them to one")
    images = torch.stack([image for image, _ in pairs]) if pairs else torch.empty(0)
    labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
    return images, labels, [bad for _, bad in found if bad is not None]


class DecodedImages:
    """What sources have in common that decode their images anew in every epoch.

    Args:
        views: size and channels of the images.
        augment: on whole batches of uint8 pixels, in training; None for none.

    Attributes:
        normalise: applied last; to be set to what the run normalises with.
    """

    def __init__(self, views: ImageTransform, augment: CropFlip | None) -> None:
        self.views = views
        self.augment = augment
        self.normalise = PixelNormaliser.identity(views.channels)

    def __len__(self) -> int:
        raise NotImplementedError

    def _sample(self, count: int) -> Batch:
        """At most so many images as evaluation sees them, and their labels."""
        raise NotImplementedError

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`."""
        return count_steps(len(self), batch_size, train=train)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of some images; 0 and 1 for images that are normalised already.

        Raises:
            UserError: for an image that cannot be read.
        """
        images, _ = self._sample(SAMPLE)
        if images.is_floating_point():
            return (0.0,) * self.views.channels, (1.0,) * self.views.channels
        return statistics(images)

    def fingerprint(self) -> str:
        """SHA-256 of the number of images and of a few of them.

        Raises:
            UserError: for an image that cannot be read.
        """
        images, labels = self._sample(50)
        return fingerprint(images, torch.cat([labels, torch.tensor([len(self)])]))

    def finished(self, images: Tensor, seed: int, epoch: int, indices: Tensor, *, train: bool) -> Tensor:
        """Augmented and normalised: uint8 `(n, H, W, C)` to float32 `(n, C, H, W)`; floats stay as they are."""
        if not len(images):
            return images.new_empty((0, self.views.channels, self.views.size, self.views.size))
        if images.is_floating_point():
            return images
        if train and self.augment is not None:
            images = self.augment(images, seed, epoch, indices)
        return self.normalise(images)


class LazyImages(DecodedImages):
    """Images read item by item, in `num_workers` processes, in this process where that is 0.

    Args:
        items: the images.
        views: their size and channels.
        augment: on whole batches of uint8 pixels, in training; None for none.
        workers: processes.
        skip: pass over images that cannot be decoded, see `Reader`; the first whole pass says on stderr how many.
    """

    def __init__(
        self, items: Items, views: ImageTransform, augment: CropFlip | None, num_workers: int, *, skip: bool = False
    ) -> None:
        super().__init__(views, augment)
        self.items = items
        self.reader = Reader(items, skip)
        self.num_workers = num_workers
        self._told = False

    def __len__(self) -> int:
        return len(self.items)

    def _sample(self, count: int) -> Batch:
        indices = torch.linspace(0, len(self) - 1, min(count, len(self))).long().tolist()
        images, labels, _ = collate([self.reader[index, None] for index in indices])
        if not len(images):
            raise UserError(
                f"images: none of the {len(indices)} images of split {self.items.split!r} that were looked at can be "
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
            self.reader,  # type: ignore[arg-type]
            batch_sampler=[[(places[k], seeds[k]) for k in span] for span in spans],
            num_workers=self.num_workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the generator that dropout uses
        )
        skipped: set[int] = set()
        for span, read in zip(spans, loader, strict=True):
            if isinstance(read, UserError):  # a worker's exception would come with the worker's traceback
                raise read
            images, labels, bad = read
            skipped.update(bad)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            indices = order[span.start : span.stop].to(device, non_blocking=True)
            yield self.finished(images, seed, epoch, indices, train=train), labels
        if skipped and not self._told:
            instead = "replaced by the next" if train else "left out"
            whose = f" by process {rank}, of its share" if world > 1 else ""
            print(passed_over(len(skipped), instead + whose, self.items.where(min(skipped))), file=sys.stderr)
            self._told = True


def _ignore_signals(worker: int) -> None:
    # Ctrl-C and schedulers reach every process of a run; its own process decides when the workers end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
