"""Images of a streamed data set of `datasets`: read from front to back and decoded as they are read."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data.batch_transforms import CropFlip
from feature_gan_kd.data.batches import Batch, batch_bounds, rank_slice
from feature_gan_kd.data.columns import find_image_column, find_label_column, note_others
from feature_gan_kd.data.image_transforms import ImageTransform
from feature_gan_kd.data.items import TableImages
from feature_gan_kd.data.labels import (
    are_numbers,
    class_names_of,
    encode_labels,
    is_missing,
    numbers_as_names,
    plain_label,
)
from feature_gan_kd.data.lazy import ItemReader, OnDemandImages, collate
from feature_gan_kd.data.rng import item_seeds
from feature_gan_kd.data.sources import Split
from feature_gan_kd.data.table import Classes, Table
from feature_gan_kd.utils.errors import UserError, reason

# A process draws the next image at random out of this many undecoded ones.
SHUFFLE_BUFFER = 1000
# What `datasets` calls changes of a stream that neither add nor remove rows.
_SAME_ROWS = (
    "BufferShuffledExamplesIterable",
    "FormattedExamplesIterable",
    "RebatchedArrowExamplesIterable",
    "SelectColumnsIterable",
)


@dataclass(frozen=True)
class Stream:
    """One split of a streamed data set.

    Attributes:
        rows: a `datasets.IterableDataset` of images and labels; the images are undecoded, unless the stream's own
            functions had to see them, such as a filter.
        image: name of the column of images.
        label: name of the column of labels; None where there is none.
        class_names: by class index; None where the data have none.
        num_classes: number of classes; None where they are not known.
        numbers_are_names: whether a label that is a number is the name of a class, not its index.
        places: see `encode_labels`.
        length: number of images in one epoch.
        split: its name.
        mode: see `Table`.
    """

    rows: Any
    image: str
    label: str | None
    class_names: list[str] | None
    num_classes: int | None
    numbers_are_names: bool
    length: int
    split: str
    mode: str | None = None
    places: list[int] | None = None

    def __len__(self) -> int:
        return self.length

    def has_labels(self) -> bool:
        """Whether an image has a label: reads the stream until the first one."""
        if self.label is None:
            return False
        rows = itertools.islice(self.rows.select_columns([self.label]), self.length)
        return any(not is_missing(plain_label(row[self.label])) for row in rows)

    def table(self, rows: Sequence[Any], begin: int) -> Table:
        """Makes a table of some rows; `begin` is the index of the first of them, for messages.

        Raises:
            UserError: for a bad label.
        """
        values = [None if self.label is None else row[self.label] for row in rows]
        if self.numbers_are_names:
            values = numbers_as_names(values)
        return Table(
            rows=rows,
            image=self.image,
            labels=encode_labels(
                values, str(self.label), self.split, self.class_names, self.num_classes, self.places, begin=begin
            ),
            class_names=self.class_names,
            num_classes=self.num_classes,
            positions=torch.arange(begin, begin + len(rows)),
            split=self.split,
            mode=self.mode,
        )


def read_stream(
    split: Split, config: DistillConfig, notes: list[str], num_classes: int | None, known: Classes | None = None
) -> Stream:
    """Finds the columns of a streamed split and the length of its epochs.

    Args:
        split: holds a `datasets.IterableDataset`.
        config: may name the columns; `max_train_samples` or `max_eval_samples` is the length of an epoch where the
            data do not say it, or say more.
        notes: gets a line for the user.
        num_classes: of the models; counts where neither the data nor `known` say.
        known: for an evaluation split the classes that it must have, those of the training split or of the models.

    Raises:
        UserError: for columns that are not there, classes that are not known, or a length that is not known.
    """
    stream = split.data.with_format(None)
    divided = stream._distributed
    if divided is not None and divided.world_size > 1:
        raise UserError(
            f"{split.setting}: the stream of split {split.name!r} is this process's part of the images "
            "(split_dataset_by_node), and they would be divided once more: give the whole stream"
        )
    features = stream.features or _first_row_features(stream, split.name)
    image, other_images = find_image_column(features, config.image_column, split.name)
    label, other_labels = find_label_column(features, config.label_column, image, split.name, required=config.labels)
    declared = names = None
    if label is not None:
        declared, dtype = class_names_of(features[label], [], label, num_classes), getattr(features[label], "dtype", "")
        names = _stream_class_names(declared, str(dtype), label, split.name, known, notes)
    count = known.count if known is not None and known.count is not None else len(names) if names else num_classes
    length = _length(stream, split.name, config, training=known is None)
    notes.append(
        f"split {split.name!r}: a stream in {stream.num_shards} shards, {length} images an epoch, images in column "
        f"{image!r}{note_others(other_images, '--image-column')}, "
        f"{'without labels' if label is None else f'labels in {label!r}'}"
        f"{note_others(other_labels, '--label-column')}; decoded in the training process"
    )
    return Stream(
        rows=_undecoded(stream.select_columns([image] if label is None else [image, label]), image),
        image=image,
        label=label,
        class_names=names,
        num_classes=count,
        numbers_are_names=declared is None and names is not None and are_numbers(names),
        length=length,
        split=split.name,
        mode=getattr(features[image], "mode", None),
        places=known.places(declared) if known is not None else None,
    )


def _first_row_features(stream: Any, split: str) -> dict[str, Any]:
    """Returns the types of the columns of a stream that does not declare them, as one that was mapped.

    Raises:
        UserError: for a stream without rows.
    """
    from datasets import Image, Value
    from PIL.Image import Image as PILImage

    row = next(iter(stream), None)
    if row is None:
        raise UserError(f"data: the streamed split {split!r} is empty")
    types: dict[str, Any] = {}
    for name, value in ((name, plain_label(value)) for name, value in row.items()):
        if isinstance(value, PILImage):
            types[name] = Image()
        elif isinstance(value, Mapping):
            types[name] = dict.fromkeys(value)
        else:
            kinds = {bool: "bool", int: "int64", float: "float64", str: "string", bytes: "binary"}
            types[name] = Value(kinds[type(value)]) if type(value) in kinds else type(value).__name__
    return types


def _undecoded(stream: Any, image: str) -> Any:
    """Returns a stream that does not decode its images by itself, where it declares its columns."""
    from datasets import Image

    return stream if stream.features is None else stream.cast_column(image, Image(decode=False))


def _stream_class_names(
    declared: list[str] | None, dtype: str, column: str, split: str, known: Classes | None, notes: list[str]
) -> list[str] | None:
    """Returns the names of the classes of a stream, those that it declares or those `known`.

    Raises:
        UserError: for texts whose classes are not known, and for classes unlike those `known`.
    """
    texts = "string" in dtype
    if declared is None and known is not None and known.names is not None and (texts or are_numbers(known.names)):
        return known.names  # a text is a name, and so is a number where all names are numbers
    names = declared if known is None else known.resolve_names(declared, split, notes)
    if names is None and texts:
        raise UserError(
            f"labels: column {column!r} of the streamed split {split!r} holds texts, so its classes are not known "
            "before its end: cast it to datasets.ClassLabel(names=[...])"
        )
    return names


def _length(stream: Any, split: str, config: DistillConfig, *, training: bool) -> int:
    option = "max_train_samples" if training else "max_eval_samples"
    limit: int | None = getattr(config, option)
    stated = (stream.info.splits or {}).get(str(stream.split))
    count = _count_rows(stream._ex_iterable, stated.num_examples if stated is not None else None)
    if count is None and limit is None:
        raise UserError(f"{option}: the streamed split {split!r} does not say how many images it has: say how many")
    return min(number for number in (count, limit) if number is not None)


def _count_rows(source: Any, stated: int | None) -> int | None:
    """Counts the rows that a stream gives; None where it is not known, as after a filter.

    A stream keeps the number of rows that its data set states whatever is done to it.

    Args:
        source: how the stream reads and changes its rows, the last change first.
        stated: number of rows of the data set; None or 0 where it states none.
    """
    if not hasattr(source, "ex_iterable"):
        tables = getattr(source, "kwargs", {}).get("shards") or [None]
        if all(hasattr(table, "num_rows") for table in tables):  # of Dataset.to_iterable_dataset
            return sum(int(table.num_rows) for table in tables)
        several = hasattr(source, "ex_iterables")  # which of them states this number is not known
        return None if several else stated or None
    count = _count_rows(source.ex_iterable, stated)
    kind = type(source).__name__
    if kind == "TakeExamplesIterable":
        return int(source.n) if count is None else min(int(source.n), count)
    if kind == "SkipExamplesIterable":
        return None if count is None else max(count - int(source.n), 0)
    same = kind in _SAME_ROWS or (kind == "MappedExamplesIterable" and not source.batched)
    return count if same else None


class IterableImages(OnDemandImages):
    """The images of a `Stream`, shuffled within a buffer in training, and divided among the processes (ours).

    In training each process reads its own shards if the number of shards is a multiple of the number of processes
    N, and every N-th image of all shards otherwise. Which images meet in a batch therefore depends on N. A process
    starts its shards again if they end before the epoch does; this happens also where the batch size is not a multiple
    of N, to the processes with the larger shares. In evaluation every process reads every row but decodes its share
    only, so that each image counts once. A resumed epoch reads the rows before its first batch again, without decoding
    them, which gives the same order.

    Args:
        stream: the images.
        transform: their size and channels.
        augment: applied to whole batches of uint8 pixels in training; None for none.
        skip: skip images that cannot be decoded; in training the next good image in the process's share of the batch
            takes the place of a bad one.
    """

    def __init__(self, stream: Stream, transform: ImageTransform, augment: CropFlip | None, *, skip: bool) -> None:
        super().__init__(transform, augment, stream.split)
        self.stream = stream
        self.skip = skip
        self._restart_reported = False

    def __len__(self) -> int:
        return len(self.stream)

    def holds_floats(self) -> bool:
        """See `ImageSource`; the images are decoded to pixels, which a transform of the user's own may change."""
        return self.transform.own is not None and self._sample(1, seed=0)[0].is_floating_point()

    def _sample(self, count: int, seed: int | None = None) -> Batch:
        rows = list(itertools.islice(self._read(self.stream.rows), min(count, len(self))))
        if not rows:
            raise self._empty_error()
        images, labels = self._decode(rows, 0, [seed] * len(rows))
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
        world_size: int = 1,
        device: torch.device | str,
        train: bool,
    ) -> Iterator[Batch]:
        """See `ImageSource`; reads and drops the rows before batch `start`.

        Raises:
            UserError: for a stream without an image, an image that cannot be decoded or a bad label.
        """
        bounds = list(batch_bounds(len(self), batch_size, train=train))
        shares = [range(begin, end)[rank_slice(end - begin, rank, world_size)] for begin, end in bounds]
        # Per batch: how many rows this process reads, and where its share begins among them.
        if train:
            rows = self._repeat(self._shuffle(seed, epoch, rank, world_size))
            reads = [(0, len(share)) for share in shares]
        else:
            rows = self._read(self.stream.rows)
            reads = [(share.start - begin, end - begin) for share, (begin, end) in zip(shares, bounds, strict=True)]
        rows = itertools.islice(rows, sum(count for _, count in reads[:start]), None)
        for share, (first, count) in zip(shares[start:], reads[start:], strict=True):
            read = list(itertools.islice(rows, count))[first : first + len(share)]
            # A stream's rows have no index: the position in the epoch, with (seed, epoch), decides the augmentation.
            indices = torch.arange(share.start, share.start + len(read))
            seeds = item_seeds(seed, epoch, indices) if train else [None] * len(read)
            images, labels = self.unlabeled.apply(*self._decode(read, share.start, seeds), train=train)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            yield self.augment_and_normalise(images, seed, epoch, indices.to(device), train=train), labels
        self.unlabeled.report(rank, world_size)

    def _shuffle(self, seed: int, epoch: int, rank: int, world_size: int) -> Any:
        from datasets.distributed import split_dataset_by_node

        (drawn,) = item_seeds(seed, epoch, torch.tensor([0]))
        return split_dataset_by_node(self.stream.rows.shuffle(drawn, buffer_size=SHUFFLE_BUFFER), rank, world_size)

    def _repeat(self, rows: Any) -> Iterator[Any]:
        """Yields the rows again and again; says so on stderr when they end for the first time."""
        while True:
            count = 0
            for count, row in enumerate(self._read(rows), 1):  # noqa: B007
                yield row
            if not count:
                raise self._empty_error()
            if not self._restart_reported:
                note = f"split {self.stream.split!r}: the stream ended after {count} images and begins again"
                print(note, file=sys.stderr)
                self._restart_reported = True

    def _read(self, rows: Any) -> Iterator[Any]:
        """Yields the rows; images are decoded on the way where the stream's own functions see them."""
        try:
            yield from rows
        except (OSError, SyntaxError) as error:  # what PIL raises for broken files
            raise UserError(
                f"images: an image of the streamed split {self.stream.split!r} cannot be decoded ({reason(error)}), "
                "and the stream's own filter or map asks for it: repair or remove it"
            ) from error

    def _empty_error(self) -> UserError:
        return UserError(
            f"data: the streamed split {self.stream.split!r} has no image for one of the processes: give it more shards"
        )

    def _decode(self, rows: list[Any], begin: int, seeds: Sequence[int | None]) -> Batch:
        reader = ItemReader(TableImages(self.stream.table(rows, begin), self.transform), self.skip)
        images, labels, _ = collate([reader[k, seed] for k, seed in enumerate(seeds)])
        return images, labels
