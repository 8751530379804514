"""The user's own DataLoader, batch by batch as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from feature_gan_kd.data.augment import PixelNormaliser
from feature_gan_kd.data.batches import Batch, share
from feature_gan_kd.data.decode import fingerprint, statistics
from feature_gan_kd.data.rng import item_seeds, seeded
from feature_gan_kd.utils.errors import UserError


class UserLoader:
    """The batches of a torch `DataLoader`; each process takes its contiguous share of every batch.

    The loader decides the size of the batches and their order. While it works, the global generators are seeded
    from (seed, epoch, batch), as is the loader's own generator, so that all processes see one order and a resumed
    epoch goes on as it was.

    Args:
        loader: yields pairs of images (uint8, or float that is normalised already) and labels.
        channels: of the images.
        class_names: where its data set has them.
        num_classes: where its data set says.
        bound: labels must be below it; None for no bound.
        split: names the part in errors.

    Raises:
        UserError: for a loader without a length.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        channels: int,
        class_names: list[str] | None,
        num_classes: int | None,
        bound: int | None,
        split: str,
    ) -> None:
        try:
            self._batches = len(loader)
        except TypeError as error:
            raise UserError("data: the DataLoader has no length, so no schedule can be made for it") from error
        if self._batches == 0:
            raise UserError(f"data: the DataLoader of split {split!r} is empty")
        self.loader = loader
        self.channels = channels
        self.class_names = class_names
        self.num_classes = num_classes
        self.bound = bound
        self.split = split
        self.normalise = PixelNormaliser.identity(channels)

    def __len__(self) -> int:
        sampler: Any = self.loader.sampler
        data: Any = self.loader.dataset
        images = len(sampler if hasattr(sampler, "__len__") else data)
        return images if self.loader.batch_size is None else min(images, self._batches * self.loader.batch_size)

    def steps(self, batch_size: int, *, train: bool = True) -> int:
        """See `ImageSource`; the loader's own batches count, not `batch_size`."""
        size = self.loader.batch_size
        lonely = train and size is not None and len(self) % size == 1
        return self._batches - 1 if lonely else self._batches

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of the first batch; 0 and 1 for images that are normalised already.

        Raises:
            UserError: for a batch that is no pair of images and labels.
        """
        images, _ = self._pair(next(self._reader(0)), 0)
        if images.is_floating_point():
            return (0.0,) * self.channels, (1.0,) * self.channels
        return statistics(images.permute(0, 2, 3, 1))

    def fingerprint(self) -> str:
        """SHA-256 of the first batch.

        Raises:
            UserError: for a batch that is no pair of images and labels.
        """
        return fingerprint(*self._pair(next(self._reader(0)), 0))

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
        """See `ImageSource`; the batches before `start` are read and dropped.

        Raises:
            UserError: for a batch that is no pair of images and labels, or is a single image in training.
        """
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(epoch)
        reader = self._reader(*item_seeds(seed, epoch, torch.arange(self._batches + 1)))
        for number, read in zip(range(self.steps(batch_size, train=train)), reader, strict=False):
            if number < start:
                continue
            images, labels = self._pair(read, number)
            if train and len(images) == 1:
                raise UserError(f"data: batch {number} is a single image, on which batch norm cannot train")
            part = share(len(images), rank, world)
            images, labels = images[part].to(device, non_blocking=True), labels[part].to(device, non_blocking=True)
            if not images.is_floating_point():
                images = self.normalise(images.permute(0, 2, 3, 1))
            yield images.float(), labels

    def _reader(self, first: int, *seeds: int) -> Iterator[Any]:
        """The loader's batches, made under the generators' seeds: `first`, then one a batch (`first` without)."""
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(first)
        with seeded(first):
            reader = iter(self.loader)
        for seed in seeds or [first]:
            with seeded(seed):
                read = next(reader, None)
            if read is None:
                return
            yield read

    def _pair(self, read: Any, number: int) -> Batch:
        where = f"batch {number} of split {self.split!r}"
        pair = isinstance(read, (tuple, list)) and len(read) == 2 and all(isinstance(x, Tensor) for x in read)
        if not pair:
            raise UserError(f"data: {where} is no pair of tensors (images, labels)")
        images, labels = read
        if images.dim() != 4 or images.shape[1] != self.channels:
            shape = tuple(images.shape)
            raise UserError(f"images: {where} has the shape {shape}, expected (n, {self.channels}, height, width)")
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise UserError(f"images: {where} is {images.dtype}, expected uint8 or float")
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise UserError(
                f"labels: {where} has {labels.dtype} of shape {tuple(labels.shape)}, expected one class each"
            )
        limit = self.bound if self.bound is not None else int(labels.max()) + 1
        bad = ((labels < 0) | (labels >= limit)).nonzero()
        if len(bad):
            row = int(bad[0])
            expected = "a whole number from 0" if self.bound is None else f"0 to {limit - 1}"
            raise UserError(f"labels: image {row} of {where} has the label {int(labels[row])}, expected {expected}")
        return images, labels.long()
