"""The user's own DataLoader, whose batches are used as they are."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from feature_gan_kd.data.batch_transforms import PixelNormaliser
from feature_gan_kd.data.batches import Batch, batch_sizes, rank_slice
from feature_gan_kd.data.decode import count_values, hash_images, statistics_of_counts
from feature_gan_kd.data.image_transforms import check_square
from feature_gan_kd.data.labels import NO_LABEL, UNKNOWN_CLASS
from feature_gan_kd.data.loader_parts import (
    check_given,
    check_gives_all_images,
    count_images,
    count_sampled_images,
    seed_parts,
    set_epoch,
    stated_batch_size,
)
from feature_gan_kd.data.rng import item_seeds, seeded
from feature_gan_kd.data.stated_labels import stated_labels
from feature_gan_kd.data.unlabeled import UnlabeledRule
from feature_gan_kd.utils.errors import UserError


class UserLoader:
    """Reads the batches of a torch `DataLoader`; each process takes its contiguous share of every batch.

    The loader decides size and order of the batches. While it works, the global generators are seeded from (seed,
    epoch, batch), and its own and those of its samplers when an epoch begins. All processes then see the same order,
    and a resumed epoch continues it.

    Args:
        loader: yields pairs of images (uint8 pixels, or floats, which are used as they are) and labels.
        channels: of the images.
        class_names: by class index; None where its data set has none.
        num_classes: None where its data set does not say.
        label_limit: labels must be below it; None for no limit.
        split: its name, for errors.
        setting: that named the data, for errors.
        places: the class that each label means; None where it is the label itself.
        labels: whether each batch must be a pair of images and labels, and not images alone.

    Attributes:
        unlabeled: what becomes of images without a label.

    Raises:
        UserError: for a loader without a length, or one that gives each process only a part of the images.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        channels: int,
        class_names: list[str] | None,
        num_classes: int | None,
        label_limit: int | None,
        split: str,
        setting: str = "data",
        places: list[int] | None = None,
        *,
        labels: bool = True,
    ) -> None:
        check_gives_all_images(loader, split, setting)
        try:
            self._num_batches = len(loader)
        except TypeError as error:
            raise UserError(f"{setting}: the DataLoader has no length, so no schedule can be made for it") from error
        if self._num_batches == 0:
            raise UserError(f"{setting}: the DataLoader of split {split!r} is empty")
        self.loader = loader
        self.channels = channels
        self.class_names = class_names
        self.num_classes = num_classes
        self.label_limit = label_limit
        self.split = split
        self.setting = setting
        self.places = None if places is None else torch.tensor(places)
        self.labels = labels
        self.unlabeled = UnlabeledRule(split)
        self.normalise = PixelNormaliser.identity(channels)
        self._gives_floats: bool | None = None  # as the first batch that was read
        self._more_reported = False

    def __len__(self) -> int:
        images, size = count_images(self.loader), stated_batch_size(self.loader)
        if size is None:
            return self._counted_images
        return min(images, self._num_batches * size)

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`; counts the loader's own batches, whatever `batch_size`."""
        size = stated_batch_size(self.loader)
        ends_in_one = train and size not in (None, 1) and len(self) % size == 1
        return self._num_batches - 1 if ends_in_one else self._num_batches

    def holds_floats(self) -> bool:
        """See `ImageSource`; looks at the first batch.

        Raises:
            UserError: for a batch that is not a pair of images and labels.
        """
        return self._first_batch[0].is_floating_point()

    def batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """See `ImageSource`; of the loader's own batches, whatever `batch_size`."""
        size = stated_batch_size(self.loader)
        return () if size is None else batch_sizes(len(self), size)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Computes mean and std of all images, which must not be floats: reads the loader once.

        The first batch alone would mislead where the images are sorted.

        Raises:
            UserError: for a batch that is not a pair of images and labels.
        """
        return statistics_of_counts(self._whole_pass[1])

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the first batch, the number of images, and all labels that the data set lists.

        Raises:
            UserError: for a batch that is not a pair of images and labels.
        """
        known = f"{len(self)} {self._num_batches} {stated_labels(self.loader.dataset)}"
        return hashlib.sha256(f"{hash_images(*self._first_batch)} {known}".encode()).hexdigest()

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
        """See `ImageSource`; reads and drops the batches before `start`.

        Raises:
            UserError: for a batch that is not a pair of images and labels, or is a single image in training; after the
                last one, for fewer batches than the loader's length says, and in evaluation for more.
        """
        set_epoch(self.loader, epoch)
        reader = self._read_batches(*item_seeds(seed, epoch, torch.arange(self._num_batches + 2)))
        given = 0
        for number, read in zip(range(self.steps(batch_size, train=train)), reader, strict=False):
            given = number + 1
            if number < start:
                continue
            images, labels = self._check_batch(read, number)
            if train and len(images) == 1:
                raise UserError(f"{self.setting}: batch {number} is a single image, on which batch norm cannot train")
            share = rank_slice(len(images), rank, world_size)
            images, labels = self.unlabeled.apply(images[share], labels[share], train=train)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if not images.is_floating_point():
                images = self.normalise(images.permute(0, 2, 3, 1))
            yield images.float(), labels
        self._check_end(given, reader, train=train, tell=rank == 0)
        self.unlabeled.report(rank, world_size)

    def _check_end(self, given: int, reader: Iterator[Any], *, train: bool, tell: bool) -> None:
        """Reads on for one batch more than there should be, and compares their number with the loader's length."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Length of IterableDataset")
            given += sum(1 for _ in reader)
        check_given(self.loader, given, self._whose, more_is_wrong=not train)
        if given > self._num_batches and tell and not self._more_reported:
            print(f"{self._whose} gives more than its {self._num_batches} batches, which end an epoch", file=sys.stderr)
            self._more_reported = True

    def sample(self) -> Tensor:
        """Returns the images of the first batch, bytes or floats (batch, channels, height, width)."""
        return self._first_batch[0]

    def side(self) -> int:
        """Side in pixels of the images of the first batch, which are squares."""
        return self._first_batch[0].shape[2]

    def has_labels(self) -> bool:
        """Whether an image has a label: reads the batches until the first with a label."""
        if bool((self._first_batch[1] != NO_LABEL).any()):
            return True
        batches = enumerate(self._read_batches(*item_seeds(0, 0, torch.arange(self._num_batches + 1))))
        return any(bool((self._check_batch(read, k)[1] != NO_LABEL).any()) for k, read in batches)

    @property
    def _whose(self) -> str:
        return f"{self.setting}: the DataLoader of split {self.split!r}"

    @functools.cached_property
    def _counted_images(self) -> int:
        """The images of an epoch whose batches have any size: counted by their sampler, or else by reading them."""
        counted = count_sampled_images(self.loader)
        return self._whole_pass[0] if counted is None else counted

    @functools.cached_property
    def _whole_pass(self) -> tuple[int, Tensor]:
        """Reads all batches: the number of images, and how often each value of a byte occurs, (channels, 256)."""
        images, number, counts = 0, -1, torch.zeros(self.channels, 256, dtype=torch.float64)
        for number, read in enumerate(self._read_batches(*item_seeds(0, 0, torch.arange(self._num_batches + 1)))):
            batch, _ = self._check_batch(read, number)
            images += len(batch)
            if not batch.is_floating_point():
                counts += count_values(batch.permute(0, 2, 3, 1))
        check_given(self.loader, number + 1, self._whose, more_is_wrong=False)
        return images, counts

    @functools.cached_property
    def _first_batch(self) -> Batch:
        """Read once: the workers of a loader may take long to start."""
        read = next(self._read_batches(0), None)
        if read is None:
            raise UserError(f"{self._whose} gives no batch")
        return self._check_batch(read, 0)

    def _read_batches(self, first: int, *seeds: int) -> Iterator[Any]:
        """Yields the loader's batches.

        Args:
            first: seeds the generators while the loader starts.
            seeds: seed them for one batch each; without any, `first` does for a single batch.

        Raises:
            UserError: for images that torch cannot collate, as those of PIL.
        """
        seed_parts(self.loader, first)
        with seeded(first):
            reader = iter(self.loader)
        for seed in seeds or [first]:
            with seeded(seed):
                try:
                    read = next(reader, None)
                except TypeError as error:
                    found = re.search(r"default_collate: .*found <class '(.+)'>", str(error))
                    if found is None:  # a bug of the user's data set
                        raise
                    if found[1] == "NoneType":
                        raise UserError(
                            f"{self._whose} cannot make batches of None: give an image without a label the label -1"
                        ) from error
                    raise UserError(
                        f"{self._whose} cannot make batches of {found[1]}: make tensors of the images in its data set, "
                        "or give the data set itself"
                    ) from error
            if read is None:
                return
            yield read

    def _check_batch(self, read: Any, number: int) -> Batch:
        """Returns batch `number` as images and labels, after checking their types, shapes and values."""
        where = f"batch {number} of split {self.split!r}"
        parts = [read] if isinstance(read, Tensor) else read if isinstance(read, (tuple, list)) else []
        if (len(parts) == 1 and not self.labels) or (len(parts) == 2 and parts[1] is None):
            images = parts[0]
            parts = [
                images,
                torch.full((len(images),), NO_LABEL) if isinstance(images, Tensor) and images.dim() else None,
            ]
        if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
            alone = ": give both, or set labels=False (--no-labels) to learn from images alone" * (len(parts) == 1)
            raise UserError(f"{self.setting}: {where} is not a pair of tensors (images, labels){alone}")
        images, labels = parts
        if images.dim() != 4 or images.shape[1] != self.channels:
            shape = tuple(images.shape)
            raise UserError(f"images: {where} has the shape {shape}, expected (n, {self.channels}, height, width)")
        check_square(images, where)
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise UserError(f"images: {where} is {images.dtype}, expected uint8 or float")
        floats = images.is_floating_point()
        if self._gives_floats not in (None, floats):
            kind, first = ("floats", "bytes (uint8)") if floats else ("bytes (uint8)", "floats")
            raise UserError(
                f"images: {where} holds {kind}, the first batch held {first}, and only bytes are normalised here: give "
                "all images in one of the two"
            )
        self._gives_floats = floats
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise UserError(
                f"labels: {where} has {labels.dtype} of shape {tuple(labels.shape)}, expected one class each"
            )
        limit = self.label_limit if self.label_limit is not None else int(labels.max()) + 1
        bad = ((labels < NO_LABEL) | (labels >= limit)).nonzero()
        if len(bad):
            row = int(bad[0])
            expected = "a whole number from 0" if self.label_limit is None else f"0 to {limit - 1}"
            raise UserError(f"labels: image {row} of {where} has the label {int(labels[row])}, expected {expected}")
        if self.places is not None:
            labels = labels.long().cpu()
            given, labels = labels, torch.where(labels == NO_LABEL, labels, self.places[labels.clamp(min=0)])
            unknown = (labels == UNKNOWN_CLASS).nonzero()
            if len(unknown):
                row = int(unknown[0])
                raise UserError(f"labels: image {row} of {where} has the label {int(given[row])}, which names no class")
        return images, labels.long()
