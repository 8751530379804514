"""Images of a stream of `datasets`: read from front to back, decoded as they are read, never held."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.data.augment import CropFlip
from feature_gan_kd.data.batches import Batch, batch_bounds, share
from feature_gan_kd.data.items import ImageTransform, TableItems
from feature_gan_kd.data.lazy import DecodedImages, Reader, collate
from feature_gan_kd.data.rng import item_seeds
from feature_gan_kd.data.sources import Part
from feature_gan_kd.data.table import Classes, Table, class_names_of, encoded, image_column, label_column
from feature_gan_kd.utils.errors import UserError

# Undecoded images among which a process draws the next one.
SHUFFLE_BUFFER = 1000


@dataclass(frozen=True)
class Stream:
    """One split of a streamed data set.

    Attributes:
        rows: a `datasets.IterableDataset` of undecoded images and labels.
        image: name of the column of images.
        label: name of the column of labels.
        class_names: where the data have names.
        num_classes: number of classes; None where nothing says.
        length: images of one epoch.
        split: its name.
    """

    rows: Any
    image: str
    label: str
    class_names: list[str] | None
    num_classes: int | None
    length: int
    split: str

    def __len__(self) -> int:
        return self.length

    def table(self, rows: Sequence[Any], begin: int) -> Table:
        """Some rows with their class indices; `begin` is the place of the first in what was read, for messages.

        Raises:
            UserError: for a bad label.
        """
        values = [row[self.label] for row in rows]
        return Table(
            rows=rows,
            image=self.image,
            labels=encoded(values, self.label, self.split, self.class_names, self.num_classes, begin=begin),
            class_names=self.class_names,
            num_classes=self.num_classes or 0,
            positions=torch.arange(begin, begin + len(rows)),
            split=self.split,
        )


def read_stream(
    part: Part, config: DistillConfig, notes: list[str], classes: int | None, train: Classes | None = None
) -> Stream:
    """Finds the columns of a streamed split and the length of its epochs.

    Args:
        part: holds a `datasets.IterableDataset`.
        config: may name the columns; `max_train_samples` or `max_eval_samples` is the length of an epoch where the
            data do not say it, or say more.
        notes: lines for the user are added to it.
        classes: number of classes where neither the data nor `train` say.
        train: the classes of the training part, which an evaluation part must share.

    Raises:
        UserError: for columns that are not there, classes that are not known, or a length that is not known.
    """
    from datasets import Image

    stream = part.data.with_format(None)
    features = stream.features or stream._resolve_features().features
    image = image_column(features, config.image_column, part.split)
    label, _ = label_column(features, config.label_column, image, part.split)
    names = class_names_of(features[label], [])
    names = names if train is None else train.agree(names, part.split)
    if names is None and "string" in str(getattr(features[label], "dtype", "")):
        raise UserError(
            f"labels: column {label!r} of the streamed split {part.split!r} holds texts, so its classes are not known "
            "before its end: cast it to datasets.ClassLabel(names=[...])"
        )
    length = _length(stream, part.split, config, training=train is None)
    notes.append(
        f"split {part.split!r}: a stream in {stream.num_shards} shards, {length} images an epoch, images in column "
        f"{image!r}, labels in {label!r}; decoded in the training process"
    )
    return Stream(
        rows=stream.select_columns([image, label]).cast_column(image, Image(decode=False)),
        image=image,
        label=label,
        class_names=names,
        num_classes=train.count if train is not None and train.count is not None else len(names) if names else classes,
        length=length,
        split=part.split,
    )


def _length(stream: Any, split: str, config: DistillConfig, *, training: bool) -> int:
    option = "max_train_samples" if training else "max_eval_samples"
    limit: int | None = getattr(config, option)
    stated = (stream.info.splits or {}).get(str(stream.split))
    known: int | None = stated.num_examples if stated is not None and stated.num_examples else None
    if known is None and limit is None:
        raise UserError(f"{option}: the streamed split {split!r} does not say how many images it has: say how many")
    return min(number for number in (known, limit) if number is not None)


class IterableImages(DecodedImages):
    """The images of a `Stream`, shuffled in training within a buffer, and split among the processes (ours).

    In training each process reads shards of its own where their number is a multiple of that of the processes, else
    every so-many-th image of all; which images come together in a batch therefore depends on the number of
    processes. A process whose shards end before the epoch does begins them again, as does one that always has a
    larger share of the batch, where its size is no multiple of the number of processes. In evaluation every process
    reads every row and decodes its share, so that each image counts once. A resumed epoch reads the rows before its
    first batch again, without decoding them: the order is then the very same.

    Args:
        stream: the images.
        views: their size and channels.
        augment: on whole batches of uint8 pixels, in training; None for none.
        skip: pass over images that cannot be decoded: in training the next good one of the process's share of the
            batch takes its place.
    """

    def __init__(self, stream: Stream, views: ImageTransform, augment: CropFlip | None, *, skip: bool) -> None:
        super().__init__(views, augment)
        self.stream = stream
        self.skip = skip
        self._told = False

    def __len__(self) -> int:
        return len(self.stream)

    def _sample(self, count: int) -> Batch:
        rows = list(itertools.islice(self.stream.rows, min(count, len(self))))
        if not rows:
            raise self._empty()
        images, labels = self._read(rows, 0, [None] * len(rows))
        if not len(images):
            raise UserError(f"images: none of the first {len(rows)} of split {self.stream.split!r} can be decoded")
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
        """See `ImageSource`; the rows before batch `start` are read and dropped.

        Raises:
            UserError: for a stream without an image, an image that cannot be decoded or a bad label.
        """
        bounds = list(batch_bounds(len(self), batch_size, train=train))
        spans = [range(begin, end)[share(end - begin, rank, world)] for begin, end in bounds]
        if train:
            rows = self._endless(self._shuffled(seed, epoch, rank, world))
            counts = [(0, len(span)) for span in spans]
        else:
            rows = iter(self.stream.rows)
            counts = [(span.start - begin, end - begin) for span, (begin, end) in zip(spans, bounds, strict=True)]
        rows = itertools.islice(rows, sum(last for _, last in counts[:start]), None)
        for span, (first, last) in zip(spans[start:], counts[start:], strict=True):
            read = list(itertools.islice(rows, last))[first : first + len(span)]
            # Positions in the epoch: with (seed, epoch) they decide the augmentation.
            indices = torch.arange(span.start, span.start + len(read))
            seeds = item_seeds(seed, epoch, indices) if train else [None] * len(read)
            images, labels = self._read(read, span.start, seeds)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            yield self.finished(images, seed, epoch, indices.to(device), train=train), labels

    def _shuffled(self, seed: int, epoch: int, rank: int, world: int) -> Any:
        from datasets.distributed import split_dataset_by_node

        (drawn,) = item_seeds(seed, epoch, torch.tensor([0]))
        return split_dataset_by_node(self.stream.rows.shuffle(drawn, buffer_size=SHUFFLE_BUFFER), rank, world)

    def _endless(self, rows: Any) -> Iterator[Any]:
        while True:
            count = 0
            for count, row in enumerate(rows, 1):  # noqa: B007
                yield row
            if not count:
                raise self._empty()
            if not self._told:
                told = f"split {self.stream.split!r}: the stream ended after {count} images and begins again"
                print(told, file=sys.stderr)
                self._told = True

    def _empty(self) -> UserError:
        return UserError(
            f"data: the streamed split {self.stream.split!r} has no image for one of the processes: give it more shards"
        )

    def _read(self, rows: list[Any], begin: int, seeds: Sequence[int | None]) -> Batch:
        reader = Reader(TableItems(self.stream.table(rows, begin), self.views), self.skip)
        images, labels, _ = collate([reader[k, seed] for k, seed in enumerate(seeds)])
        return images, labels
