"""The last map before pooling of models that are not timm's: transformers' and modules of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from benchmarks import transformers_models
from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.models.find_taps import find_taps
from feature_gan_kd.models.tapped_model import Layout, Tap, TappedModel, evaluating


def the_tap(model: nn.Module, side: int) -> Tap:
    (tap,) = find_taps(model, torch.zeros(2, 3, side, side), "model")
    return tap


# name, tapped at, prefix tokens, map
TRANSFORMERS = [
    ("deit", "deit", 2, (32, 4, 4)),
    ("deit-eager", "deit", 2, (32, 4, 4)),
    ("deit-distilled", "deit", 2, (32, 4, 4)),
    ("dinov2", "dinov2", 1, (32, 4, 4)),
    ("dinov2-registers", "dinov2_with_registers", 5, (32, 4, 4)),
    ("dinov2-registers-eager", "dinov2_with_registers", 5, (32, 4, 4)),
    ("vit", "vit", 1, (32, 4, 4)),
    ("vit-eager", "vit", 1, (32, 4, 4)),
    ("beit", "beit", 1, (32, 4, 4)),
    ("siglip", "vision_model", 0, (32, 4, 4)),
    ("siglip-head", "vision_model", 0, (32, 4, 4)),
    ("swin", "swin", 0, (64, 4, 4)),
    ("cvt", "cvt.encoder.stages.2.layers.2", 1, (32, 4, 4)),
    ("hiera", "hiera", 0, (128, 2, 2)),
    ("convnext", "convnext", 0, (32, 2, 2)),
    ("resnet", "resnet", 0, (32, 4, 4)),
    ("mobilevit", "mobilevit", 0, (640, 2, 2)),
]


@pytest.mark.parametrize(("name", "layer", "prefix", "shape"), TRANSFORMERS, ids=[row[0] for row in TRANSFORMERS])
def test_transformers_models(name: str, layer: str, prefix: int, shape: tuple[int, int, int]) -> None:
    """The map is the last before pooling; in it, a changed patch of the image changes most where the patch was."""
    torch.manual_seed(0)
    model, side = transformers_models.build(name, 7).eval(), transformers_models.side_of(name)
    tap = the_tap(model, side)
    assert (tap.layer, tap.prefix_tokens, tap.shape) == (layer, prefix, shape)
    if tap.layout is not Layout.NLC:
        return
    tapped, images, patch = TappedModel(model, [tap], name), torch.randn(2, 3, side, side), side // shape[1]
    for row, column in ((0, shape[2] - 1), (shape[1] - 1, 0)):
        changed = images.clone()
        changed[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] *= -3
        with torch.no_grad():
            moved = (tapped(changed)[1][0] - tapped(images)[1][0]).abs().sum((0, 1))
        assert divmod(int(moved.argmax()), shape[2]) == (row, column)


@pytest.mark.parametrize("name", ["deit-eager", "dinov2-registers"])
def test_nearly_every_parameter_is_below_the_map(name: str) -> None:
    model = transformers_models.build(name, 2)
    distiller = OnlineAdversarialDistiller([model, "test_resnet"], num_classes=2, image_size=32)
    above = set(model.parameters()) - distiller.group.modules.extractors[0]
    assert {parameter.numel() for parameter in above} <= {32 * 2, 64 * 2, 2, 32}  # classifier, mask token


@pytest.mark.parametrize(
    ("name", "side", "layer", "shape"),
    [
        ("mobilenet_v3_small", 32, "features", (576, 1, 1)),
        ("mobilenet_v3_small", 64, "features", (576, 2, 2)),
        ("vgg11", 32, "features", (512, 1, 1)),
        ("resnet18", 32, "layer4", (512, 1, 1)),
    ],
)
def test_a_last_map_of_one_position(name: str, side: int, layer: str, shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        (tap,) = find_taps(torchvision.models.get_model(name, num_classes=7), torch.zeros(2, 3, side, side), "model")
    assert (tap.layer, tap.shape) == (layer, shape)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)])
def test_a_pooled_map_is_not_the_last(pool: nn.Module) -> None:
    """Also where layers of the head follow, as in MobileNetV3; but an average of a part of the map is a map."""
    head = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), pool, *head)
    tap = the_tap(model, 8)
    part = isinstance(pool, nn.AvgPool2d) and pool.kernel_size == 2
    assert (tap.layer, tap.shape) == (("4", (8, 2, 2)) if part else ("1", (4, 4, 4)))


class Attention(nn.Module):
    """Attention of `queries` over tokens, (batch, tokens, 16), that also returns its matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_kv, self.softmax = nn.Linear(16, 16), nn.Linear(16, 32), nn.Softmax(-1)

    def forward(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The new values of the queries, and the matrix (batch, 1, queries, tokens)."""
        keys, values = self.to_kv(tokens).chunk(2, -1)
        weights = self.softmax(self.to_q(queries) @ keys.transpose(1, 2) / 4)
        return weights @ values, weights[:, None]


class Block(nn.Module):
    """A transformer's block; with a second argument, of class attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), Attention()
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens like `x`."""
        tokens = x if context is None else torch.cat([x, context], 1)
        x = x + self.attention(self.norm(x), self.norm(tokens))[0]
        new: Tensor = x + self.mlp(x)
        return new


class OwnVit(nn.Module):
    """Patches of 8 pixels, two blocks and a head; the tokens are pooled as `pooling` says."""

    def __init__(self, pooling: str, tokens: int = 16, extra: int = 0, *, behind: bool = False) -> None:
        super().__init__()
        self.pooling, self.behind = pooling, behind
        self.embed = nn.Linear(3 * 64, 16)
        self.position = nn.Parameter(torch.randn(1, tokens, 16))
        self.extra = nn.Parameter(torch.randn(1, extra, 16))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(16)
        self.weigh, self.softmax = nn.Linear(16, 1), nn.Softmax(1)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.class_block = Block()
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (batch, 3, height, width)."""
        patches = nn.functional.unfold(x, 8, stride=8).transpose(1, 2)
        tokens = self.embed(patches) + self.position
        extra = self.extra.expand(len(x), -1, -1)
        tokens = self.norm(self.blocks(torch.cat([tokens, extra] if self.behind else [extra, tokens], 1)))
        if self.pooling == "weights":  # CCT
            pooled = (self.softmax(self.weigh(tokens)).transpose(1, 2) @ tokens)[:, 0]
        elif self.pooling == "class attention":  # CaiT
            pooled = self.class_block(self.class_token.expand(len(x), -1, -1), tokens)[:, 0]
        else:
            pooled = tokens.mean(1)
        logits: Tensor = self.head(pooled)
        return logits


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (OwnVit("mean"), 0),
        (OwnVit("weights"), 0),
        (OwnVit("class attention"), 0),
        (OwnVit("mean", extra=2), 2),
        (OwnVit("weights", extra=5), 5),
        (OwnVit("mean", extra=9), 9),
    ],
    ids=["mean", "CCT", "CaiT", "distilled", "registers", "registers that make 25 tokens"],
)
def test_ones_own_vision_transformer(model: nn.Module, prefix: int) -> None:
    tap = the_tap(model, 32)
    assert (tap.layer, tap.prefix_tokens, tap.shape) == ("norm", prefix, (16, 4, 4))
    frozen = model.requires_grad_(False)
    assert the_tap(frozen, 32) == tap
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


class TwoWays(nn.Module):
    """Pools two scales and joins them: no map has all of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(3, 8, 3, 1)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(torch.cat([self.one(x).mean((2, 3)), self.two(x).mean((2, 3))], 1))
        return logits


class NoGradients(nn.Sequential):
    """Hides its flow from autograd."""

    @torch.no_grad()
    def forward(self, x: Any) -> Any:
        """Logits."""
        return super().forward(x)


def own_cnn(*, shared: bool = False) -> nn.Module:
    block: nn.Module = nn.Conv2d(4, 4, 3, padding=1)
    body = [nn.Conv2d(3, 4, 3), block, *([block] * shared)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))


@pytest.mark.parametrize(
    ("model", "side", "message"),
    [
        (TwoWays(), 16, "no module outputs a map through which all of the images pass"),
        (NoGradients(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)), 16, "by gradients"),
        (own_cnn(shared=True), 16, "that of '0', but most layers follow it"),
        (OwnVit("mean", extra=4, behind=True), 32, "'norm' has tokens behind those of the image"),
        (OwnVit("mean", tokens=64, extra=34), 64, "that of 'embed', but most layers follow it"),
    ],
    ids=["two ways", "no gradients", "shared", "tokens behind", "no square"],
)
def test_what_cannot_be_known_is_asked_for(model: nn.Module, side: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        find_taps(model, torch.zeros(2, 3, side, side), "model")
    assert str(error.value).endswith("name a layer with feature_layers")
    assert "\n" not in str(error.value)


def test_values_that_are_kept_for_evaluation_follow_the_weights() -> None:
    """LeViT keeps its biases of attention in evaluation until it is put into training mode."""
    torch.manual_seed(0)
    side = transformers_models.side_of("levit")
    models = [transformers_models.build("levit", 5) for _ in range(2)]
    distiller = OnlineAdversarialDistiller(models, num_classes=5, image_size=side, lr=0.01)
    biases = {parameter for name, parameter in models[0].named_parameters() if name.endswith("attention_biases")}
    assert biases
    assert biases <= distiller.group.modules.extractors[0]
    for parameter in biases:
        parameter.data.normal_(std=5.0)
    images, fresh = torch.randn(4, 3, side, side), transformers_models.build("levit", 5).eval()
    fresh.load_state_dict(models[0].state_dict())
    with evaluating(models[0]), torch.no_grad():
        assert torch.equal(models[0](images).logits, fresh(images).logits)


def test_a_layer_that_is_named_is_taken_with_the_same_grid() -> None:
    model = transformers_models.build("deit", 7)
    (tap,) = find_taps(model, torch.zeros(2, 3, 32, 32), "model", ["deit.layers.0"])
    assert (tap.prefix_tokens, tap.shape) == (2, (32, 4, 4))
