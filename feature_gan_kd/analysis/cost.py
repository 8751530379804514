"""What a wiring costs, counted without training: FLOPs, and the memory of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from feature_gan_kd.analysis.summary import table
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.models.taps import TappedModel, evaluating

# Float32 numbers that a trained parameter needs beside itself: the gradient of the logit loss and SGD's momentum;
# in an extractor also the gradient of the feature loss and Adam's two averages.
_BESIDE_LOGIT, _BESIDE_FEATURE = 2, 3


@dataclass(frozen=True)
class Cost:
    """Of one image through one part.

    Attributes:
        flops: floating-point operations of a forward pass (a multiplication and an addition are two).
        activations: bytes kept for the backward pass, in float32.
        parameters: numbers that are trained.
    """

    flops: float
    activations: float
    parameters: int


def model_cost(model: TappedModel, images: Tensor) -> Cost:
    """The cost of a model, measured on `images` (batch, channels, height, width), best on the meta device."""
    return _measure(model, images)


def connection_cost(connection: Connection, device: torch.device) -> Cost:
    """The cost of a transfer layer and a discriminator that is asked twice, for the real and for the fake map."""
    learner, source = (
        torch.zeros(2, *shape, device=device) for shape in (connection.learner_shape, connection.source_shape)
    )

    class ConnectionPass(nn.Module):
        """What an update asks of a link."""

        def __init__(self) -> None:
            super().__init__()
            self.connection = connection

        def forward(self, learner_map: Tensor) -> Any:
            """Answers to the fake and to the real map."""
            fake, real = self.connection.maps(learner_map, source)
            judge = self.connection.discriminator
            return fake if judge is None else (judge(fake), judge(real))

    return _measure(ConnectionPass(), learner)


def price_list(
    names: Sequence[str],
    models: Sequence[TappedModel],
    connections: Sequence[Connection],
    extractors: Sequence[set[nn.Parameter]],
    images: Tensor,
    batch_size: int,
) -> str:
    """A table of what a step costs.

    Args:
        names: of the models.
        models: with their taps.
        links: transfers and discriminators.
        extractors: per model the parameters that its maps come from.
        images: (batch, channels, height, width) on the models' device.
        batch_size: images of one update, for the memory.
    """
    costs = [model_cost(model, images) for model in models]
    connection_costs = [connection_cost(connection, images.device) for connection in connections]
    forward = sum(cost.flops for cost in costs)
    rows = [("cost", "forward FLOPs an image", "of the models'", f"activations at batch {batch_size}")]
    for k, cost in enumerate(costs):
        rows.append((f"{names[k]} ({k})", _flops(cost.flops), "", _bytes(cost.activations * batch_size)))
    for connection, cost in zip(connections, connection_costs, strict=True):
        share = f"{100 * cost.flops / forward:.2f} %"
        rows.append((f"connection {connection.edge}", _flops(cost.flops), share, _bytes(cost.activations * batch_size)))
    parts = [*costs, *connection_costs]
    share = f"{100 * sum(cost.flops for cost in connection_costs) / forward:.2f} % connections"
    rows.append(("together", _flops(sum(cost.flops for cost in parts)), share, ""))
    activations = sum(cost.activations for cost in parts) * batch_size
    trained = sum(parameter.numel() for extractor in extractors for parameter in extractor)
    state = 4 * (
        sum(cost.parameters for cost in costs) * (1 + _BESIDE_LOGIT)
        + trained * _BESIDE_FEATURE
        + sum(cost.parameters for cost in connection_costs) * (1 + _BESIDE_FEATURE)
    )
    lines = table(rows)
    lines.append(f"memory of a step at batch {batch_size}, float32: about {_bytes(activations + state)}")
    return "\n".join(lines)


def _measure(part: nn.Module, images: Tensor) -> Cost:
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage()._cdata for parameter in part.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    alive: list[Any] = []  # a storage that died would lend its address to another
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


def _flops(count: float) -> str:
    return f"{count / 1e9:.3f} G"


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
