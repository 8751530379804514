"""How the processes were launched, and whether the method can be trained in this way."""

from __future__ import annotations

import os
import re
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from feature_gan_kd.utils.errors import UserError, reason

# Ways of training that `accelerate launch` can set up and the method cannot use, by Accelerate's names.
_UNSUPPORTED = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")


def is_first_to_report(line: str) -> bool:
    """Whether this process is the first of its launch to report this line; True also where that cannot be found out.

    Compares the text before the first bracket: details in brackets, such as an address, differ between processes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True  # another program may listen on the port, and the store would wait for its answer forever
    try:
        # The store of the launcher, which outlives the processes.
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        return int(store.add(line.partition("(")[0], 1)) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def usable_accelerator(accelerator: Accelerator | None = None) -> Accelerator:
    """Returns the accelerator, or one made from the launch's environment, if the method can be trained with it.

    Raises:
        UserError: for DeepSpeed, FSDP and the like, for Accelerate's gradient accumulation, for fp8, and for a device
            or a port that cannot be used.
    """
    configured = next(
        (name for name in _UNSUPPORTED if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"), None
    )
    kind = configured if accelerator is None else accelerator.distributed_type.value
    if kind in (*_UNSUPPORTED, DistributedType.XLA.value):
        raise UserError(
            f"accelerate: {kind} takes one model and one gradient per step, the method needs several of both: launch "
            "with plain multi-GPU or multi-CPU"
        )
    accelerator = accelerator or _accelerator_of_launch()
    parts = getattr(accelerator, "gradient_accumulation_steps", 1)
    if parts != 1:
        raise UserError(
            f"accelerate: gradient_accumulation_steps is {parts}, which is not used: leave it out and set "
            f"grad_accum_steps={parts}, which divides each batch into as many parts"
        )
    _check_device(accelerator.device)
    if accelerator.mixed_precision not in ("no", "bf16", "fp16"):
        raise UserError(
            f"accelerate: mixed precision {accelerator.mixed_precision} is not supported: launch with no, bf16 or fp16"
        )
    return accelerator


def _accelerator_of_launch() -> Accelerator:
    """Makes the accelerator that the environment describes."""
    try:
        accelerator = Accelerator()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"accelerate: the process cannot start as it was launched ({reason(error)}): check device, port and "
            "precision of the launch"
        ) from None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    cpu_intended = torch.version.cuda is None or parse_flag_from_env("ACCELERATE_USE_CPU")
    if accelerator.device.type == "cpu" and re.fullmatch(r"\d[\d,]*", visible) and not cpu_intended:
        # torch ignores GPU numbers that do not exist, and the run would go on, very slowly, on the CPU.
        raise UserError(
            f"accelerate: CUDA_VISIBLE_DEVICES={visible} names no GPU that is there: name one, or set "
            "ACCELERATE_USE_CPU=1 to train without"
        )
    return accelerator


def _check_device(device: torch.device) -> None:
    """Raises UserError where nothing can be allocated on the device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"accelerate: the device {device} cannot be used ({reason(error)}): name one that is there, or "
            "set ACCELERATE_USE_CPU=1"
        ) from None
