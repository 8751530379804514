"""The wiring as text, and as values: who teaches whom, through what."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.taps import TappedModel


def draw(
    names: Sequence[str],
    models: Sequence[TappedModel],
    connections: Sequence[Connection],
    edges: Sequence[Edge],
    frozen: Collection[int],
    *,
    logits: bool,
) -> str:
    """A table of the models and one of the edges.

    Args:
        names: of the models.
        models: with their taps.
        links: transfers and discriminators.
        edges: who teaches whom.
        frozen: models that only teach.
        logits: whether the method teaches them.
    """
    rows = [("model", "", "parameters", "tapped layer", "map", "")]
    for k, model in enumerate(models):
        for position, tap in enumerate(model.taps or (None,)):
            own = (str(k), names[k], f"{_count(model):,}") if position == 0 else ("", "", "")
            where = ("-", "-") if tap is None else (tap.title, f"{_shape(tap.shape)} at {model.adapter.size} px")
            rows.append((*own, *where, "frozen" if k in frozen else ""))
    lines = table(rows)
    rows = [("connection", "logits", "transfer", "discriminator", "judges", "")]
    for edge in edges:
        own_connections = [connection for connection in connections if connection.edge == edge]
        for position, connection in enumerate(own_connections or (None,)):
            start = (
                f"{names[edge.source]} ({edge.source}) -> {names[edge.learner]} ({edge.learner})",
                "yes" if logits else "no",
            )
            rows.append((*(start if position == 0 else ("", "")), *_cells_of(connection), ""))
    return "\n".join([*lines, "", *table(rows)])


def describe(models: Sequence[TappedModel]) -> list[dict[str, Any]]:
    """Per model its `parameters` and its `maps` (`layer` and `shape`: channels, height, width), as JSON values."""
    return [
        {
            "parameters": _count(model),
            "maps": [{"layer": tap.title, "shape": list(tap.shape)} for tap in model.taps],
        }
        for model in models
    ]


def _cells_of(connection: Connection | None) -> tuple[str, str, str]:
    if connection is None:
        return "-", "-", "-"
    transfer = _count(connection.transfer)
    judge = "-" if connection.discriminator is None else f"{_count(connection.discriminator):,} parameters"
    shape = (connection.source_shape[0], *connection.grid)
    channels = f"{connection.learner_shape[0]} -> {connection.source_shape[0]} channels" if transfer else "none"
    return channels, judge, _shape(shape)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the cells of each column stand below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
