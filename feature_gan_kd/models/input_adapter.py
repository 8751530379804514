"""What one model does to the images that all share: resize, and normalise as it was trained (ours)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class InputAdapter(nn.Module):
    """Brings shared images to the size and the normalisation that one model wants.

    Every model sees the same crop with the same augmentation, in its own form.

    Args:
        size: side in pixels that the model wants; 0 leaves the size alone.
        memory_format: in which the model wants the images.
    """

    scale: Tensor | None
    offset: Tensor | None

    def __init__(self, size: int, memory_format: torch.memory_format = torch.preserve_format) -> None:
        super().__init__()
        self.size = size
        self.memory_format = memory_format
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)

    def normalise(self, shared: Normalisation, own: Normalisation) -> None:
        """From now on takes images in the shared normalisation and gives them in the model's own."""
        if shared == own:
            self.scale = self.offset = None
            return
        self.scale = _by_channel(s / o for s, o in zip(shared.std, own.std, strict=True))
        self.offset = _by_channel((a - b) / o for a, b, o in zip(shared.mean, own.mean, own.std, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) as the model wants them; the same tensor where it does already."""
        if self.size and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        if self.scale is not None and self.offset is not None:
            images = images * self.scale.to(images) + self.offset.to(images)
        if self.memory_format is not torch.preserve_format:
            images = images.contiguous(memory_format=self.memory_format)
        return images


def _by_channel(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1)
