"""Counts what an update costs, without training: FLOPs and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from feature_gan_kd.analysis.model_tables import align_columns
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.models.tapped_model import TappedModel, evaluating

# Float32 numbers that each trained parameter needs besides itself: the gradient of the logit loss and SGD's momentum;
# in an extractor also the gradient of the feature loss and Adam's two averages.
_BESIDE_LOGIT, _BESIDE_FEATURE = 2, 3


@dataclass(frozen=True)
class Cost:
    """What one image costs in one part of an update.

    Attributes:
        flops: floating-point operations of a forward pass (a multiplication and an addition are two).
        activations: bytes kept for the backward pass, in float32.
        parameters: numbers that are trained.
    """

    flops: float
    activations: float
    parameters: int


def model_cost(model: TappedModel, images: Tensor) -> Cost:
    """Measures the cost of a model on `images` (batch, channels, height, width), best on the meta device."""
    return _measure_cost(model, images)


def connection_cost(connection: Connection, device: torch.device) -> Cost:
    """Measures the cost of a transfer layer and of a discriminator's two passes, on the real and on the fake map."""
    learner, source = (
        torch.zeros(2, *shape, device=device) for shape in (connection.learner_shape, connection.source_shape)
    )

    class ConnectionPass(nn.Module):
        """The passes of one update through a connection."""

        def __init__(self) -> None:
            super().__init__()
            self.connection = connection

        def forward(self, learner_map: Tensor) -> Any:
            """The discriminator's outputs for the fake and the real map."""
            fake, real = self.connection.maps(learner_map, source)
            discriminator = self.connection.discriminator
            return fake if discriminator is None else (discriminator(fake), discriminator(real))

    return _measure_cost(ConnectionPass(), learner)


def cost_table(
    names: Sequence[str],
    models: Sequence[TappedModel],
    connections: Sequence[Connection],
    extractors: Sequence[set[nn.Parameter]],
    images: Tensor,
    batch_size: int,
) -> str:
    """Formats a table of what an update costs.

    Args:
        names: of the models.
        models: with their taps.
        connections: transfer layers and discriminators.
        extractors: for each model the parameters of its extractor.
        images: (batch, channels, height, width) on the models' device.
        batch_size: images of one update, for the memory.
    """
    costs = [model_cost(model, images) for model in models]
    connection_costs = [connection_cost(connection, images.device) for connection in connections]
    forward = sum(cost.flops for cost in costs)

    def row(title: str, cost: Cost, share: str) -> tuple[str, str, str, str]:
        return title, _format_flops(cost.flops), share, _format_bytes(cost.activations * batch_size)

    rows = [("cost", "forward FLOPs an image", "of the models'", f"activations at batch {batch_size}")]
    rows += [row(f"{names[k]} ({k})", cost, "") for k, cost in enumerate(costs)]
    for connection, cost in zip(connections, connection_costs, strict=True):
        rows.append(row(f"connection {connection.edge}", cost, f"{100 * cost.flops / forward:.2f} %"))
    parts = [*costs, *connection_costs]
    share = f"{100 * sum(cost.flops for cost in connection_costs) / forward:.2f} % connections"
    rows.append(("together", _format_flops(sum(cost.flops for cost in parts)), share, ""))
    activations = sum(cost.activations for cost in parts) * batch_size
    state = _state_bytes(costs, connection_costs, extractors)
    lines = align_columns(rows)
    lines.append(f"memory of an update at batch {batch_size}, float32: about {_format_bytes(activations + state)}")
    return "\n".join(lines)


def _state_bytes(models: Sequence[Cost], connections: Sequence[Cost], extractors: Sequence[set[nn.Parameter]]) -> float:
    """Bytes of weights, gradients and optimiser state, in float32."""
    in_extractors = sum(parameter.numel() for extractor in extractors for parameter in extractor)
    numbers = (
        sum(cost.parameters for cost in models) * (1 + _BESIDE_LOGIT)
        + in_extractors * _BESIDE_FEATURE
        + sum(cost.parameters for cost in connections) * (1 + _BESIDE_FEATURE)
    )
    return 4 * numbers


def _measure_cost(part: nn.Module, images: Tensor) -> Cost:
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage()._cdata for parameter in part.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    alive: list[Any] = []  # keeps storages alive: a freed one would lend its address to another
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(part))
        stack.enter_context(torch.enable_grad())
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        part(images.detach().requires_grad_())
    return Cost(
        flops=counter.get_total_flops() / len(images),
        activations=sum(kept.values()) / len(images),
        parameters=sum(parameter.numel() for parameter in part.parameters()),
    )


def _format_flops(count: float) -> str:
    return f"{count / 1e9:.3f} G"


def _format_bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
