"""Memory: kept between two updates; where it runs out, one line names the batch that failed and what to try."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from feature_gan_kd.utils.errors import UserError, reason

# Parameters of mallopt, from glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Makes this process keep memory that it frees, instead of returning it to the system (ours).

    An update frees all of its maps, and the next one needs as much again. If they go back to the system in between, it
    has to map and clear every page again. The process never shrinks after this, so only the command line calls it.

    Returns:
        Whether the allocator accepts the setting: glibc's does.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    large = any(set_option(_MMAP_THRESHOLD, size) for size in (2**30, 2**25))  # older ones take no more than the second
    return large and bool(set_option(_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def explain_out_of_memory(images: Tensor, parts: int, bf16: bool) -> Iterator[None]:
    """Turns an out-of-memory error inside the block, which runs one update, into one line.

    Args:
        images: (batch, channels, height, width), this process's share.
        parts: number of microbatches that it is divided into.
        bf16: whether the forward passes run in bfloat16.

    Raises:
        UserError: where memory runs out in the block.
    """
    try:
        yield
    except RuntimeError as error:
        # On a CPU, torch raises a plain RuntimeError.
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        size = "x".join(map(str, images.shape[1:]))
        remedies = [
            f"grad_accum_steps={2 * parts}",
            "a smaller batch_size",
            *([] if bf16 else ["mixed_precision=bf16"]),
        ]
        raise UserError(
            f"memory: a batch of {len(images)} images of {size} in {parts} part{'s' * (parts > 1)} does not fit on "
            f"{images.device} ({reason(error)}): try {', '.join(remedies[:-1])} or {remedies[-1]}"
        ) from error
