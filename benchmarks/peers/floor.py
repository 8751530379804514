"""The lower bound of the exact method's cost: one forward and two backward passes of every model, both optimisers.

It has no discriminator, no distillation term and no metric. The gradient of the map's mean replaces the adversarial
gradient: it costs the models the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Floor:
    """Takes two gradients of one forward pass per model.

    Args:
        models: those to train; each gives logits and its map (batch, channels, height, width).
        extractors: for each model the parameters that its map depends on.
        precision: `bf16` runs the forward passes under autocast.
        batched: take both gradients in one backward pass that torch vectorises.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        extractors: Sequence[list[nn.Parameter]],
        precision: str,
        *,
        batched: bool = False,
    ) -> None:
        self.models = models
        self.extractors = extractors
        self.bf16 = precision == "bf16"
        self.batched = batched
        self.parameters = [[p for p in model.parameters() if p.requires_grad] for model in models]
        self.sgd = torch.optim.SGD(
            [p for own in self.parameters for p in own], lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True
        )
        self.adam = torch.optim.Adam([p for own in extractors for p in own], lr=2e-5, weight_decay=0.1, fused=True)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Updates every model once."""
        seconds = []
        for model, parameters, extractor in zip(self.models, self.parameters, self.extractors, strict=True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                logits, feature_map = model(images)
            losses = F.cross_entropy(logits.float(), labels), feature_map.float().mean()
            first, second = (_batched if self.batched else _one_by_one)(losses, parameters, extractor)
            for parameter, gradient in zip(parameters, first, strict=True):
                parameter.grad = gradient
            seconds.append(second)
        self.sgd.step()
        for extractor, gradients in zip(self.extractors, seconds, strict=True):
            for parameter, gradient in zip(extractor, gradients, strict=True):
                parameter.grad = gradient
        self.adam.step()
        self.sgd.zero_grad()


Gradients = Sequence[Tensor]


def _one_by_one(
    losses: tuple[Tensor, Tensor], parameters: list[nn.Parameter], extractor: list[nn.Parameter]
) -> tuple[Gradients, Gradients]:
    first = torch.autograd.grad(losses[0], parameters, retain_graph=True)
    return first, torch.autograd.grad(losses[1], extractor)


def _batched(
    losses: tuple[Tensor, Tensor], parameters: list[nn.Parameter], extractor: list[nn.Parameter]
) -> tuple[Gradients, Gradients]:
    both = torch.autograd.grad(
        torch.stack(losses), parameters, torch.eye(2, device=losses[0].device), is_grads_batched=True
    )
    wanted = set(extractor)
    second = [gradient[1] for parameter, gradient in zip(parameters, both, strict=True) if parameter in wanted]
    return [gradient[0] for gradient in both], second
