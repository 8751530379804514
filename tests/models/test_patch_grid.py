"""The grid of patches that no convolution made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.models.find_taps import find_taps
from feature_gan_kd.models.tapped_model import Layout, Tap, TappedModel

Cut = Callable[[Tensor, int, int], Tensor]
"""Cuts images into patches of so many rows and columns: (batch, ..., values)."""


def as_grid(images: Tensor, height: int, width: int) -> Tensor:
    """Patches (batch, rows, columns, values)."""
    return images.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5).flatten(3)


CUTS: dict[str, Cut] = {
    "unfold": lambda images, *size: F.unfold(images, size, stride=size).transpose(1, 2),
    "tokens": lambda images, *size: as_grid(images, *size).flatten(1, 2),
    "grid": as_grid,
}


class Patches(nn.Module):
    """Patches of height x width, embedded by a linear layer, behind `extra` tokens; one image size alone."""

    def __init__(self, size: tuple[int, int], cut: Cut, extra: int = 0, side: int = 16, *, norm: bool = False) -> None:
        super().__init__()
        self.size, self.cut, values = size, cut, 3 * size[0] * size[1]
        self.embed = nn.Sequential(nn.LayerNorm(values) if norm else nn.Identity(), nn.Linear(values, 6))
        count = extra + (side // size[0]) * (side // size[1])
        self.others, self.position = nn.Parameter(torch.randn(1, extra, 6)), nn.Parameter(torch.randn(1, count, 6))
        self.block = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(self.cut(images, *self.size)).flatten(1, -2)
        tokens = torch.cat([self.others.expand(len(images), -1, -1), tokens], 1)
        return self.head(self.block(tokens + self.position).mean(1))


def the_tap(model: nn.Module, layer: str | None = None, side: int = 16) -> Tap:
    (tap,) = find_taps(model.eval(), torch.zeros(2, 3, side, side), "model", [layer] if layer else [])
    return tap


@pytest.mark.parametrize("layer", [None, "block"])
@pytest.mark.parametrize("extra", [0, 1, 4, 9])
@pytest.mark.parametrize("size", [(2, 4), (4, 2), (2, 8), (16, 2), (4, 4)], ids=str)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_patches_without_a_convolution(cut: Cut, size: tuple[int, int], extra: int, layer: str | None) -> None:
    """Also where tokens make a square by chance: 2x8 patches give 8x2, 16 tokens; 1x8 behind one make 9."""
    tap = the_tap(Patches(size, cut, extra), layer)
    assert (tap.layout, tap.prefix_tokens, tap.shape) == (Layout.NLC, extra, (6, 16 // size[0], 16 // size[1]))


def test_patches_of_a_model_without_a_classifier() -> None:
    """It returns tokens."""

    class Encoder(Patches):
        def forward(self, images: Tensor) -> Tensor:
            return self.block(self.embed(self.cut(images, *self.size)).flatten(1, -2) + self.position)

    assert the_tap(Encoder((2, 8), CUTS["unfold"])).shape == (6, 8, 2)


def test_a_position_of_the_map_is_where_its_patch_was() -> None:
    model = Patches((2, 4), CUTS["unfold"], extra=1, norm=True)
    tapped, images = TappedModel(model, [the_tap(model)], "model"), torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[:, :, 10:12, 4:8] *= -3
    with torch.no_grad():
        moved = (tapped(changed)[1][0] - tapped(images)[1][0]).abs().sum((0, 1))
    assert divmod(int(moved.argmax()), 4) == (5, 1)


def test_too_many_tokens_for_a_guess() -> None:
    assert the_tap(Patches((2, 4), CUTS["unfold"], side=64), side=64).shape == (6, 32, 16)


def test_patches_that_overlap() -> None:
    model = Patches((4, 4), lambda images, *size: F.unfold(images, size, stride=(2, 4)).transpose(1, 2))
    model.position = nn.Parameter(torch.randn(1, 28, 6))
    assert the_tap(model).shape == (6, 7, 4)


@pytest.mark.parametrize("layer", [None, "block"])
def test_oblong_patches_in_another_order_are_refused(layer: str | None) -> None:
    model = Patches((2, 4), lambda images, *size: as_grid(images, *size).transpose(1, 2))
    with pytest.raises(UserError, match=r"^model: '.*' has 32 tokens of the image, which are no square, behind 0 othe"):
        the_tap(model, layer)


def test_rows_of_the_image_as_tokens() -> None:
    """A recurrent layer reads the rows: each is one position."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.GRU(48, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.cells(images.permute(0, 2, 1, 3).flatten(2))[0].mean(1))

    assert the_tap(Rows(), "cells").shape == (6, 16, 1)
