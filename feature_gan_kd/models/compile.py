"""torch.compile for functions of which two gradients are taken, and what happens where it does not work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo import lookup_backend
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config

Answer = TypeVar("Answer")


class Compiler:
    """Compiles functions of one tensor, for each size of it anew.

    A size has a program of its own, whatever came before it: a resumed run has the same bits, and an uneven last batch
    does not slow the others down. Where a function cannot be compiled it runs as it is, after one warning a reason.

    Args:
        backend: one of torch's compilers, by name.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._compile = lookup_backend(backend)
        self._reasons: set[str] = set()

    def __call__(self, function: Callable[[Tensor], Answer]) -> Callable[[Tensor], Answer]:
        """The same function, compiled when it is called."""
        compiled: Callable[[Tensor], Answer] = torch.compile(function, backend=self._keeping, dynamic=False)
        works = True

        def call(x: Tensor) -> Answer:
            nonlocal works
            if works:
                try:
                    return compiled(x)
                except TorchDynamoException as error:  # before anything was computed
                    works = False
                    self._warn(str(error).strip().partition("\n")[0] or type(error).__name__)
            return function(x)

        return call

    def _keeping(self, graph: Any, inputs: Any) -> Any:
        """Compiles a graph whose backward pass leaves what the forward saved: it is walked twice."""
        with config.patch(donated_buffer=False):
            return self._compile(graph, inputs)

    def _warn(self, why: str) -> None:
        if why not in self._reasons:
            self._reasons.add(why)
            warnings.warn(f"compile: torch.compile does not work here ({why}): going on without it", stacklevel=2)
