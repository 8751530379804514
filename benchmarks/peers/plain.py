"""Every model trained alone: the cost without distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainTraining:
    """Minimises the cross-entropy of each model by itself, with SGD, in one program.

    Args:
        models: those to train.
        precision: `bf16` runs the forward passes under autocast.
    """

    def __init__(self, models: Sequence[nn.Module], precision: str) -> None:
        self.models = models
        self.bf16 = precision == "bf16"
        self.optimizers = [
            torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True) for one in models
        ]

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Updates every model once."""
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
