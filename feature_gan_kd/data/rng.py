"""Counter-based random numbers for order, augmentation and the seeds of single images (ours).

Each number is a hash of its key (seed, epoch, purpose, image), not the next draw of a generator. A generator's draw
depends on all draws before it, so on the number of workers and processes and on where a run was resumed; a hash does
not, and is the same on every device.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014): increment and the two multipliers. As signed 64-bit integers, since torch has
# no uint64 arithmetic; multiplication and addition wrap alike.
_GAMMA = -7046029254386353131
_FIRST = -4658895280553007687
_SECOND = -7723592293110705685

# What a number is for. Part of the key, so that the order of the images says nothing about their crops.
ORDER, CROP, ITEM, MIX, ERASE, BALANCE = 1, 2, 3, 4, 5, 6


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """A logical shift: `>>` alone would copy the sign of an int64 into the upper bits."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(value: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of the input changes half of the bits of the output."""
    value = (value ^ _shift_right(value, 30)) * _FIRST
    value = (value ^ _shift_right(value, 27)) * _SECOND
    return value ^ _shift_right(value, 31)


def random_bits(seed: int, epoch: int, purpose: int, indices: Tensor) -> Tensor:
    """Hashes (seed, epoch, purpose, index) to 64 random bits for each index.

    Args:
        seed: of the run.
        epoch: counted from 0.
        purpose: what the numbers are for (`ORDER`, `CROP`, ...).
        indices: int64, any shape.

    Returns:
        int64 of the same shape and on the same device, all 64 bits uniform.
    """
    key = torch.zeros((), dtype=torch.int64)
    for part in (seed, epoch, purpose):
        key = _scramble((key ^ part) + _GAMMA)
    # `key` stays on the CPU: a CPU scalar combines with indices on any device, without a copy that waits.
    return _scramble(_scramble(indices * _GAMMA + key) + _GAMMA)


def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of `length` images in an epoch: int64 `(length,)`, each index once."""
    return torch.argsort(random_bits(seed, epoch, ORDER, torch.arange(length)), stable=True)


def item_seeds(seed: int, epoch: int, indices: Tensor, purpose: int = ITEM) -> list[int]:
    """Returns a seed in [0, 2^32), the range of numpy's generator, for each of the `indices`."""
    return _shift_right(random_bits(seed, epoch, purpose, indices), 32).tolist()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the CPU generators of torch, numpy and Python inside the block, and restores their states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
