"""A model's features: one vector for each image, the one before its classifier or that of a named layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.data import ImageSource, evaluation_batches
from feature_gan_kd.distributed.collectives import gather
from feature_gan_kd.models.find_taps import find_taps
from feature_gan_kd.models.in_place import check_in_place
from feature_gan_kd.models.tapped_model import Layer, TappedModel
from feature_gan_kd.utils.errors import UserError, reason

BATCH_SIZE = 64
"""Images of one process at once."""


class FeatureExtractor:
    """Computes features of images, in evaluation mode and without gradients.

    Without a layer they are what timm calls `forward_head(forward_features(images), pre_logits=True)`: the vector
    before the classifier. Models without a classifier have it too. A layer's output is taken as the method takes it
    (see `find_taps`), and a map is averaged over its positions.

    Args:
        module: the model, on its device.
        name: of the model, for errors.
        input_size: channels, height and width of its images, for a trial.
        layer: a module's dotted name, or the index of a timm stage; None for the vector before the classifier.

    Attributes:
        size: number of features of an image.

    Raises:
        UserError: for a layer that does not exist or gives neither a map nor a vector, or whose output a later one
            changes in place, and for a model from which no vector can be had.
    """

    def __init__(self, module: nn.Module, name: str, input_size: tuple[int, int, int], layer: Layer | None = None):
        self.module: Any = module.eval()
        self.name = name
        like = next(module.parameters(), torch.empty(0))
        trial = torch.zeros((2, *input_size), device=like.device, dtype=like.dtype)
        self._compute: Callable[[Tensor], Tensor]
        if layer is None:
            self._compute = self._before_classifier
            if not (hasattr(module, "forward_features") and hasattr(module, "forward_head")):
                raise UserError(
                    f"{name}: has no features in timm's sense (forward_features): name a layer with --layer"
                )
        else:
            self._tapped = TappedModel(
                module, find_taps(module, trial, name, [layer], vectors=True), name, classifies=False
            )
            check_in_place(self._tapped, trial, [layer] if isinstance(layer, str) else [], learns=False)
            self._compute = self._of_layer
        with torch.inference_mode():
            try:
                features = self._compute(trial)
            except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{name}: its features cannot be computed ({reason(error)}): name a layer with --layer"
                ) from None
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2 or features.shape[1] == 0:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"{name}: gives {shape} in place of a vector for each image: name a layer with --layer")
        self.size = int(features.shape[1])

    def _before_classifier(self, images: Tensor) -> Tensor:
        features: Tensor = self.module.forward_head(self.module.forward_features(images), pre_logits=True)
        return features

    def _of_layer(self, images: Tensor) -> Tensor:
        feature_map: Tensor = self._tapped(images)[1][0]
        return feature_map.float().mean((2, 3))

    def __call__(self, images: Tensor) -> Tensor:
        """Computes the features of images (batch, channels, height, width).

        Returns:
            Float32 (batch, size), on the model's device.

        Raises:
            UserError: for features that are not finite.
        """
        with torch.inference_mode():
            features = self._compute(images).float()
        if not bool(features.isfinite().all()):
            raise UserError(f"{self.name}: gives features that are not finite: name a model that did not diverge")
        return features


def collect_features(extractor: FeatureExtractor, source: ImageSource, device: torch.device) -> tuple[Tensor, Tensor]:
    """Computes the features of all images of a source, in its order; each process a share of them.

    Args:
        extractor: of the features.
        source: of labelled images, read as for an evaluation.
        device: of the model.

    Returns:
        Features, float32 (images, features), and labels, int64 (images,), on the CPU, the same on every process.

    Raises:
        UserError: where there are no images, one has no label, features are not finite, or another process is gone.
    """
    batches = evaluation_batches(source, BATCH_SIZE, device)

    def next_share() -> tuple[Tensor, Tensor] | None:
        images, labels = next(batches, (None, None))
        if images is None or labels is None:
            return None
        features = extractor(images) if len(images) else images.new_empty((0, extractor.size))
        return features.cpu(), labels.cpu()

    shares: list[tuple[Tensor, Tensor]] = []
    for _ in itertools.count():
        parts = [part for part in gather(next_share) if part is not None]
        if not parts:
            break
        shares += parts
    if not sum(len(labels) for _, labels in shares):
        raise UserError("data: it holds no images: give others, or another split")
    features, labels = (torch.cat(parts) for parts in zip(*shares, strict=True))
    if bool((labels < 0).any()):
        raise UserError(f"labels: {int((labels < 0).sum())} of {len(labels)} images have none: give labelled data")
    return features, labels
