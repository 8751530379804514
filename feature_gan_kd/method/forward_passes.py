"""The forward passes of an update: what each model gives, and what it teaches."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from feature_gan_kd.method.losses import at_least_float32
from feature_gan_kd.models.cached_outputs import CachedOutputs
from feature_gan_kd.models.tapped_model import TappedModel

Logits = list[Tensor]
"""(batch, classes) of every model; empty of one that does not classify."""

Maps = list[tuple[Tensor, ...]]
"""(batch, channels, height, width) for each tap of every model."""


class ForwardPasses:
    """Asks all models for logits and maps.

    Args:
        models: every model, in order.
        frozen: models that only teach: no gradient.
        averaged_sources: what teaches in place of a model, by its position (ours).
        cached_sources: what is asked in place of a frozen model, by its position; it gives the same (ours).
        channels: of an image, where batches may hold two views of each, one behind the other in the channels: the
            learners see the first, frozen models and averaged sources the second (after Sohn et al. 2020, FixMatch).
            None where all see the same.
    """

    def __init__(
        self,
        models: Sequence[TappedModel],
        frozen: Collection[int],
        averaged_sources: Mapping[int, TappedModel],
        cached_sources: Mapping[int, CachedOutputs],
        channels: int | None = None,
    ) -> None:
        self.models = list(models)
        self.frozen = frozenset(frozen)
        self.averaged_sources = dict(averaged_sources)
        self.cached_sources = dict(cached_sources)
        self.channels = channels

    def own(self, images: Tensor) -> tuple[Logits, Maps]:
        """One forward pass of every model.

        Args:
            images: (batch, channels, height, width), or two views of each.

        Returns:
            Logits (batch, classes), at least float32, and maps. A model that does not classify has an empty tensor in
            place of logits.

        Raises:
            UserError: where a model gives no logits or other maps than it was built for.
        """
        logits, maps = [], []
        seen, plain = self._views(images)
        for k, model in enumerate(self.models):
            with torch.no_grad() if k in self.frozen else contextlib.nullcontext():
                model_logits, model_maps = self.cached_sources.get(k, model)(plain if k in self.frozen else seen)
            logits.append(_in_full_precision(model_logits))
            maps.append(model_maps)
        return logits, maps

    def taught(self, images: Tensor, logits: Logits, maps: Maps) -> tuple[Logits, Maps]:
        """What each model teaches: its own logits and maps, or those of its averaged weights, without gradient.

        Args:
            images: (batch, channels, height, width), or two views of each.
            logits: of every model's own forward pass.
            maps: of the same.

        Raises:
            UserError: as `own`.
        """
        taught_logits, taught_maps = list(logits), list(maps)
        _, plain = self._views(images)
        for k, averaged in self.averaged_sources.items():
            with torch.no_grad():
                own_logits, taught_maps[k] = averaged(plain)
            taught_logits[k] = _in_full_precision(own_logits)
        return taught_logits, taught_maps

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What learners see, and what frozen models and averaged sources see: (batch, channels, height, width) each."""
        if self.channels in (None, images.shape[1]):
            return images, images
        order = (
            torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        seen, plain = (view.contiguous(memory_format=order) for view in images.chunk(2, dim=1))
        return seen, plain


def _in_full_precision(logits: Tensor | None) -> Tensor:
    """The logits in at least float32, since a loss of autocast's has three digits; an empty tensor for none."""
    return torch.empty(0) if logits is None else at_least_float32(logits)
