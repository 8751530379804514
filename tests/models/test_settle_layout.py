"""What a shape leaves open: which tokens are made of the images, and which dimensions are positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.models.find_taps import find_taps
from feature_gan_kd.models.tapped_model import Layout, Tap, TappedModel
from feature_gan_kd.models.token_origin import tokens_from_images

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def tapped(model: nn.Module, layer: str | None, images: Tensor = IMAGES) -> tuple[Tap, Tensor, Tensor]:
    """The tap, its map, and the output of the tapped layer."""
    (tap,) = find_taps(model.eval(), torch.zeros_like(images), "model", [layer] if layer else [])
    outputs: list[Any] = []
    handle = model.get_submodule(tap.layer).register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        _, (feature_map,) = TappedModel(model, [tap], "model")(images)
    handle.remove()
    return tap, feature_map, outputs[0]


Join = Callable[[Tensor, Tensor], Tensor]
"""Joins tokens (batch, tokens, channels) of the images and others."""


class Joined(nn.Module):
    """Patches of 2 pixels, other tokens joined to them, one block, and a head; `width` channels."""

    def __init__(self, join: Join, extra: int = 4, width: int = 12) -> None:
        super().__init__()
        self.join = join
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.others = nn.Parameter(torch.randn(1, extra, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 24, batch_first=True, dropout=0.0)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Any:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = self.norm(self.block(self.join(tokens, self.others.expand(len(images), -1, -1))))
        return self.head(tokens.mean(1))


def by_slices(tokens: Tensor, others: Tensor) -> Tensor:
    joined = tokens.new_zeros(len(tokens), tokens.shape[1] + others.shape[1], tokens.shape[2])
    joined[:, : tokens.shape[1]], joined[:, tokens.shape[1] :] = tokens, others
    return joined


def sequence_first(tokens: Tensor, others: Tensor) -> Tensor:
    return torch.cat([tokens.transpose(0, 1), others.transpose(0, 1)], 0).transpose(0, 1)


BEHIND: dict[str, Join] = {
    "cat": lambda tokens, others: torch.cat([tokens, others], 1),
    "hstack": lambda tokens, others: torch.hstack([tokens, others]),
    "sequence first": sequence_first,
    "pad": lambda tokens, others: F.pad(tokens, (0, 0, 0, others.shape[1])),
    "slices": by_slices,
}
FRONT: dict[str, Join] = {
    "cat": lambda tokens, others: torch.cat([others, tokens], 1),
    "sequence first": lambda tokens, others: sequence_first(others, tokens),
    "pad": lambda tokens, others: F.pad(tokens, (0, 0, others.shape[1], 0)),
    "slices": lambda tokens, others: by_slices(others, tokens),
}


@pytest.mark.parametrize("layer", [None, "block", "norm"])
@pytest.mark.parametrize("join", BEHIND.values(), ids=BEHIND)
def test_tokens_behind_those_of_the_image_are_refused(join: Join, layer: str | None) -> None:
    with pytest.raises(UserError, match=r"^model: '(norm|block)' has tokens behind those of the image, not in front"):
        tapped(Joined(join), layer)


def test_as_many_channels_as_tokens() -> None:
    with pytest.raises(UserError, match="has tokens behind those of the image"):
        tapped(Joined(BEHIND["cat"], width=20), None)


def test_a_class_token_in_the_middle_is_refused() -> None:
    middle: Join = lambda tokens, others: torch.cat([tokens[:, :8], others, tokens[:, 8:]], 1)  # noqa: E731
    with pytest.raises(UserError, match="has tokens among those of the image"):
        tapped(Joined(middle, extra=1), None)


@pytest.mark.parametrize("extra", [1, 4, 9])
@pytest.mark.parametrize("layer", [None, "block"])
@pytest.mark.parametrize("join", FRONT.values(), ids=FRONT)
def test_tokens_in_front_are_dropped(join: Join, layer: str | None, extra: int) -> None:
    tap, feature_map, tokens = tapped(Joined(join, extra), layer)
    assert (tap.prefix_tokens, tap.shape) == (extra, (12, 4, 4))
    assert torch.equal(feature_map, tokens[:, extra:].transpose(1, 2).reshape(2, 12, 4, 4))


class Embedded(nn.Module):
    """16 patches without a convolution, and 9 tokens in front: 25 tokens, which look like a square."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(12, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.others = nn.Parameter(torch.randn(1, 9, 6))

    def forward(self, images: Tensor) -> Any:
        tokens = self.embed(F.unfold(images, 2, stride=2).transpose(1, 2))
        return self.head(self.norm(torch.cat([self.others.expand(len(images), -1, -1), tokens], 1)).mean(1))


def test_tokens_that_happen_to_be_a_square() -> None:
    tap, feature_map, tokens = tapped(Embedded(), "norm")
    assert (tap.prefix_tokens, tap.shape) == (9, (6, 4, 4))
    assert torch.equal(feature_map, tokens[:, 9:].transpose(1, 2).reshape(2, 6, 4, 4))


def test_a_class_token_that_is_made_of_the_patches() -> None:
    mean_first: Join = lambda tokens, others: torch.cat([tokens.mean(1, keepdim=True), tokens], 1)  # noqa: E731
    tap, feature_map, tokens = tapped(Joined(mean_first, extra=1), None)
    assert tap.prefix_tokens == 1
    assert torch.equal(feature_map, tokens[:, 1:].transpose(1, 2).reshape(2, 12, 4, 4))


class Once(torch.autograd.Function):
    """Doubles; without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


def test_where_nothing_can_be_derived_twice() -> None:
    doubled: Join = lambda tokens, others: torch.cat([others, Once.apply(tokens)], 1)  # noqa: E731
    for join in (doubled, FRONT["cat"]):
        made = tokens_from_images(Joined(join), IMAGES, 20, 12, "model")
        assert made is not None
        assert made.tolist() == [False] * 4 + [True] * 16
    assert tokens_from_images(Joined(doubled), IMAGES, 21, 12, "model") is None


class Cube(nn.Module):
    """8 channels on 8x8 positions, channels last; of one image size alone where `fixed`."""

    def __init__(self, *, fixed: bool = False) -> None:
        super().__init__()
        self.patch, self.block, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.Sequential(nn.Linear(8, 8), nn.GELU()),
            nn.Linear(8, 3),
        )
        self.position = nn.Parameter(torch.randn(1, 8, 8, 8)) if fixed else 0

    def forward(self, images: Tensor) -> Any:
        return self.head(self.block(self.patch(images).permute(0, 2, 3, 1) + self.position).mean((1, 2)))


class Columns(nn.Module):
    """As many channels as positions, or a square number of both: tokens behind channels."""

    def __init__(self, width: int, *, merge: bool = False, fixed: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.pool = nn.AvgPool2d(2) if merge else nn.Identity()
        self.block, self.head = nn.Sequential(nn.Conv1d(width, width, 1), nn.GELU()), nn.Linear(width, 3)
        self.position = nn.Parameter(torch.randn(1, width, 4 if merge else 16)) if fixed else 0

    def forward(self, images: Tensor) -> Any:
        return self.head(self.block(self.pool(self.patch(images)).flatten(2) + self.position).mean(2))


@pytest.mark.parametrize("layer", [None, "block"])
def test_a_second_size_tells_channels_from_positions(layer: str | None) -> None:
    tap, feature_map, output = tapped(Cube(), layer)
    assert (tap.layout, tap.is_guess) == (Layout.NHWC, False)
    assert torch.equal(feature_map, output.permute(0, 3, 1, 2))
    tap, feature_map, output = tapped(Columns(16), layer)
    assert (tap.layout, tap.shape, tap.is_guess) == (Layout.NCL, (16, 4, 4), False)
    assert torch.equal(feature_map, output.reshape(2, 16, 4, 4))
    tap, feature_map, output = tapped(Columns(64, merge=True), "block")
    assert (tap.layout, tap.shape, tap.is_guess) == (Layout.NCL, (64, 2, 2), False)
    assert torch.equal(feature_map, output.reshape(2, 64, 2, 2))


def test_ordinary_maps_are_settled_too() -> None:
    """Of convolutions with as many channels as rows, and of tokens with as many channels as their number."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    tap, feature_map, output = tapped(model, None)
    assert (tap.layout, tap.is_guess) == (Layout.NCHW, False)
    assert torch.equal(feature_map, output)
    tap, feature_map, tokens = tapped(Joined(FRONT["cat"], extra=1, width=16), None)
    assert (tap.layout, tap.prefix_tokens, tap.is_guess) == (Layout.NLC, 1, False)
    assert torch.equal(feature_map, tokens[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4))


@pytest.mark.parametrize(
    ("model", "guess", "right", "expected"),
    [
        (Cube(fixed=True), Layout.NCHW, "NHWC", lambda output: output.permute(0, 3, 1, 2)),
        (Columns(16, fixed=True), Layout.NLC, "NCL", lambda output: output.reshape(2, 16, 4, 4)),
    ],
    ids=["cube", "columns"],
)
def test_a_model_of_one_size_states_its_layout(model: Any, guess: Layout, right: str, expected: Any) -> None:
    tap, _, _ = tapped(model, None)
    assert (tap.layout, tap.is_guess) == (guess, True)
    model.output_fmt = right
    tap, feature_map, output = tapped(model, None)
    assert (tap.layout.name, tap.is_guess) == (right, False)
    assert torch.equal(feature_map, expected(output))


def test_a_guess_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    distiller = OnlineAdversarialDistiller(
        [Cube(fixed=True), Cube()], image_size=8, num_classes=3, mean=[0.5] * 3, std=[0.2] * 3
    )
    line = "model 0 (Cube): the output of 'block' is taken as (batch, channels, height, width), but its shape allows"
    assert distiller.summary().count(line) == 1
    assert "model 1 (Cube): the output" not in distiller.summary()
    data = torch.utils.data.TensorDataset(IMAGES.repeat(4, 1, 1, 1), torch.arange(8) % 3)
    distiller.fit(data, data, epochs=1, batch_size=4)
    assert capsys.readouterr().err.count(line) == 1


class Attending(nn.Module):
    """Returns its tokens and the weights of its attention, of each head or their mean."""

    def __init__(self, width: int, *, average: bool) -> None:
        super().__init__()
        self.attention, self.average = nn.MultiheadAttention(width, 2, batch_first=True), average

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        new, weights = self.attention(tokens, tokens, tokens, average_attn_weights=self.average)
        return tokens + new, weights


class WithAttention(nn.Module):
    def __init__(self, *, average: bool, width: int = 12) -> None:
        super().__init__()
        self.patch, self.block = nn.Conv2d(3, width, 2, 2), Attending(width, average=average)
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Any:
        tokens, _ = self.block(self.patch(images).flatten(2).transpose(1, 2))
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("layer", [None, "block"])
@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("average", [False, True])
def test_attention_weights_beside_the_tokens_are_no_map(layer: str | None, width: int, average: bool) -> None:
    tap, feature_map, (tokens, _) = tapped(WithAttention(average=average, width=width), layer)
    assert (tap.layer, tap.element, tap.shape) == ("block", 0, (width, 4, 4))
    assert torch.equal(feature_map, tokens.transpose(1, 2).reshape(2, width, 4, 4))


class Features(WithAttention):
    """As timm's models: `forward_features` and `forward_head`; it also returns the weights."""

    def forward_features(self, images: Tensor) -> Any:
        return self.block(self.patch(images).flatten(2).transpose(1, 2))

    def forward_head(self, features: Any) -> Any:
        return self.head(features[0].mean(1))

    def forward(self, images: Tensor) -> Any:
        return self.forward_head(self.forward_features(images))


def test_attention_weights_of_forward_features() -> None:
    tap, feature_map, (tokens, _) = tapped(Features(average=False), None)
    assert (tap.layer, tap.element) == ("block", 0)
    assert torch.equal(feature_map, tokens.transpose(1, 2).reshape(2, 12, 4, 4))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Two()
        self.last, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Any:
        self.block(images)
        return self.head(self.last(images).mean((2, 3)))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Any:
        return self.one(images), self.two(images)


def test_several_maps_of_which_none_is_used() -> None:
    with pytest.raises(UserError, match=r"^model: 'block' outputs 2 maps, of which none leads to the logits: name a"):
        tapped(Unused(), "block")
