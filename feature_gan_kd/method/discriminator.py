"""Discriminators and transfer layers, built from the shapes of two feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd.distributed.collectives import world_size
from feature_gan_kd.distributed.sync_batchnorm import synchronised_batch_norm
from feature_gan_kd.method.losses import at_least_float32
from feature_gan_kd.models.tapped_model import MapShape


class Discriminator(nn.Module):
    """Conv - BatchNorm - LeakyReLU - Conv - Sigmoid: one answer in (0, 1) per image (paper, section 3).

    Kernel, stride and width are ours, since the paper does not state them: the first convolution reads 3x3 windows with
    stride 2 (1x1 windows of a map that is one pixel high or wide) and narrows to at most `width` channels, so that a
    discriminator stays cheap beside the models; the second covers the rest of the grid.

    Args:
        shape: (channels, height, width) of the feature maps that it judges.
        width: largest number of channels between the two convolutions.
        norm: normalisation between them: `batch` (the paper's), `group` or `none`.
        bounded: the last layer is a sigmoid, as in the paper; without it answers are any numbers (ours).
    """

    def __init__(
        self,
        shape: MapShape,
        width: int = 128,
        norm: Literal["batch", "group", "none"] = "batch",
        *,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        channels, height, grid_width = shape
        hidden = min(channels, width)
        small = min(height, grid_width) < 2
        self.shape = shape
        self.bounded = bounded
        self.conv1 = (
            nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
            if small
            else nn.Conv2d(channels, hidden, kernel_size=3, stride=2, padding=1, bias=False)
        )
        norms: dict[str, Callable[[], nn.Module]] = {
            "batch": lambda: BatchStatisticsNorm(hidden),
            "group": lambda: nn.GroupNorm(math.gcd(hidden, 8), hidden),
            "none": nn.Identity,
        }
        self.norm = norms[norm]()
        rest = (height, grid_width) if small else ((height + 1) // 2, (grid_width + 1) // 2)
        self.conv2 = nn.Conv2d(hidden, 1, kernel_size=rest)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Answers (batch,), float32 or wider, for feature maps (batch, channels, height, width)."""
        hidden = F.leaky_relu(self.norm(self.conv1(feature_map)), 0.2)
        answer = at_least_float32(self.conv2(hidden).flatten(1).mean(1))
        return torch.sigmoid(answer) if self.bounded else answer


LARGEST_PRODUCT = 4096
"""Numbers of the outer product that a `ClassDiscriminator` sees as they are (Long et al. 2018)."""

PROJECTION = 1024
"""Numbers that it sees in place of a larger product (Long et al. 2018)."""


class ClassDiscriminator(nn.Module):
    """Linear - LeakyReLU - Linear on the product of averaged map and class probabilities (Long et al. 2018, CDAN).

    A discriminator of maps alone compares all images with all; here each class is compared with itself. A product of
    more than 4,096 numbers is replaced by the elementwise product of two fixed random projections, divided by the root
    of their length: its inner products are those of the whole product in the mean. One hidden layer is ours.

    Args:
        shape: (channels, height, width) of the feature maps that it judges.
        classes: of the models.
        width: of the hidden layer.
        bounded: the last layer is a sigmoid; without it answers are any numbers.
    """

    map_projection: Tensor
    class_projection: Tensor

    def __init__(self, shape: MapShape, classes: int, width: int = 128, *, bounded: bool = True) -> None:
        super().__init__()
        self.bounded = bounded
        self.classes = classes
        self.is_projected = shape[0] * classes > LARGEST_PRODUCT
        if self.is_projected:
            self.register_buffer("map_projection", torch.randn(shape[0], PROJECTION))
            self.register_buffer("class_projection", torch.randn(classes, PROJECTION))
        self.hidden = nn.Linear(PROJECTION if self.is_projected else shape[0] * classes, width)
        self.answer = nn.Linear(width, 1)

    def forward(self, feature_map: Tensor, probabilities: Tensor | None = None) -> Tensor:
        """Answers (batch,), float32 or wider.

        Args:
            feature_map: (batch, channels, height, width).
            probabilities: (batch, classes) of the model that made the map; None: all alike, for a trial run.
        """
        averaged = feature_map.mean((2, 3))
        if probabilities is None:
            probabilities = averaged.new_full((len(averaged), self.classes), 1 / self.classes)
        if self.is_projected:
            product = (averaged @ self.map_projection) * (probabilities @ self.class_projection) / PROJECTION**0.5
        else:
            product = (averaged[:, :, None] * probabilities[:, None]).flatten(1)
        answer = at_least_float32(self.answer(F.leaky_relu(self.hidden(product), 0.2)).squeeze(1))
        return torch.sigmoid(answer) if self.bounded else answer


class BatchStatisticsNorm(nn.Module):
    """Batch normalisation by the statistics of the whole batch, over all processes.

    Discriminators answer in training alone, so there are no running averages, and an answer changes nothing in them.
    `nn.BatchNorm2d` would see the share of one process alone, and `nn.SyncBatchNorm` does not run on CPUs.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (batch, channels, height, width), of the same shape."""
        if world_size() == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return synchronised_batch_norm(x, self.weight, self.bias, self.eps)
