"""How alike the feature maps of peers are: linear CKA and cosine, over the same images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feature_gan_kd.data import ImageSource
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.taps import TappedModel, evaluating
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.utils.errors import UserError

FEWEST_IMAGES = 4  # that unbiased CKA is defined for


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
    def of(cls, maps: Tensor) -> Representation:
        """Of maps (images, channels, height, width)."""
        flat = maps.flatten(1).float()
        centred = flat - flat.mean(0)  # of no effect on a U-centred matrix, but on the rounding of the products
        return cls(_u_centred((centred @ centred.T).double()), maps.float().mean((2, 3)))


def linear_cka(first: Representation, second: Representation) -> Tensor:
    """Unbiased linear CKA (Kornblith et al. 2019, with the HSIC of Song et al. 2012).

    The cosine of the angle between two U-centred Gram matrices (Székely and Rizzo 2014): their inner product is
    `n (n - 3)` times the unbiased HSIC.

    Returns:
        Scalar in [-1, 1], float64: 1 for maps that are the same up to rotation, shift and scale, about 0 for
        independent ones.
    """
    return F.cosine_similarity(first.gram.flatten(), second.gram.flatten(), dim=0)


def mean_cosine(first: Representation, second: Representation) -> Tensor:
    """Cosine of the pooled maps of an image, averaged over the images; both have as many channels.

    Returns:
        Scalar in [-1, 1], float32.
    """
    return F.cosine_similarity(first.pooled, second.pooled).mean()


def measure(
    models: Sequence[TappedModel],
    edges: Iterable[Edge],
    batches: Iterable[tuple[Tensor, Tensor]],
    images: int,
    *,
    autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """How alike the maps of each source and its learner are, in evaluation mode.

    Args:
        models: with as many taps each.
        edges: who teaches whom. Both measures are symmetric: of two edges between the same models the first is
            measured.
        batches: images (batch, channels, height, width) and labels.
        images: how many of them to take, from the first on.
        autocast: makes the context in which forward passes run.
        between: is called after every batch.

    Returns:
        Per edge `similarity/S->L` (linear CKA) and, where both maps have as many channels, `cosine/S->L`; with
        several taps per edge and tap, as `similarity/S->L@0`.

    Raises:
        UserError: where there are fewer than four images.
    """
    # Models of their own: a compiled one would be compiled again for evaluation.
    tapped = [TappedModel(one.module, one.taps, one.name, one.adapter) for one in models]
    maps: list[list[list[Tensor]]] = [[[] for _ in model.taps] for model in tapped]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in tapped:
            stack.enter_context(evaluating(model))
        for chosen in _first(images, batches):
            for k, model in enumerate(tapped):
                with autocast():
                    own = model(chosen)[1]
                for tap, one in enumerate(own):
                    maps[k][tap].append(one)
            between()
        check_images(sum(len(one) for one in maps[0][0]))
        known = [[Representation.of(torch.cat(own)) for own in taps] for taps in maps]
        found: dict[str, Tensor] = {}
        for edge in _once(edges):
            for tap, (real, fake) in enumerate(zip(known[edge.source], known[edge.learner], strict=True)):
                whose = str(edge) if len(maps[0]) == 1 else f"{edge}@{tap}"
                found[f"similarity/{whose}"] = linear_cka(real, fake)
                if real.pooled.shape == fake.pooled.shape:
                    found[f"cosine/{whose}"] = mean_cosine(real, fake).double()
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


def measure_group(
    group: PeerGroup, source: ImageSource, between: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Measures the models of a group on the first `similarity_images` of a source, see `measure`.

    Args:
        group: the models; every process measures the same images.
        source: of the images.
        between: is called after every batch.

    Returns:
        Nothing where `similarity_images` is not set.

    Raises:
        UserError: where there are fewer than four images, or another process is gone.
    """
    count = group.config.similarity_images
    if count is None:
        return {}
    batches = group.same_images_everywhere(source, count)
    return measure(group.tapped, group.edges, batches, count, autocast=group.autocast, between=between)


def check_images(count: int) -> None:
    """Refuses fewer images than unbiased CKA is defined for.

    Raises:
        UserError: for fewer than four.
    """
    if count < FEWEST_IMAGES:
        raise UserError(
            f"similarity_images: {count} evaluation images, at least {FEWEST_IMAGES} are needed: give more, or leave "
            "it out"
        )


def _first(images: int, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """The first so many images, batch by batch; no batch is read for nothing."""
    for batch, _ in batches:
        yield batch[:images]
        images -= len(batch)
        if images <= 0:
            return


def _once(edges: Iterable[Edge]) -> list[Edge]:
    """One edge for each two models: the first."""
    firsts: dict[frozenset[int], Edge] = {}
    for edge in edges:
        firsts.setdefault(frozenset((edge.source, edge.learner)), edge)
    return list(firsts.values())


def _u_centred(gram: Tensor) -> Tensor:
    """A symmetric matrix whose rows sum to zero without their diagonal, which is zero (Székely and Rizzo 2014)."""
    count = len(gram)
    rows = gram.clone().fill_diagonal_(0).sum(0)
    centred = gram - (rows[:, None] + rows) / (count - 2) + rows.sum() / ((count - 1) * (count - 2))
    return centred.fill_diagonal_(0)
