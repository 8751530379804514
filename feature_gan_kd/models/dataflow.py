"""How the images flow through a model, read from the autograd graph of one forward pass (ours). Computes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

Node = Any
"""A node of the autograd graph: an operation, or the leaf of a tensor."""


def upstream_nodes(outputs: Iterable[Node | None]) -> set[Node]:
    """Returns the nodes that the given nodes were computed from, and these themselves."""
    found: set[Node] = set()
    pending = list(outputs)
    while pending:
        node = pending.pop()
        if node is None or node in found:
            continue
        found.add(node)
        pending.extend(parent for parent, _ in node.next_functions)
    return found


def upstream_parameters(outputs: Sequence[Tensor]) -> set[nn.Parameter]:
    """Returns the parameters that `outputs`, of any shape, were computed from; for a map, the feature extractor's."""
    nodes = upstream_nodes(output.grad_fn for output in outputs)
    return {node.variable for node in nodes if hasattr(node, "variable")}  # the leaf nodes of parameters


class ImageFlow:
    """The operations between images and logits, and those that all of it passes through.

    A map is a model's own where every path from the images to the logits passes through it. An attention matrix, a
    pooling weight or a layer inside a residual block is bypassed, by the values or by the skip connection.

    Args:
        images: the leaf that the images were computed from.
        logits: (batch, classes), computed from it with gradients.

    Attributes:
        path: every node on a path from the images to the logits; each comes before all that it was computed from.
        nodes: the same, as a set.
        passed_by_all: for each node that every such path passes through, its place, counted from the logits.
    """

    def __init__(self, images: Tensor, logits: Tensor) -> None:
        order = _from_logits_to_images(logits.grad_fn)
        reaches: set[Node] = set()
        for node in reversed(order):
            parents = (parent for parent, _ in node.next_functions)
            if getattr(node, "variable", None) is images or any(parent in reaches for parent in parents):
                reaches.add(node)
        self.path = path = [node for node in order if node in reaches]
        self.nodes = frozenset(path)
        place = {node: k for k, node in enumerate(path)}
        self.passed_by_all: dict[Node, int] = {}
        furthest = 0  # of all edges so far: a node before it is jumped over by one of them
        for k, node in enumerate(path):
            if furthest <= k:
                self.passed_by_all[node] = k
            furthest = max([furthest, *(place[parent] for parent, _ in node.next_functions if parent in place)])


def _from_logits_to_images(logits: Node | None) -> list[Node]:
    """Lists the nodes above the logits so that each comes before everything it was computed from."""
    finished: list[Node] = []
    entered: set[Node] = set()
    pending = [(logits, False)] if logits is not None else []
    while pending:
        node, is_done = pending.pop()
        if is_done:
            finished.append(node)
        elif node not in entered:
            entered.add(node)
            pending.append((node, True))
            pending.extend((parent, False) for parent, _ in node.next_functions if parent is not None)
    return finished[::-1]
