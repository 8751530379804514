"""Random numbers that are a function of their key alone: order, augmentation and seeds of single items (ours).

A number drawn for (seed, epoch, image) is the same on every device, in every worker, with any number of processes
and wherever a run was resumed, because nothing has to be drawn before it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# SplitMix64 (Steele, Lea, Flood 2014): increment and the two multipliers, as signed 64-bit integers.
_GAMMA = -7046029254386353131
_FIRST = -4658895280553007687
_SECOND = -7723592293110705685

# Streams of one seed, so that the order of the images says nothing about their crops.
ORDER, CROP, ITEM, MIX = 1, 2, 3, 4


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _FIRST
    value = (value ^ _shift_right(value, 27)) * _SECOND
    return value ^ _shift_right(value, 31)


def hashed(seed: int, epoch: int, stream: int, indices: Tensor) -> Tensor:
    """A 64-bit hash of (seed, epoch, stream, index) for each index.

    Args:
        seed: of the run.
        epoch: counted from 0.
        stream: what the numbers are for (`ORDER`, `CROP`, `ITEM` or `MIX`).
        indices: int64, any shape.

    Returns:
        int64 of the same shape and on the same device, all 64 bits uniform.
    """
    key = torch.zeros((), dtype=torch.int64)
    for part in (seed, epoch, stream):
        key = _mix((key ^ part) + _GAMMA)
    return _mix(_mix(indices * _GAMMA + key) + _GAMMA)  # a scalar of the host goes to any device without a wait


def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """The order of `length` images in an epoch: int64 `(length,)`, each index once."""
    return torch.argsort(hashed(seed, epoch, ORDER, torch.arange(length)), stable=True)


def item_seeds(seed: int, epoch: int, indices: Tensor, stream: int = ITEM) -> list[int]:
    """A seed in [0, 2^32) for each of the `indices`, as numpy's generator takes it."""
    return _shift_right(hashed(seed, epoch, stream, indices), 32).tolist()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Runs a block with the CPU generators of torch, numpy and Python seeded, and puts them back afterwards."""
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
