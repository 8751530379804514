"""The named wirings, written out, and every wiring that is refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_gan_kd.method.topology import Edge, build_edges, sources_of
from feature_gan_kd.utils.errors import UserError

NAMED = {
    ("cycle", 2): [(0, 1), (1, 0)],
    ("cycle", 3): [(0, 1), (1, 2), (2, 0)],
    ("cycle", 5): [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)],
    ("complete", 2): [(0, 1), (1, 0)],
    ("complete", 3): [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)],
    ("star", 2): [(0, 1), (1, 0)],
    ("star", 3): [(0, 1), (1, 0), (0, 2), (2, 0)],
}


def pairs(edges: Collection[Edge]) -> list[tuple[int, int]]:
    return [(edge.source, edge.learner) for edge in edges]


@pytest.mark.parametrize(("name", "count"), NAMED)
def test_named_wirings(name: Any, count: int) -> None:
    assert pairs(build_edges(name, count)) == NAMED[name, count]


@pytest.mark.parametrize(
    ("name", "frozen", "expected"),
    [
        ("cycle", (0,), [(0, 1), (1, 2)]),
        ("cycle", (0, 1), [(1, 2)]),
        ("complete", (0,), [(0, 1), (0, 2), (1, 2), (2, 1)]),
        ("star", (0,), [(0, 1), (0, 2)]),
        ("star", (1, 2), [(1, 0), (2, 0)]),
    ],
)
def test_nobody_teaches_a_frozen_model(name: Any, frozen: Any, expected: list[tuple[int, int]]) -> None:
    assert pairs(build_edges(name, 3, frozen)) == expected


def test_explicit_edges_keep_their_order() -> None:
    assert pairs(build_edges([(2, 0), Edge(0, 1), [0, 2]], 3)) == [(2, 0), (0, 1), (0, 2)]  # type: ignore[list-item]


def test_sources_of_a_learner() -> None:
    edges = build_edges([(2, 0), (0, 1), (1, 0), (0, 2)], 3)
    assert sources_of(edges, 0) == [2, 1]
    assert sources_of(edges, 1) == [0]


def test_an_edge_reads_as_an_arrow() -> None:
    assert str(Edge(source=2, learner=0)) == "2->0"


@pytest.mark.parametrize(
    ("topology", "count", "frozen", "words"),
    [
        ("cycle", 1, (), ["models", "1", "at least 2"]),
        ("cycle", 0, (), ["models", "0", "at least 2"]),
        ("ring", 2, (), ["topology", "'ring'", "cycle, complete, star"]),
        ("", 2, (), ["topology", "''", "cycle, complete, star"]),
        ("cycle", 2, (2,), ["frozen", "2", "0 to 1"]),
        ("cycle", 2, (-1,), ["frozen", "-1", "0 to 1"]),
        ("cycle", 2, ("resnet18",), ["frozen", "resnet18", "0 to 1"]),
        ("cycle", 2, (True,), ["frozen", "True", "0 to 1"]),
        ("cycle", 2, (0, 1), ["frozen", "every model"]),
        ("complete", 3, (2, 1, 0), ["frozen", "every model"]),
        ([(0, 1), (1, 2)], 2, (), ["topology", "1->2", "model 2", "0 to 1"]),
        ([(-1, 1), (1, 0)], 2, (), ["topology", "model -1", "0 to 1"]),
        ([(0, 0), (0, 1)], 2, (), ["topology", "0->0", "its own source"]),
        ([(0, 1), (1, 0), (0, 1)], 2, (), ["topology", "0->1", "twice"]),
        ([(0, 1), (1, 0)], 2, (0,), ["topology", "1->0", "model 0", "frozen"]),
        ([(0, 1)], 2, (), ["topology", "model 0", "freeze"]),
        ([], 2, (), ["topology", "model 0", "freeze"]),
        ([(0, 1, 2)], 2, (), ["topology", "(0, 1, 2)", "(source, learner)"]),
        ([(0.5, 1)], 2, (), ["topology", "(0.5, 1)", "(source, learner)"]),
        ([("0", "1")], 2, (), ["topology", "('0', '1')", "(source, learner)"]),
        ([(False, True)], 2, (), ["topology", "(False, True)", "(source, learner)"]),
        ([0, 1], 2, (), ["topology", "0", "(source, learner)"]),
        (["01"], 2, (), ["topology", "'01'", "(source, learner)"]),
        (7, 2, (), ["topology", "7", "cycle, complete, star"]),
        (None, 2, (), ["topology", "None", "cycle, complete, star"]),
    ],
)
def test_refused_in_one_line(topology: Any, count: int, frozen: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_edges(topology, count, frozen)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{words[0]}: ")
    assert all(word in message for word in words), message


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=8),
    st.integers(0, 4),
    st.sets(st.integers(-1, 4), max_size=3),
)
def test_what_is_accepted_can_be_trained(edges: list[tuple[int, int]], count: int, frozen: set[int]) -> None:
    try:
        accepted = build_edges(edges, count, frozen)
    except UserError:
        return
    assert pairs(accepted) == edges
    learners = set(range(count)) - frozen
    assert {edge.learner for edge in accepted} == learners
    assert learners
    assert all(edge.source != edge.learner and 0 <= edge.source < count for edge in accepted)
    assert len(set(accepted)) == len(accepted)
