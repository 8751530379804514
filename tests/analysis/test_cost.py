"""FLOPs and memory, counted without computing."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.analysis.cost import connection_cost, model_cost
from feature_gan_kd.analysis.inspect import inspect_models
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.tapped_model import TappedModel


class OneConvolution(nn.Module):
    """One 3x3 convolution from 3 to 4 channels, and one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.conv(x).mean((2, 3)))
        return logits


def test_a_model_by_hand() -> None:
    cost = model_cost(TappedModel(OneConvolution(), [], "n"), torch.zeros(2, 3, 8, 8))
    assert cost.flops == 2 * 8 * 8 * 4 * 3 * 9 + 2 * 4 * 5
    assert cost.parameters == 4 * 3 * 9 + 20
    # kept for the backward pass: the convolution's input and the matrix's
    assert cost.activations == 4 * (3 * 8 * 8 + 4)


def test_a_connection_by_hand() -> None:
    """Transfer 6 -> 4 channels on 8x8, pooled to 4x4; two passes of a discriminator of 4 channels."""
    connection = Connection(Edge(0, 1), 0, (6, 8, 8), (4, 4, 4))
    cost = connection_cost(connection, torch.device("cpu"))
    transfer = 2 * 4 * 4 * 4 * 6
    discriminator = 2 * 2 * 2 * 4 * 4 * 9 + 2 * 4 * 2 * 2
    assert cost.flops == transfer + 2 * discriminator
    assert cost.parameters == sum(parameter.numel() for parameter in connection.parameters())


def inspected(*models: str, **settings: object) -> str:
    return inspect_models(
        models,
        num_classes=1000,
        in_chans=3,
        feature_layers=None,
        topology="cycle",
        frozen=(),
        config=DistillConfig(**settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "models",
    [
        ("resnet18", "resnet34"),
        ("vit_small_patch16_224", "vit_small_patch16_224"),
        ("convnext_tiny", "convnext_tiny"),
    ],
)
def test_connections_cost_at_most_a_twentieth_of_the_models(models: tuple[str, str]) -> None:
    text = inspected(*models)
    share = next(line for line in text.splitlines() if line.startswith("together")).split(" G ")[1]
    assert 0 < float(share.split("%")[0]) <= 5
    assert "memory of an update at batch 128" in text


def test_a_large_model_is_inspected_quickly() -> None:
    began = time.process_time()
    text = inspected("vit_large_patch16_224", "resnet50", batch_size=32)
    assert time.process_time() - began < 10
    assert "304,326,632" in text
    assert "123." in text  # GFLOPs of a ViT-L at 224 pixels: twice the published 61.6 GMACs


def test_what_cannot_be_wired_is_one_line() -> None:
    with pytest.raises(UserError, match="only encodes"):
        inspected("resnet18", "mobilenetv5_300m_enc")
