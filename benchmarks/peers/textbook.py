"""The method as a textbook loop: two forward passes per model and batch, and every loss is read in every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 3.0


class TextbookLoop:
    """Online adversarial distillation of a pair, written plainly.

    Args:
        models: two; each gives logits and its feature map (batch, channels, height, width).
        extractors: for each model the parameters that its map depends on.
        transfers: for each model the layer that brings its map into its peer's space.
        discriminators: for each model the discriminator that it must fool.
        precision: `bf16` runs the forward passes under autocast.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        extractors: Sequence[list[nn.Parameter]],
        transfers: Sequence[nn.Module],
        discriminators: Sequence[nn.Module],
        precision: str,
    ) -> None:
        self.models, self.transfers, self.discriminators = models, transfers, discriminators
        self.bf16 = precision == "bf16"
        self.logit_sgd = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for one in models]
        self.feature_adam = [
            torch.optim.Adam([*extractor, *transfer.parameters()], lr=2e-5, weight_decay=0.1)
            for extractor, transfer in zip(extractors, transfers, strict=True)
        ]
        self.discriminator_adam = [
            torch.optim.Adam(one.parameters(), lr=2e-5, weight_decay=0.1) for one in discriminators
        ]
        self.history: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Updates both models and both discriminators once."""
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16)
        with autocast:
            logits = [model(images)[0].float() for model in self.models]
        for learner, source in ((0, 1), (1, 0)):
            loss = F.cross_entropy(logits[learner], labels)
            loss = loss + TEMPERATURE**2 * F.kl_div(
                F.log_softmax(logits[learner] / TEMPERATURE, dim=1),
                F.softmax(logits[source].detach() / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            self._minimise(loss, self.logit_sgd[learner])
        with autocast:
            maps = [model(images)[1] for model in self.models]
        for learner, source in ((0, 1), (1, 0)):
            discriminator = self.discriminators[learner]
            with autocast:
                fake, real = self.transfers[learner](maps[learner]), maps[source].detach()
                d_real, d_fake = discriminator(real), discriminator(fake.detach())
            loss = (1 - d_real).square().mean() + d_fake.square().mean()
            self._minimise(loss, self.discriminator_adam[learner])
            with autocast:
                d_fake = discriminator(fake)
            loss = (1 - d_fake).square().mean()
            self._minimise(loss, self.feature_adam[learner])

    def _minimise(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.history.append(loss.item())
