"""Every network trained alone: the price of no distillation at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainTraining:
    """Cross-entropy and SGD for each network by itself, in one program.

    Args:
        networks: to train.
        precision: `bf16` runs the forward passes under autocast.
    """

    def __init__(self, networks: Sequence[nn.Module], precision: str) -> None:
        self.networks = networks
        self.bf16 = precision == "bf16"
        self.optimizers = [
            torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True) for one in networks
        ]

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update of every network."""
        for network, optimizer in zip(self.networks, self.optimizers, strict=True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
