"""The method as a textbook loop: two forward passes per model and batch, losses read in every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 3.0


class TextbookLoop:
    """Online adversarial distillation of a pair, written plainly.

    Args:
        models: two; each gives logits and its map (batch, channels, height, width).
        extractors: per model the parameters that its map comes from.
        transfers: per model what brings its map into its peer's space.
        discriminators: per model the one that it has to fool.
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
        self.sgd = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for one in models]
        self.adam = [
            torch.optim.Adam([*extractor, *transfer.parameters()], lr=2e-5, weight_decay=0.1)
            for extractor, transfer in zip(extractors, transfers, strict=True)
        ]
        self.judges = [torch.optim.Adam(one.parameters(), lr=2e-5, weight_decay=0.1) for one in discriminators]
        self.history: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update of both models and discriminators."""
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16)
        with autocast:
            logits = [model(images)[0].float() for model in self.models]
        for learner in (0, 1):
            loss = F.cross_entropy(logits[learner], labels)
            loss = loss + TEMPERATURE**2 * F.kl_div(
                F.log_softmax(logits[learner] / TEMPERATURE, dim=1),
                F.softmax(logits[1 - learner].detach() / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            self.sgd[learner].zero_grad()
            loss.backward()
            self.sgd[learner].step()
            self.history.append(loss.item())
        with autocast:
            maps = [model(images)[1] for model in self.models]
        for learner in (0, 1):
            with autocast:
                fake = self.transfers[learner](maps[learner])
                real = maps[1 - learner].detach()
                judged_real = self.discriminators[learner](real)
                judged_fake = self.discriminators[learner](fake.detach())
            loss = (1 - judged_real).square().mean() + judged_fake.square().mean()
            self.judges[learner].zero_grad()
            loss.backward()
            self.judges[learner].step()
            self.history.append(loss.item())
            with autocast:
                answer = self.discriminators[learner](fake)
            loss = (1 - answer).square().mean()
            self.adam[learner].zero_grad()
            loss.backward()
            self.adam[learner].step()
            self.history.append(loss.item())
