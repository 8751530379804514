"""Memory: kept between two updates; how it runs out, and the line that then names the batch and what to try."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from feature_gan_kd.utils.errors import UserError

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


class BatchTooLargeError(RuntimeError):
    """Memory ran out in the forward or backward passes of an update, which has changed nothing but random numbers."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that of a device, or of the processor, without memory."""
    # Here, since it takes a second: the command line uses this module long before memory can run out.
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | BatchTooLargeError) or bool(should_reduce_batch_size(error))


def out_of_memory(images: Tensor, parts: int, said: str, remedies: Sequence[str]) -> UserError:
    """The line about an update that does not fit.

    Args:
        images: (batch, channels, height, width), this process's share.
        parts: number of microbatches that it is divided into.
        said: by torch.
        remedies: what to try, the best first; at least two.
    """
    return UserError(
        f"memory: {describe_batch(images, parts)} does not fit on {images.device} ({said}): try "
        f"{', '.join(remedies[:-1])} or {remedies[-1]}"
    )


def describe_batch(images: Tensor, parts: int) -> str:
    """Images (batch, channels, height, width) and the number of their parts, in words."""
    size = "x".join(map(str, images.shape[1:]))
    return f"a batch of {len(images)} images of {size} in {parts} part{'s' * (parts > 1)}"
