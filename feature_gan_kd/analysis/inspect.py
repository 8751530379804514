"""The wiring of models and its price, without weights and without training."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import torch

from feature_gan_kd.analysis.cost import price_list
from feature_gan_kd.analysis.summary import draw
from feature_gan_kd.config.settings import DistillConfig
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
    """Who would teach whom through what, and what a step would cost.

    Architectures of timm's are built on the meta device: nothing is computed and no weights are loaded. Published
    models (`local-dir:`, `hf-hub:`) are read.

    Args:
        models: names.
        num_classes: size of the logits; None keeps each one's own.
        in_chans: channels of the images.
        feature_layers: in the user's notation, see `OnlineAdversarialDistiller`.
        topology: likewise.
        frozen: positions of models that only teach.
        config: every other setting.

    Raises:
        UserError: for what cannot be wired.
    """
    published = any(":" in name for name in models)
    with contextlib.nullcontext() if published else torch.device("meta"):
        peers = build_models(
            models,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=False,
            image_size=config.image_size,
            seed=config.seed,
        )
        edges = build_edges(topology, len(peers), frozen)
        modules = build_modules(peers, edges, frozen, feature_layers, config, in_chans=in_chans)
        side = max(model.image_size for model in peers)
        prices = price_list(
            [model.name for model in peers],
            modules.tapped,
            modules.connections,
            modules.extractors,
            torch.zeros(2, in_chans, side, side),
            config.batch_size,
        )
    names = [model.name for model in peers]
    drawing = draw(names, modules.tapped, modules.connections, edges, frozen, logits=config.loss_weights.kl_weight > 0)
    return f"{drawing}\n\n{prices}"
