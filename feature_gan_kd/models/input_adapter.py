"""Adapts the images that all models share to one model: its size, its channels and its normalisation (ours)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd.models.normalisation import Normalisation


class InputAdapter(nn.Module):
    """Brings shared images to the size and the normalisation of one model.

    Every model sees the same crop with the same augmentation, at its own size and in its own normalisation.

    Args:
        size: side in pixels of the model's images; 0 keeps the size.
        channels: of the model's images, in which a grey one is repeated; 0 keeps them.
        memory_format: of the model's images.
        interpolation: of the resizing; where torch has no such one, bilinear.

    Attributes:
        copies: whether the model gets images of its own, since it changes them in place.
    """

    scale: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        size: int,
        channels: int = 0,
        memory_format: torch.memory_format = torch.preserve_format,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        self.size = size
        self.channels = channels
        self.memory_format = memory_format
        self.interpolation = interpolation if interpolation == "bicubic" else "bilinear"
        self.copies = False
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)

    def set_normalisations(self, shared: Normalisation | None, own: Normalisation | None) -> None:
        """From now on, converts images from the shared normalisation to the model's own.

        Args:
            shared: of the images that all models are given; None where it is not known: then they stay as they are.
            own: of the images that the model was trained on; None where it takes the shared one.
        """
        shared = shared and own and shared.of_channels(len(own.mean))
        if shared is None or own is None or shared == own:
            self.scale = self.offset = None
            return
        self.scale = _by_channel(s / o for s, o in zip(shared.std, own.std, strict=True))
        self.offset = _by_channel((a - b) / o for a, b, o in zip(shared.mean, own.mean, own.std, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """Adapts images (batch, channels, height, width); returns the same tensor if nothing is to be done."""
        shared = images
        if self.size and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode=self.interpolation, antialias=True)
        if images.shape[1] == 1 < self.channels:
            images = images.repeat(1, self.channels, 1, 1)
        if self.scale is not None and self.offset is not None:
            images = images * self.scale.to(images) + self.offset.to(images)
        if self.memory_format is not torch.preserve_format:
            images = images.contiguous(memory_format=self.memory_format)
        return images.clone() if self.copies and images is shared else images


def _by_channel(values: Iterable[float]) -> Tensor:
    """float64, shaped (1, channels, 1, 1): `forward` rounds it once, to the images' type."""
    return torch.tensor(list(values), dtype=torch.float64).view(1, -1, 1, 1)
