from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from feature_gan_kd import DistillConfig, Edge
from feature_gan_kd.analysis.model_tables import summarize
from feature_gan_kd.method.build import build_modules
from feature_gan_kd.models.peer import PeerModel

# By hand: 3x3 convolutions and a linear layer, with biases.
NARROW = (3 * 9 + 1) * 4 + (4 + 1) * 5
WIDE = (3 * 9 + 1) * 12 + (12 + 1) * 5


def model(width: int, stride: int) -> nn.Sequential:
    layers = (nn.Conv2d(3, width, 3, stride, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
    return nn.Sequential(*layers)


def drawn(edges: tuple[Edge, ...], frozen: Collection[int] = (), **settings: Any) -> list[list[str]]:
    """The lines of the summary of a narrow model with a fine map and a wide one with a coarse map, cell by cell."""
    names = ["narrow", "wide"]
    modules = [PeerModel(model(4, 1), "narrow", "n", image_size=8), PeerModel(model(12, 2), "wide", "w", image_size=8)]
    modules = build_modules(modules, edges, frozen, "0", DistillConfig(**settings), in_chans=3)
    text = summarize(names, modules, DistillConfig(**settings))
    assert all(line == line.rstrip() for line in text.splitlines())
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_models_maps_and_connections() -> None:
    lines = drawn((Edge(0, 1), Edge(1, 0)))
    discriminators = [line.pop(3) for line in lines[5:]]
    assert lines == [
        ["model", "parameters", "answers", "tapped layer", "map"],
        ["0", "narrow", str(NARROW), "5 classes", "0", "4x8x8 at 8 px"],
        ["1", "wide", str(WIDE), "5 classes", "0", "12x4x4 at 8 px"],
        [],
        ["connection", "terms", "transfer", "discriminator", "compared maps"],
        # Discriminators compare in the source's channels, on the smaller grid.
        ["narrow (0) -> wide (1)", "logits, adversarial", "12 -> 4 channels", "4x4x4"],
        ["wide (1) -> narrow (0)", "logits, adversarial", "4 -> 12 channels", "12x4x4"],
    ]
    assert all(re.fullmatch(r"[1-9][\d,]* parameters", discriminator) for discriminator in discriminators)


def test_columns_stand_below_each_other() -> None:
    names = ["a", "a-much-longer-name"]
    modules = [PeerModel(model(4, 1), name, name, image_size=8) for name in names]
    modules = build_modules(modules, (Edge(0, 1), Edge(1, 0)), (), "0", DistillConfig(), in_chans=3)
    text = summarize(names, modules, DistillConfig())
    first, *rest = text.splitlines()[:3]
    at = first.index("parameters")
    assert all(line[at:].startswith(str(NARROW)) and line[at - 1] == " " for line in rest)


def test_what_a_method_lacks_is_a_dash() -> None:
    lines = drawn((Edge(0, 1), Edge(1, 0)), method="logit")
    assert lines[1] == ["0", "narrow", str(NARROW), "5 classes", "-", "-"]
    assert lines[5] == ["narrow (0) -> wide (1)", "logits", "-", "-", "-"]
    aligned = drawn((Edge(0, 1), Edge(1, 0)), method="l1")
    assert aligned[5] == ["narrow (0) -> wide (1)", "logits, l1", "12 -> 4 channels", "-", "4x4x4"]


def test_frozen_models_are_marked() -> None:
    lines = drawn((Edge(0, 1),), frozen=(0,))
    assert lines[1][-1] == "frozen"
    assert "frozen" not in lines[2]
    assert len(lines) == 6


def test_methods_without_logits_are_told_apart() -> None:
    lines = drawn((Edge(0, 1), Edge(1, 0)), method="feature")
    assert lines[5][:2] == ["narrow (0) -> wide (1)", "adversarial"]


def test_discriminators_that_see_classes_are_told() -> None:
    lines = drawn((Edge(0, 1),), frozen=(0,), discriminator_classes=True)
    count = (4 * 5 + 1) * 128 + 128 + 1
    assert lines[5][-2:] == [f"{count:,} parameters, sees classes", "4x4x4"]


def test_another_logit_loss_is_named() -> None:
    lines = drawn((Edge(0, 1), Edge(1, 0)), method="logit", logit_loss="decoupled")
    assert lines[5][:2] == ["narrow (0) -> wide (1)", "logits (decoupled)"]
