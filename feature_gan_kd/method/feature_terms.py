"""The terms that compare feature maps directly, without a discriminator, as the settings weigh them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.distributed.whole_batch import channel_statistics, gather_rows
from feature_gan_kd.method import losses

_EPSILON = 1e-5
"""Added to a variance that is divided by, as in batch normalisation."""


class DirectTerms:
    """The direct terms of a learner's and a source's map.

    Args:
        weights: of the terms; those of weight 0 are not computed.
    """

    def __init__(self, weights: LossSettings) -> None:
        paired = (
            ("l1", weights.l1_weight, losses.l1),
            ("l2", weights.l2_weight, losses.l2),
            ("aligned", weights.aligned_weight, aligned_of_maps),
            ("statistics", weights.statistics_weight, statistics_of_maps),
        )
        self._paired = [term for term in paired if term[1]]
        self._relation_weight = weights.relation_weight

    def __call__(
        self, fake: Tensor, real: Tensor, learner_map: Tensor, source_map: Tensor
    ) -> Iterator[tuple[str, Tensor, float]]:
        """Yields the name, the value (a scalar) and the weight of every term.

        Args:
            fake: the learner's map in the source's space, (batch, channels, height, width).
            real: the source's on the same grid, of the same shape; detached.
            learner_map: the learner's map as it is, of any channels and grid.
            source_map: the source's as it is.

        Raises:
            UserError: where another process is gone.
        """
        for name, weight, compare in self._paired:
            yield name, compare(fake, real), weight
        if self._relation_weight:
            yield "relation", relation_of_maps(learner_map, source_map), self._relation_weight


def aligned_of_maps(fake: Tensor, real: Tensor) -> Tensor:
    """`losses.aligned` of two maps (batch, channels, height, width), standardised over the images of all processes.

    Behind a ReLU all vectors point into one corner of the space. Without standardisation a constant map would be well
    aligned, and the bias of the transfer layer could learn it alone.
    """
    standardised = []
    for one in (fake, real.detach()):
        maps = losses.at_least_float32(one)
        mean, variance = (value.view(1, -1, 1, 1) for value in channel_statistics(maps))
        standardised.append((maps - mean) * (variance + _EPSILON).rsqrt())
    return losses.aligned(*standardised)


def statistics_of_maps(fake: Tensor, real: Tensor) -> Tensor:
    """`losses.statistics` of two maps (batch, channels, height, width), over the images of all processes."""
    own, taught = (channel_statistics(losses.at_least_float32(one)) for one in (fake, real.detach()))
    return losses.statistics(own, taught)


def relation_of_maps(learner_map: Tensor, source_map: Tensor) -> Tensor:
    """`losses.relation` of the pooled maps (batch, channels, height, width), among the images of all processes."""
    learner, source = (one.mean((2, 3)) for one in (learner_map, source_map.detach()))
    (everyone, first), (taught, _) = gather_rows(learner), gather_rows(source)
    return losses.relation((learner, everyone), (source, taught), first)
