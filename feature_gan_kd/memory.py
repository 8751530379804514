"""Memory that does not suffice: one line with the batch that failed and what to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from feature_gan_kd.errors import UserError, reason


@contextmanager
def fitting(images: Tensor, parts: int, bf16: bool) -> Iterator[None]:
    """Around one update.

    Args:
        images: (batch, channels, height, width), this process's share.
        parts: in which it goes through the networks.
        bf16: whether the forward passes run in bfloat16.

    Raises:
        UserError: where memory runs out in it.
    """
    try:
        yield
    except RuntimeError as error:
        # The allocator of CPUs has no exception of its own.
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        size = "x".join(map(str, images.shape[1:]))
        remedies = [
            f"accumulation_steps={2 * parts}",
            "a smaller batch_size",
            *([] if bf16 else ["mixed_precision=bf16"]),
        ]
        raise UserError(
            f"memory: a batch of {len(images)} images of {size} in {parts} part{'s' * (parts > 1)} does not fit on "
            f"{images.device} ({reason(error)}): try {', '.join(remedies[:-1])} or {remedies[-1]}"
        ) from error
