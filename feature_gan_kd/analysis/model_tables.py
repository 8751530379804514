"""Describes the models and connections of a distiller as text and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.method.build import MethodModules
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.discriminator import ClassDiscriminator
from feature_gan_kd.models.tapped_model import TappedModel


def summarize(names: Sequence[str], modules: MethodModules, weights: LossSettings) -> str:
    """Formats a table of the models and one of the edges, and a line for each tap whose layout is a guess.

    Args:
        names: of the models.
        modules: the models with their taps, the edges and the connections.
        weights: of the loss terms, which say what is learned over each edge.
    """
    rows = [("model", "", "parameters", "answers", "tapped layer", "map", "")]
    for k, model in enumerate(modules.tapped):
        for position, tap in enumerate(model.taps or (None,)):
            answers = f"{modules.classes[k]} classes" if modules.classes[k] else "features"
            own = (str(k), names[k], f"{_count_parameters(model):,}", answers) if position == 0 else ("", "", "", "")
            where = ("-", "-") if tap is None else (tap.title, f"{_join_shape(tap.shape)} at {model.adapter.size} px")
            rows.append((*own, *where, _what_is_fixed(model, k in modules.frozen) if position == 0 else ""))
    lines = align_columns(rows)
    connected = [("connection", "terms", "transfer", "discriminator", "compared maps")]
    for edge in modules.edges:
        own_connections = [connection for connection in modules.connections if connection.edge == edge]
        for position, connection in enumerate(own_connections or (None,)):
            start = (
                f"{names[edge.source]} ({edge.source}) -> {names[edge.learner]} ({edge.learner})",
                _join_terms(modules.terms(edge, weights), weights),
            )
            connected.append((*(start if position == 0 else ("", "")), *_connection_cells(connection)))
    notes = [note for model in modules.tapped for note in model.notes()]
    return "\n".join([*lines, "", *align_columns(connected), *([""] if notes else []), *notes])


def describe_taps(models: Sequence[TappedModel]) -> list[dict[str, Any]]:
    """For each model its `parameters` and its `maps` (`layer` and `shape`: channels, height, width), as JSON values."""
    return [
        {
            "parameters": _count_parameters(model),
            "maps": [{"layer": tap.title, "shape": list(tap.shape)} for tap in model.taps],
        }
        for model in models
    ]


def _connection_cells(connection: Connection | None) -> tuple[str, str, str]:
    if connection is None:
        return "-", "-", "-"
    transfer = _count_parameters(connection.transfer)
    discriminator = connection.discriminator
    parameters = "-" if discriminator is None else f"{_count_parameters(discriminator):,} parameters"
    if isinstance(discriminator, ClassDiscriminator):
        parameters += ", sees classes"
    shape = (connection.source_shape[0], *connection.grid)
    channels = f"{connection.learner_shape[0]} -> {connection.source_shape[0]} channels" if transfer else "none"
    return channels, parameters, _join_shape(shape)


def _join_terms(terms: Sequence[str], weights: LossSettings) -> str:
    changes = f" ({', '.join(weights.logit_term_words)})" if weights.logit_term_words else ""
    return ", ".join(term + changes * (term == "logits") for term in terms) or "-"


def _what_is_fixed(model: TappedModel, is_frozen: bool) -> str:
    """Says that a model only teaches, or how much of it does not learn."""
    fixed = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return "frozen" if is_frozen else f"{fixed:,} parameters fixed" if fixed else ""


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _join_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats rows as lines in which the cells of each column are aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
