"""The state of every random number generator that a model may draw from."""

from __future__ import annotations

import random

import numpy as np
import torch


class RandomState:
    """The state, at construction, of the generators of torch, of a GPU, of numpy and of Python.

    Args:
        device: whose generator is kept, too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._numpy = np.random.get_state()
        self._python = random.getstate()

    def restore(self) -> None:
        """Makes all of them draw the same numbers again."""
        torch.set_rng_state(self._torch)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self._device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
