"""What images are normalised with: a mean and a standard deviation per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

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
