"""The recipes: optimisers, learning rates and their schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

RecipeName = Literal["auto", "paper", "finetune"]
SchedulerName = Literal["multistep", "cosine", "poly", "tanh"]

# The steps of the paper's CIFAR-100 run, for which its learning rates are stated: 300 epochs of 50,000 images
# in batches of 128.
PAPER_STEPS = 300 * math.ceil(50_000 / 128)


@dataclass(frozen=True)
class Recipe:
    """Optimisers and schedules; times are fractions of the run. The defaults are the paper's (section 4)."""

    optimizer: str = "momentum"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    scheduler: SchedulerName = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.75)
    warmup_fraction: float = 0.0
    adversarial_optimizer: Literal["adam", "adamw"] = "adam"
    adversarial_lr: float = 2e-5
    adversarial_weight_decay: float = 0.1
    adversarial_milestones: tuple[float, ...] = (0.25, 0.5)
    adversarial_warmup_fraction: float = 0.0
    discriminator_lr: float = 2e-5
    discriminator_weight_decay: float = 0.1


RECIPES: dict[RecipeName, Recipe] = {
    "paper": Recipe(),
    # Ours: pretrained weights are kept close, so no coupled decay pulls them to zero and the steps are small.
    "finetune": Recipe(lr=0.01, scheduler="cosine", warmup_fraction=0.05, adversarial_weight_decay=0.0),
}
