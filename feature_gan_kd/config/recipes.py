"""The recipes: presets of the optimisation settings, as the settings in which each differs from the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

RecipeName = Literal["auto", "paper", "finetune", "scratch", "unlabeled"]
ModelKind = Literal["batch-norm", "other"]
"""Models with batch normalisation, and all others: transformers, ConvNeXt, mixers, ..."""

# Updates of the paper's CIFAR-100 run, for which it states its learning rates: 300 epochs of 50,000 images in batches
# of 128.
PAPER_STEPS = 300 * math.ceil(50_000 / 128)

RECIPES: Mapping[RecipeName, Mapping[str, Any]] = {
    # The distiller replaces auto by one of the others once it has built the models.
    "auto": {},
    # The defaults are the paper's (section 4).
    "paper": {},
    # Ours: pretrained weights stay close, so the steps are small and no coupled decay pulls the weights to zero. A new
    # classifier starts at zero and learns alone at first: two random ones would teach each other noise.
    "finetune": {
        "epochs": 30,
        "lr": 0.01,
        "scheduler": "cosine",
        "warmup_fraction": 0.05,
        "decay_norms": False,
        "head_init_scale": 0.0,
        "kl_start_fraction": 0.1,
        "model_ema": 0.9998,
        "adversarial_weight_decay": 0.0,
    },
    # Ours: from scratch on images of one's own, with what is usual today.
    "scratch": {
        "scheduler": "cosine",
        "warmup_fraction": 0.05,
        "decay_norms": False,
        "aa": "rand-m9-mstd0.5",
        "smoothing": 0.1,
        "model_ema": 0.9998,
        "adversarial_weight_decay": 0.0,
    },
    # Ours: without labels the feature terms are the whole loss, so one optimiser steps on all of it.
    "unlabeled": {
        "epochs": 100,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "scheduler": "cosine",
        "warmup_fraction": 0.05,
        "decay_norms": False,
        "joint_backward": True,
        # Of the transfer layers, which have an optimiser of their own and learn from nothing.
        "adversarial_lr": 1e-3,
        "adversarial_milestones": (1.0,),
        "adversarial_weight_decay": 0.0,
    },
}

RECIPES_BY_KIND: Mapping[RecipeName, Mapping[ModelKind, Mapping[str, Any]]] = {
    # Models with batch normalisation learn best by SGD with large steps, which diverges on most others.
    "finetune": {
        "batch-norm": {"optimizer": "momentum", "lr": 0.01, "weight_decay": 1e-4},
        "other": {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05},
    },
    "scratch": {
        "batch-norm": {"optimizer": "momentum", "lr": 0.1, "weight_decay": 5e-4},
        "other": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    },
}
"""What a recipe gives to each kind of model for itself; what the user gives to all models counts more.

A model for which the user names an optimiser gets the rates of the kind that has such an optimiser.
"""
