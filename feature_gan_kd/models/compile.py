"""torch.compile for functions whose backward pass runs twice; without it where it does not work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo import lookup_backend
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config

Returned = TypeVar("Returned")


class Compiler:
    """Compiles functions of one tensor, once for each of its shapes.

    torch.compile would by default make one program for all shapes when it meets a second one. Here each shape has its
    own program, whichever came first. So a resumed run computes the same bits, and an uneven last batch does not slow
    the others down. A function that cannot be compiled runs uncompiled, after one warning per reason.

    Args:
        backend: one of torch's compilers, by name.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._compile = lookup_backend(backend)
        self._reasons: set[str] = set()

    def __call__(self, function: Callable[[Tensor], Returned]) -> Callable[[Tensor], Returned]:
        """Returns the function in a form that is compiled on its first call."""
        compiled: Callable[[Tensor], Returned] = torch.compile(function, backend=self._compile_graph, dynamic=False)
        works = True

        def call(x: Tensor) -> Returned:
            nonlocal works
            if works:
                try:
                    return compiled(x)
                except TorchDynamoException as error:  # raised before anything is computed
                    works = False
                    self._warn(str(error).strip().partition("\n")[0] or type(error).__name__)
            return function(x)

        return call

    def _compile_graph(self, graph: Any, inputs: Any) -> Any:
        """Compiles a graph whose backward pass can run twice, once for the model loss and once for the adversarial one.

        Donated buffers let the backward pass overwrite what the forward pass saved; torch then refuses
        `retain_graph=True`, and a second backward pass would read overwritten values.
        """
        with config.patch(donated_buffer=False):
            return self._compile(graph, inputs)

    def _warn(self, why: str) -> None:
        if why not in self._reasons:
            self._reasons.add(why)
            warnings.warn(f"compile: torch.compile does not work here ({why}): going on without it", stacklevel=2)
