"""Shows how models would be connected and what an update would cost, without weights and without training."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import torch

from feature_gan_kd.analysis.cost import cost_table
from feature_gan_kd.analysis.model_tables import summarize
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method.build import build_modules
from feature_gan_kd.method.topology import Edge, TopologyName, build_edges
from feature_gan_kd.models.build import build_models


def inspect_models(
    models: Sequence[str],
    *,
    num_classes: int | None,
    in_chans: int,
    feature_layers: Any,
    topology: TopologyName | Sequence[Edge | tuple[int, int]],
    frozen: Collection[int],
    config: DistillConfig,
) -> str:
    """Shows how models would be connected, and what an update would cost.

    timm's architectures are built on the meta device: nothing is computed and no weights are loaded. Published models
    (`local-dir:`, `hf-hub:`) are read.

    Args:
        models: their names.
        num_classes: size of the logits; None keeps that of each model.
        in_chans: channels of the images.
        feature_layers: in the user's notation, see `OnlineAdversarialDistiller`.
        topology: likewise.
        frozen: positions of the frozen models.
        config: every other setting.

    Raises:
        UserError: where the models cannot be built or connected.
    """
    published = any(":" in name for name in models)
    with contextlib.nullcontext() if published else torch.device("meta"):
        peers = build_models(
            models,
            num_classes=num_classes,
            labels=config.labels,
            in_chans=in_chans,
            pretrained=[False] * len(models),
            image_size=config.image_size,
            seed=config.seed,
            frozen=frozen,
        )
        edges = build_edges(topology, len(peers), frozen)
        knows = num_classes is not None
        modules = build_modules(
            peers, edges, frozen, feature_layers, config, in_chans=in_chans, knows_classes=knows or config.labels
        )
        names = [model.name for model in peers]
        size = max(model.image_size for model in peers)
        images = torch.zeros(2, in_chans, size, size)
        parts = modules.tapped, modules.connections
        costs = cost_table(names, *parts, modules.extractors, images, config.batch_size)
    return f"{summarize(names, modules, config.loss_weights)}\n\n{costs}"
