"""Weights that were trained on colours, for grey images: what timm leaves out where it makes one channel of 3 (ours).

For a grey image x that is repeated in all channels c, a first layer computes `sum_c W_c (x - m_c) / s_c`. timm adds up
the `W_c`. With mean m and deviation s of the one channel, that is the same only if each is scaled by `s / s_c` before,
and the constant `sum_c W_c (m - m_c) / s_c` is added. Zeros that pad the images are no grey: near them it is not exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.models.normalisation import Normalisation


def takes_colours(module: nn.Module, cfg: Mapping[str, Any]) -> bool:
    """Whether the first convolution of a module takes 3 channels; False where it is not known.

    Args:
        module: of timm, which may have been built for other channels than `cfg` states.
        cfg: its `pretrained_cfg`.
    """
    first: Any = dict(module.named_modules()).get(str(cfg.get("first_conv")))
    return isinstance(first, nn.Conv2d) and first.in_channels == 3


def averaged_note(cfg: Mapping[str, Any], channels: int) -> str | None:
    """What to tell the user where a model's channels get the average of the mean and std that `cfg` states for others.

    Args:
        cfg: `pretrained_cfg` of a module of timm.
        channels: that the module takes.
    """
    stated = [tuple(cfg.get(name) or ()) for name in ("mean", "std")]
    if all(len(values) == channels or len(set(values)) < 2 for values in stated):
        return None
    return (
        f"it takes {channels} channel{'s' * (channels > 1)}, and its pretrained_cfg states mean and std of "
        f"{len(stated[0])}: their average is taken"
    )


def differing_layers(grey: nn.Module, colour: nn.Module) -> list[str]:
    """Names of the layers whose own parameters have other shapes in the same model for colours."""
    return [name for name, one in grey.named_modules() if _shapes(one) != _shapes(colour.get_submodule(name))]


@torch.no_grad()
def fold_channels(
    grey: nn.Module, colour: nn.Module, own: Normalisation | None, common: Normalisation | None
) -> str | None:
    """Gives the first layers of a model for grey images the weights of the same model for colours.

    Args:
        grey: built for 1 channel, with the other weights of `colour`; it is changed.
        colour: built for 3 channels.
        own: normalisation of the 3 channels; None counts as that of equal channels.
        common: of the 1 channel; None likewise.

    Returns:
        In what the two differ for a grey image, in words; None if in nothing.
    """
    if own is None or common is None:
        own, common = (Normalisation((0.0,) * count, (1.0,) * count) for count in (3, 1))
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 1, 3, 1, 1) for values in (own.mean, own.std))
    for name in differing_layers(grey, colour):
        target, source = grey.get_submodule(name), colour.get_submodule(name)
        if not (isinstance(target, nn.Conv2d) and isinstance(source, nn.Conv2d)):
            return f"its layer {name!r} starts anew, since its weights for 3 channels cannot be made into some for 1"
        # A layer may see blocks of pixels as further channels: (outputs, blocks, channels, height, width).
        weights = source.weight.double().reshape(len(source.weight), -1, 3, *source.weight.shape[2:]) / std
        target.weight.copy_(weights.sum(2) * common.std[0])
        if target.bias is not None and source.bias is not None:
            target.bias.copy_(source.bias.double() + (weights * (common.mean[0] - mean)).sum((1, 2, 3, 4)))
        if not _agree(target, source, own, common):
            return (
                f"its layer {name!r} was trained on 3 channels of unequal mean and std, and gives about the same for "
                "1, not exactly"
            )
    return None


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a module's own parameters."""
    return {name: one.shape for name, one in module.named_parameters(recurse=False)}


def _agree(target: nn.Conv2d, source: nn.Conv2d, own: Normalisation, common: Normalisation) -> bool:
    """Whether two layers give the same for a grey image, which the second gets in 3 channels."""
    side = 4 * max(source.kernel_size)
    grey = torch.rand(2, target.in_channels, side, side, generator=torch.Generator().manual_seed(0)).to(source.weight)

    def normalised(images: Tensor, by: Normalisation) -> Tensor:
        blocks = images.shape[1] // len(by.mean)
        mean, std = (torch.tensor(values * blocks).to(images).view(-1, 1, 1) for values in (by.mean, by.std))
        return (images - mean) / std

    expected = source(normalised(grey.repeat_interleave(3, 1), own))
    return torch.allclose(target(normalised(grey, common)), expected, rtol=1e-3, atol=1e-4)
