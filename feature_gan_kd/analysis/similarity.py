"""Measures how similar the feature maps of peers are on the same images: linear CKA and cosine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_gan_kd.data import ImageSource
from feature_gan_kd.distributed.collectives import average_buffers
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.tapped_model import TappedModel, evaluating
from feature_gan_kd.training.evaluate_group import BATCH_SIZE
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.utils.errors import UserError

MIN_IMAGES = 4  # unbiased CKA is not defined for fewer


@dataclass(frozen=True)
class Representation:
    """What the measures need of one model's map over a set of images.

    Attributes:
        gram: (images, images) of the flattened maps, U-centred, float64.
        pooled: (images, channels), means over the grid, float32.
    """

    gram: Tensor
    pooled: Tensor

    @classmethod
    def from_maps(cls, maps: Tensor) -> Representation:
        """Reduces maps (images, channels, height, width)."""
        flat = maps.flatten(1).float()
        centred = flat - flat.mean(0)  # does not change the U-centred matrix, but makes its products less inexact
        return cls(_u_center((centred @ centred.T).double()), maps.float().mean((2, 3)))


def linear_cka(first: Representation, second: Representation) -> Tensor:
    """Computes unbiased linear CKA (Kornblith et al. 2019, with the HSIC of Song et al. 2012).

    The cosine of the angle between two U-centred Gram matrices (Székely and Rizzo 2014): their inner product is
    `n (n - 3)` times the unbiased HSIC.

    Returns:
        Scalar in [-1, 1], float64: 1 for maps that are the same up to rotation, shift and scale, about 0 for
        independent ones.
    """
    return F.cosine_similarity(first.gram.flatten(), second.gram.flatten(), dim=0)


def mean_cosine(first: Representation, second: Representation) -> Tensor:
    """Computes the cosine of the two pooled maps of an image, averaged over the images; both have as many channels.

    Returns:
        Scalar in [-1, 1], float32.
    """
    return F.cosine_similarity(first.pooled, second.pooled).mean()


def measure_similarity(
    models: Sequence[TappedModel],
    edges: Iterable[Edge],
    batches: Iterable[tuple[Tensor, Tensor]],
    images: int,
    *,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Measures how similar the maps of each source and its learner are, in evaluation mode.

    Args:
        models: with as many taps each.
        edges: of the topology. Both measures are symmetric: of two edges between the same models the first is
            measured.
        batches: images (batch, channels, height, width) and labels.
        images: how many of them to take, from the first on.
        autocast: makes the context in which forward passes run.
        after_batch: is called after every batch.

    Returns:
        For each edge `similarity/S->L` (linear CKA) and, where both maps have as many channels, `cosine/S->L`; with
        several taps one for each edge and tap, as `similarity/S->L@0`.

    Raises:
        UserError: where there are fewer than four images.
    """
    maps = _collect_maps(models, _first_images(images, batches), autocast, after_batch)
    check_image_count(sum(len(batch) for batch in maps[0][0]))
    with torch.inference_mode():
        known = [[Representation.from_maps(torch.cat(own)) for own in taps] for taps in maps]
        found: dict[str, Tensor] = {}
        for edge in _one_edge_per_pair(edges):
            for tap, (real, fake) in enumerate(zip(known[edge.source], known[edge.learner], strict=True)):
                name = str(edge) if len(maps[0]) == 1 else f"{edge}@{tap}"
                found[f"similarity/{name}"] = linear_cka(real, fake)
                if real.pooled.shape == fake.pooled.shape:
                    found[f"cosine/{name}"] = mean_cosine(real, fake).double()
        # One copy to the host for all figures.
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


def _collect_maps(
    models: Sequence[TappedModel],
    batches: Iterable[Tensor],
    autocast: Callable[[], contextlib.AbstractContextManager[None]],
    after_batch: Callable[[], None],
) -> list[list[list[Tensor]]]:
    """The maps of each model at each tap, batch by batch."""
    # New wrappers around the plain modules: a compiled model would be compiled again for evaluation.
    tapped = [TappedModel(one.module, one.taps, one.name, one.adapter, classifies=one.classifies) for one in models]
    maps: list[list[list[Tensor]]] = [[[] for _ in model.taps] for model in tapped]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in tapped:
            stack.enter_context(evaluating(model))
        for images in batches:
            for k, model in enumerate(tapped):
                with autocast():
                    own = model(images)[1]
                for tap, one in enumerate(own):
                    maps[k][tap].append(one)
            after_batch()
    return maps


def measure_group(
    group: PeerGroup, source: ImageSource, after_batch: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Measures the models of a group on the first `similarity_images` of a source, see `measure_similarity`.

    Args:
        group: the models; every process measures the same images.
        source: of the images.
        after_batch: is called after every batch.

    Returns:
        Nothing where `similarity_images` is not set.

    Raises:
        UserError: where there are fewer than four images, or another process is gone.
    """
    count = group.config.similarity_images
    if count is None:
        return {}
    average_buffers(group.models)
    size = min(count, BATCH_SIZE)
    read = source.batches(batch_size=size, seed=0, epoch=0, device=group.accelerator.device, train=False)
    batches = ((images.to(group.dtype), labels) for images, labels in read)
    return measure_similarity(
        group.tapped, group.edges, batches, count, autocast=group.autocast, after_batch=after_batch
    )


def check_image_count(count: int) -> None:
    """Checks that there are as many images as unbiased CKA needs.

    Raises:
        UserError: for fewer than four.
    """
    if count < MIN_IMAGES:
        raise UserError(
            f"similarity_images: there are {count} evaluation images, at least {MIN_IMAGES} are needed: give more "
            "images, or leave the setting out"
        )


def _first_images(images: int, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Yields the first images, batch by batch; reads no batch that it does not need."""
    for batch, _ in batches:
        yield batch[:images]
        images -= len(batch)
        if images <= 0:
            return


def _one_edge_per_pair(edges: Iterable[Edge]) -> list[Edge]:
    """The first edge between each two models."""
    firsts: dict[frozenset[int], Edge] = {}
    for edge in edges:
        firsts.setdefault(frozenset((edge.source, edge.learner)), edge)
    return list(firsts.values())


def _u_center(gram: Tensor) -> Tensor:
    """U-centres a symmetric matrix: its diagonal is zero and its rows sum to zero (Székely and Rizzo 2014)."""
    count = len(gram)
    rows = gram.clone().fill_diagonal_(0).sum(0)
    centred = gram - (rows[:, None] + rows) / (count - 2) + rows.sum() / ((count - 1) * (count - 2))
    return centred.fill_diagonal_(0)
