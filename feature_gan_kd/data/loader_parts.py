"""The parts of a torch `DataLoader` that decide which images come when: its samplers and their random numbers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from feature_gan_kd.data.rng import seeded
from feature_gan_kd.utils.errors import UserError


def check_gives_all_images(loader: DataLoader[Any], split: str, setting: str) -> None:
    """Checks that the loader gives every process all images: this package divides each batch among them itself.

    Raises:
        UserError: for a loader that Accelerate prepared, and one whose sampler gives a process its own part.
    """
    from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard  # here: `predict` starts without it

    if isinstance(loader, (DataLoaderShard, DataLoaderDispatcher)):
        problem = "is prepared by Accelerate, which divides the images among processes"
        remedy = "give the DataLoader as it was before accelerator.prepare"
    else:
        divider = next((part for part in _parts(loader) if getattr(part, "num_replicas", 1) not in (None, 1)), None)
        if divider is None:
            return
        problem = f"has a {type(divider).__name__}, which gives this process a part of the images"
        remedy = "give a DataLoader without it, such as one with shuffle=True"
    raise UserError(
        f"{setting}: the DataLoader of split {split!r} {problem}, and each batch would be divided once more: {remedy}"
    )


def check_length(loader: DataLoader[Any], split: str, setting: str, *, evaluation: bool) -> None:
    """Checks that the loader gives as many batches as its length says, and in evaluation that it drops no image.

    A sampler is counted. A loader without one, of an `IterableDataset`, is read once if it is to be evaluated on; in
    training its batches are counted as they come.

    Raises:
        UserError: for a loader that gives fewer; in evaluation also for one that gives more, drops a last batch, or has
            a sampler that draws an image twice.
    """
    whose = f"{setting}: the DataLoader of split {split!r}"
    if evaluation:
        _check_drops_none(loader, whose)
    own, batches = loader.batch_sampler, len(loader)
    if isinstance(loader.dataset, IterableDataset):
        if not evaluation:
            return
        source: Any = loader
    else:
        source = loader.sampler if own is None else own
        if not evaluation and all(_is_of_torch(part) for part in _parts(loader)):
            return  # their lengths are right: an order of many images need not be drawn for nothing
    with seeded(0), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Length of IterableDataset")
        drawn = islice(iter(source), batches + 1)
        given = sum(1 for _ in (_once(drawn, whose) if evaluation and source is not loader else drawn))
    check_given(loader, given, whose, more_is_wrong=evaluation)


def _once(drawn: Iterator[Any], whose: str) -> Iterator[Any]:
    """Yields what a sampler draws: an image's index, or those of a batch. Raises UserError where one comes again."""
    seen: set[Any] = set()
    for one in drawn:
        for index in one if isinstance(one, (list, tuple)) else [one]:
            if not isinstance(index, Hashable):
                continue
            if index in seen:
                raise UserError(
                    f"{whose} gives image {index} more than once, and each image is to be evaluated once: give one "
                    "whose sampler draws without replacement"
                )
            seen.add(index)
        yield one


def check_given(loader: DataLoader[Any], given: int, whose: str, *, more_is_wrong: bool) -> None:
    """Checks the number of batches that a loader gave, or of those that its sampler gives.

    Args:
        loader: says how many there are.
        given: the batches, counted up to one more than that.
        whose: names the loader in errors.
        more_is_wrong: whether each image counts.

    Raises:
        UserError: for fewer than the loader says, and for more where that is wrong.
    """
    batches = len(loader)
    if given == batches or (given > batches and not more_is_wrong):
        return
    part = "data set" if isinstance(loader.dataset, IterableDataset) else "sampler"
    if given < batches:
        raise UserError(f"{whose} gives {given} batches, its length says {batches}: correct __len__ of its {part}")
    if part == "data set" and loader.num_workers:
        part += ", or divide its images among the workers (torch.utils.data.get_worker_info)"
    raise UserError(
        f"{whose} gives more than the {batches} batches that its length says, and each image is to be evaluated: "
        f"correct __len__ of its {part}"
    )


def _check_drops_none(loader: DataLoader[Any], whose: str) -> None:
    size, images = stated_batch_size(loader), count_images(loader)
    own = loader.batch_sampler
    drops = loader.drop_last
    if isinstance(own, BatchSampler) and own.drop_last:
        drops, size, images = True, own.batch_size, len(own.sampler)  # type: ignore[arg-type]
    if drops and size is not None and images % size:
        raise UserError(
            f"{whose} leaves out the last {images % size} of {images} images, and each image is to be evaluated: give "
            "one with drop_last=False"
        )


def _is_of_torch(part: Any) -> bool:
    return type(part).__module__.startswith("torch.utils.data")


def stated_batch_size(loader: DataLoader[Any]) -> int | None:
    """Returns the number of images in each batch but the last; None where a sampler of the user's own decides."""
    if loader.batch_size is not None:
        return loader.batch_size
    sampler = loader.batch_sampler
    return sampler.batch_size if type(sampler) is BatchSampler else None


def count_images(loader: DataLoader[Any]) -> int:
    """Returns the number of images that the loader reads in an epoch, with those of a last batch that it drops."""
    sampler: Any = loader.sampler
    if loader.batch_size is None and type(loader.batch_sampler) is BatchSampler:
        sampler = loader.batch_sampler.sampler
    data: Any = loader.dataset
    return len(sampler if hasattr(sampler, "__len__") else data)


def count_sampled_images(loader: DataLoader[Any]) -> int | None:
    """Counts the images in the batches of a sampler of the user's own; None for a loader without one."""
    if loader.batch_sampler is None:
        return None
    with seeded(0):
        return sum(len(batch) for batch in islice(iter(loader.batch_sampler), len(loader)))


def seed_parts(loader: DataLoader[Any], seed: int) -> None:
    """Seeds the generators that the loader and its samplers have of their own: of torch, numpy and Python."""
    for part in _parts(loader):
        for own in list(getattr(part, "__dict__", {}).values()):
            if isinstance(own, torch.Generator):
                own.manual_seed(seed)
            elif isinstance(own, (random.Random, np.random.RandomState)):
                own.seed(seed)
            elif isinstance(own, np.random.Generator):
                own.bit_generator.state = type(own.bit_generator)(seed).state


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Tells the samplers that count epochs which one begins."""
    for part in _parts(loader):
        if part is not loader and hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def _parts(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yields the loader, its samplers and the samplers that these wrap, each once."""
    waiting: list[Any] = [loader]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [getattr(part, name, None) for name in ("sampler", "batch_sampler", "base_sampler")]
