"""How processes were launched, and which launches the method can be trained with."""

from __future__ import annotations

import os
import re
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from feature_gan_kd.utils.errors import UserError, reason

# What `accelerate launch` can put around a model, by the names that Accelerate gives it.
_UNFIT = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")


def is_first_to_report(line: str) -> bool:
    """Whether no other process of this launch has said this line before; also where they cannot be asked.

    What stands in brackets, such as the address of another process, may differ between them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True  # behind the port may be another program, which would be waited for without end
    try:
        # The launcher's own, which outlives the processes.
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=5)
        store = TCPStore(*where, is_master=False, wait_for_workers=False, timeout=patience)
        return int(store.add(line.partition("(")[0], 1)) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def checked(accelerator: Accelerator | None = None) -> Accelerator:
    """The accelerator, if the method can be trained with it; one as the launch describes it where none is given.

    Raises:
        UserError: for DeepSpeed, FSDP and the like, for fp16, and for a device or a port that cannot be had.
    """
    launched = next((name for name in _UNFIT if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"), None)
    unfit = launched if accelerator is None else accelerator.distributed_type.value
    if unfit in (*_UNFIT, DistributedType.XLA.value):
        raise UserError(
            f"accelerate: {unfit} takes one model and one gradient per step, the method needs several of both: launch "
            "with plain multi-GPU or multi-CPU"
        )
    accelerator = _usable(accelerator or _launched())
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"accelerate: mixed precision {accelerator.mixed_precision} is not supported, allowed are no and bf16: "
            "fp16 would need a loss scale per gradient"
        )
    return accelerator


def _launched() -> Accelerator:
    """The accelerator that the environment describes."""
    try:
        accelerator = Accelerator()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"accelerate: the process cannot start as it was launched ({reason(error)}): check device, port and "
            "precision of the launch"
        ) from None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    on_purpose = torch.version.cuda is None or parse_flag_from_env("ACCELERATE_USE_CPU")
    if accelerator.device.type == "cpu" and re.fullmatch(r"\d[\d,]*", visible) and not on_purpose:
        raise UserError(
            f"accelerate: CUDA_VISIBLE_DEVICES={visible} names no GPU that is there: name one, or set "
            "ACCELERATE_USE_CPU=1 to train without"
        )
    return accelerator


def _usable(accelerator: Accelerator) -> Accelerator:
    try:
        torch.empty(1, device=accelerator.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"accelerate: the device {accelerator.device} cannot be used ({reason(error)}): name one that is there, or "
            "set ACCELERATE_USE_CPU=1"
        ) from None
    return accelerator
