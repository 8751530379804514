"""What images are normalised with: a mean and a standard deviation per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_channels(self, channels: int) -> Normalisation:
        """The same for another number of channels, of which each is one grey channel, or the mean of several."""
        values = (self.mean, self.std)
        return Normalisation(*(v if len(v) == channels else (sum(v) / len(v),) * channels for v in values))

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


def stated_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> Normalisation | None:
    """The normalisation that the user states; None where the user states none.

    Args:
        mean: of pixels in [0, 1]: one value per channel, or one for all.
        std: likewise.
        channels: of the images.

    Raises:
        UserError: for one of them without the other, and for another number of values.
    """
    if mean is None and std is None:
        return None
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            raise UserError(f"{name}: it is missing: give mean and std together")
        if len(values) not in (1, channels):
            raise UserError(f"{name}: {len(values)} values for images of {channels} channels: give one each")
        if min(values) < 0 or max(values) > 1 or (name == "std" and min(values) == 0):
            expected = "from 0 to 1" if name == "mean" else "above 0 and at most 1"
            raise UserError(f"{name}: {values[0]} is not allowed, expected numbers {expected}: of pixels / 255")
    assert mean is not None
    assert std is not None
    per_channel = (tuple(map(float, values)) * (channels // len(values)) for values in (mean, std))
    return Normalisation(*per_channel)


def check_stated(images: Tensor, stated: Normalisation) -> None:
    """Checks that images can be what the user states: pixels in [0, 1], minus the mean, divided by the deviation.

    Some values may lie outside, as those of noise or of sharpened edges.

    Args:
        images: floats (batch, channels, height, width).
        stated: their normalisation.

    Raises:
        UserError: where more than one in twenty values belongs to no pixel.
    """
    mean, std = (torch.tensor(one).to(images).view(1, -1, 1, 1) for one in (stated.mean, stated.std))
    pixels = images.detach() * std + mean
    outside = float(((pixels < -0.25) | (pixels > 1.25)).double().mean())  # False for NaN, which has its own line
    if outside > 0.05:
        raise UserError(
            f"mean: with {stated} undone, the images hold values from {float(pixels.min()):.3g} to "
            f"{float(pixels.max()):.3g}, expected pixels in [0, 1]: divide bytes by 255, or state what they were "
            "normalised with"
        )
