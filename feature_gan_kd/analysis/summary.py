"""The wiring as text, and as values: who teaches whom, through what."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from feature_gan_kd.method.connection import Link
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.taps import TappedNetwork


def draw(
    names: Sequence[str],
    networks: Sequence[TappedNetwork],
    links: Sequence[Link],
    edges: Sequence[Edge],
    frozen: Collection[int],
    *,
    logits: bool,
) -> str:
    """A table of the networks and one of the edges.

    Args:
        names: of the networks.
        networks: with their taps.
        links: transfers and discriminators.
        edges: who teaches whom.
        frozen: networks that only teach.
        logits: whether the method teaches them.
    """
    rows = [("network", "", "parameters", "tapped layer", "map", "")]
    for k, network in enumerate(networks):
        for position, tap in enumerate(network.taps or (None,)):
            own = (str(k), names[k], f"{_count(network):,}") if position == 0 else ("", "", "")
            where = ("-", "-") if tap is None else (tap.title, f"{_shape(tap.shape)} at {network.adapter.size} px")
            rows.append((*own, *where, "frozen" if k in frozen else ""))
    lines = table(rows)
    rows = [("lesson", "logits", "transfer", "discriminator", "judges", "")]
    for edge in edges:
        own_links = [link for link in links if link.edge == edge]
        for position, link in enumerate(own_links or (None,)):
            start = (
                f"{names[edge.source]} ({edge.source}) -> {names[edge.learner]} ({edge.learner})",
                "yes" if logits else "no",
            )
            rows.append((*(start if position == 0 else ("", "")), *_link(link), ""))
    return "\n".join([*lines, "", *table(rows)])


def describe(networks: Sequence[TappedNetwork]) -> list[dict[str, Any]]:
    """Per network its `parameters` and its `maps` (`layer` and `shape`: channels, height, width), as JSON values."""
    return [
        {
            "parameters": _count(network),
            "maps": [{"layer": tap.title, "shape": list(tap.shape)} for tap in network.taps],
        }
        for network in networks
    ]


def _link(link: Link | None) -> tuple[str, str, str]:
    if link is None:
        return "-", "-", "-"
    transfer = _count(link.transfer)
    judge = "-" if link.discriminator is None else f"{_count(link.discriminator):,} parameters"
    shape = (link.source_shape[0], *link.grid)
    channels = f"{link.learner_shape[0]} -> {link.source_shape[0]} channels" if transfer else "none"
    return channels, judge, _shape(shape)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the cells of each column stand below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
