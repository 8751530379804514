"""The precision of forward and backward passes: what `auto` is on a device, and what a device cannot do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn

from feature_gan_kd.config.settings import MixedPrecision
from feature_gan_kd.distributed.collectives import all_reduce_sum
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.processor import fast_precision, mixed_precision

# From that which every device has to the one that is preferred.
_BY_PREFERENCE: tuple[MixedPrecision, ...] = ("no", "fp16", "bf16")


def precision_in_force(asked: MixedPrecision, accelerator: Accelerator) -> MixedPrecision:
    """The precision of a run: that of the launch, else the setting, of which `auto` is what all processes can do.

    Args:
        asked: the setting.
        accelerator: of the run.

    Raises:
        UserError: for fp16 on another device than a GPU.
    """
    device = accelerator.device
    if accelerator.mixed_precision != "no":  # as `accelerate launch` was told
        asked = accelerator.mixed_precision
    if asked == "auto":
        able = torch.zeros(len(_BY_PREFERENCE), device=device)
        able[_BY_PREFERENCE.index(fastest(device))] = 1
        return _BY_PREFERENCE[int(all_reduce_sum(able).nonzero()[0])]
    if asked == "fp16" and device.type != "cuda":
        raise UserError(f"mixed_precision: fp16 needs a GPU, and the device is {device}: choose auto, bf16 or no")
    return asked


def fastest(device: torch.device) -> MixedPrecision:
    """The fastest precision that training can do with on a device: none that the device only emulates."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return mixed_precision(fast_precision()) if device.type == "cpu" else "no"


def autocast_dtype(precision: MixedPrecision) -> torch.dtype:
    """The type that forward passes compute in where autocast is on."""
    return torch.float16 if precision == "fp16" else torch.bfloat16


def check_weights(precision: MixedPrecision, learners: Mapping[str, nn.Module]) -> None:
    """Checks that gradients can be unscaled.

    Args:
        precision: in force.
        learners: by name for messages.

    Raises:
        UserError: under fp16, for weights that are fp16 themselves: a gradient as small as 1e-8 would be lost in them.
    """
    for name, module in learners.items() if precision == "fp16" else ():
        if any(p.dtype == torch.float16 and p.requires_grad for p in module.parameters()):
            raise UserError(
                f"{name}: its weights are float16, and mixed_precision fp16 needs them in float32: convert the model "
                "by float()"
            )
