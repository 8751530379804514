"""Discriminators and transfer layers, built from the shapes of two feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normalised

from feature_gan_kd.distributed.collectives import world_size
from feature_gan_kd.distributed.sync_batchnorm import synchronised_batch_norm
from feature_gan_kd.models.taps import MapShape


class Discriminator(nn.Module):
    """Conv - BatchNorm - LeakyReLU - Conv - Sigmoid: one answer in (0, 1) per image (paper, section 3).

    Kernel, stride and width are ours, the paper does not state them: the first convolution looks at 3x3
    patches with stride 2 (1x1 where the map is that small) and narrows to at most `width` channels, so that the
    cost stays small beside the models; the second covers what is left of the grid.

    Args:
        shape: (channels, height, width) of the maps it judges.
        width: channels between the two convolutions, at most.
        norm: between them: `batch` (the paper's), `group` or `none`.
        bounded: answers go through the sigmoid, as the paper's; without it they are any numbers (ours).
        patches: one answer for each place that is left of the grid, in place of one for the map (ours, after the
            patch discriminator of Isola et al. 2017).
        spectral_norm: divides both convolutions' weights by their largest singular values (ours, after Miyato et
            al. 2018).
        noise: standard deviation of Gaussian noise on what it sees, in those of the map (ours).
    """

    def __init__(
        self,
        shape: MapShape,
        width: int = 128,
        norm: Literal["batch", "group", "none"] = "batch",
        *,
        bounded: bool = True,
        patches: bool = False,
        spectral_norm: bool = False,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, grid_width = shape
        hidden = min(channels, width)
        small = min(height, grid_width) < 2
        self.shape = shape
        self.bounded = bounded
        self.patches = patches
        self.noise = noise
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
        self.conv2 = nn.Conv2d(hidden, 1, kernel_size=(1, 1) if patches else rest)
        if spectral_norm:
            spectrally_normalised(self.conv1)
            spectrally_normalised(self.conv2)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Answers (batch,), or (batch, patches), for maps (batch, channels, height, width).

        They are float32 or wider, and in (0, 1) if `bounded`.
        """
        if self.noise:
            feature_map = feature_map + self.noise * feature_map.detach().std() * torch.randn_like(feature_map)
        hidden = F.leaky_relu(self.norm(self.conv1(feature_map)), 0.2)
        answer = self.conv2(hidden).flatten(1)
        answer = answer if self.patches else answer.mean(1)
        answer = answer.to(torch.promote_types(answer.dtype, torch.float32))
        return torch.sigmoid(answer) if self.bounded else answer


class BatchStatisticsNorm(nn.Module):
    """Batch normalisation by the statistics of the whole batch, those of all processes together.

    A discriminator is only ever asked in training, so there are no running averages: asking it changes nothing
    in it. `nn.BatchNorm2d` would see each process's share alone and `nn.SyncBatchNorm` does not run on CPU.
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
