"""The least that the exact method costs: one forward and two backward passes of every network, both optimisers.

No discriminator, no distillation term, no metric: the adversarial gradient is stood in for by that of the mean of the
map, which costs the networks the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Floor:
    """Two gradients of one forward pass per network.

    Args:
        networks: to train; each gives logits and its map (batch, channels, height, width).
        extractors: per network the parameters that its map comes from.
        precision: `bf16` runs the forward passes under autocast.
    """

    def __init__(self, networks: Sequence[nn.Module], extractors: Sequence[list[nn.Parameter]], precision: str) -> None:
        self.networks = networks
        self.extractors = extractors
        self.bf16 = precision == "bf16"
        self.parameters = [[p for p in network.parameters() if p.requires_grad] for network in networks]
        self.sgd = torch.optim.SGD(
            [p for own in self.parameters for p in own], lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True
        )
        self.adam = torch.optim.Adam([p for own in extractors for p in own], lr=2e-5, weight_decay=0.1, fused=True)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update of every network."""
        seconds = []
        for network, parameters, extractor in zip(self.networks, self.parameters, self.extractors, strict=True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                logits, feature_map = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True
            ):
                parameter.grad = gradient
            seconds.append(torch.autograd.grad(feature_map.float().mean(), extractor))
        self.sgd.step()
        for extractor, gradients in zip(self.extractors, seconds, strict=True):
            for parameter, gradient in zip(extractor, gradients, strict=True):
                parameter.grad = gradient
        self.adam.step()
        self.sgd.zero_grad()
