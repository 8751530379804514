"""Topologies: which model teaches which, as a list of directed edges. Data only, no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from feature_gan_kd.utils.errors import UserError

TopologyName = Literal["cycle", "complete", "star"]


@dataclass(frozen=True, order=True)
class Edge:
    """`source` teaches `learner`; both are positions in the list of models."""

    source: int
    learner: int

    def __str__(self) -> str:
        return f"{self.source}->{self.learner}"


def cycle(count: int) -> tuple[Edge, ...]:
    """1 -> 2 -> ... -> K -> 1 (paper, section 3): K edges; a pair is the cycle with K = 2."""
    return tuple(Edge(source, (source + 1) % count) for source in range(count))


def complete(count: int) -> tuple[Edge, ...]:
    """Every model teaches every other: K(K-1) edges (ours; deep mutual learning's graph)."""
    return tuple(Edge(s, t) for s in range(count) for t in range(count) if s != t)


def star(count: int) -> tuple[Edge, ...]:
    """Model 0 and each of the others teach one another, the others do not: 2(K-1) edges (ours)."""
    return tuple(edge for k in range(1, count) for edge in (Edge(0, k), Edge(k, 0)))


_BUILDERS = {"cycle": cycle, "complete": complete, "star": star}


def build_edges(
    topology: TopologyName | Sequence[Edge | tuple[int, int]],
    count: int,
    frozen: Collection[int] = (),
) -> tuple[Edge, ...]:
    """Builds the edges between `count` models.

    Args:
        topology: a name, or explicit edges as `(source, learner)`.
        count: number of models, at least 2.
        frozen: models that only teach; the edges of a named topology that would teach them are left out.

    Returns:
        The edges in order, each at most once.

    Raises:
        UserError: for fewer than two models, an unknown topology, an index that does not exist, a
            self-edge, a repeated edge, a frozen learner, a model that is not frozen and has no source, or
            models that are all frozen.
    """
    if count < 2:
        raise UserError(f"models: {count} model given, at least 2 are needed: name a peer to learn with")
    outside = [k for k in frozen if type(k) is not int or not 0 <= k < count]
    if outside:
        raise UserError(f"frozen: there is no model {outside[0]!r}, allowed are 0 to {count - 1}")
    if len(set(frozen)) == count:
        raise UserError("frozen: every model is frozen, none would learn: leave one out")
    if isinstance(topology, str) and topology in _BUILDERS:
        edges = tuple(edge for edge in _BUILDERS[topology](count) if edge.learner not in frozen)
    elif isinstance(topology, Sequence) and not isinstance(topology, str):
        edges = tuple(_edge(given) for given in topology)
    else:
        allowed = ", ".join(_BUILDERS)
        raise UserError(f"topology: {topology!r} is unknown, allowed are {allowed}, or edges (source, learner)")
    _check(edges, count, set(frozen))
    return edges


def sources_of(edges: Sequence[Edge], learner: int) -> list[int]:
    """The positions of the models that teach `learner`, in the order of the edges."""
    return [edge.source for edge in edges if edge.learner == learner]


def _edge(given: Any) -> Edge:
    ends = (given.source, given.learner) if isinstance(given, Edge) else given
    if not isinstance(ends, (tuple, list)) or [type(end) for end in ends] != [int, int]:
        raise UserError(f"topology: {given!r} is no edge, expected (source, learner), two positions of models")
    return Edge(*ends)


def _check(edges: Sequence[Edge], count: int, frozen: set[int]) -> None:
    for position, edge in enumerate(edges):
        for index in (edge.source, edge.learner):
            if not 0 <= index < count:
                raise UserError(f"topology: edge {edge} names model {index}, allowed are 0 to {count - 1}")
        if edge.source == edge.learner:
            raise UserError(f"topology: edge {edge} makes model {edge.source} its own source: remove it")
        if edge in edges[:position]:
            raise UserError(f"topology: edge {edge} is given twice: remove one")
        if edge.learner in frozen:
            raise UserError(f"topology: edge {edge} teaches model {edge.learner}, which is frozen")
    taught = {edge.learner for edge in edges}
    lonely = [k for k in range(count) if k not in taught and k not in frozen]
    if lonely:
        raise UserError(f"topology: nobody teaches model {lonely[0]}: add an edge to it or freeze it")
