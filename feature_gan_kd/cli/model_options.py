"""The models of a command: those that its options name, or those of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method.topology import TopologyName
from feature_gan_kd.utils.errors import UserError

if TYPE_CHECKING:
    from feature_gan_kd.distiller import OnlineAdversarialDistiller


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Models and data."""

    models: tuple[str, ...] = ()
    """At least two models: timm names, or local-dir: and hf-hub: names of published models (default: a small
    demo pair)."""
    data: str | None = None
    """Name on the hub, local folder or file (default: the bundled digits)."""
    num_classes: int | None = None
    """Number of classes (default: that of the data)."""
    in_chans: Literal[1, 3] = 3
    """Channels of the images."""
    pretrained: bool = dataclasses.field(default=False, metadata={"per_peer": True})
    """Start from pretrained weights, all models or those at the positions K, with the finetune recipe if all learners
    do; local-dir: and hf-hub: models always do."""
    feature_layers: tuple[str, ...] = ()
    """Layers whose outputs are the feature maps: module names, or numbers of timm stages (0, 1, ..., -1), for every
    model; K:LAYER is for model K only (default: the last map before pooling)."""
    topology: TopologyName = "cycle"
    """Which model teaches which. cycle: 0 -> 1 -> ... -> 0 (the paper); complete: each teaches every other; star:
    model 0 and each of the others."""
    frozen: tuple[int, ...] = ()
    """Positions of models that only teach, such as 0 (default: none)."""
    # What `K:VALUE` gave to single models: settings by position.
    own: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def build(models: ModelOptions, config: DistillConfig) -> OnlineAdversarialDistiller:
    """The distiller that a command's options describe.

    Raises:
        UserError: for models, layers or data that cannot be used.
    """
    from feature_gan_kd.data import count_classes
    from feature_gan_kd.distiller import OnlineAdversarialDistiller
    from feature_gan_kd.models.peer import Peer

    classes = models.num_classes
    if classes is None and config.labels:
        classes = count_classes(models.data, config)
    return OnlineAdversarialDistiller(
        [Peer(name, **models.own.get(k, {})) for k, name in enumerate(peers(models))],
        num_classes=classes,
        in_chans=models.in_chans,
        pretrained=models.pretrained,
        feature_layers=layers(models),
        topology=models.topology,
        frozen=models.frozen,
        config=config,
    )


def peers(models: ModelOptions) -> tuple[str, ...]:
    """The names of the models.

    Raises:
        UserError: for fewer than two, or a setting for one that is not there.
    """
    if len(models.models) < 2:
        raise UserError(
            f"models: {len(models.models)} named, at least 2 are needed: name a model and its peer, with a space "
            "between"
        )
    for k, own in models.own.items():
        if k >= len(models.models):
            name = next(iter(own))
            raise UserError(f"{name}: {k}:{own[name]} is for model {k}, there are 0 to {len(models.models) - 1}")
    return models.models


def layers(models: ModelOptions) -> list[str | int] | dict[int, list[str | int]] | None:
    """The layers as the distiller takes them; `K:LAYER` is for model K alone.

    Raises:
        UserError: where some are for all models and others for one, and for a K that is no position.
    """
    common: list[str | int] = []
    own: dict[int, list[str | int]] = {}
    for word in models.feature_layers:
        model, colon, layer = word.rpartition(":")
        if colon and not model.isdecimal():
            raise UserError(
                f"feature_layers: {model!r} in {word!r} is no position of a model: say K:LAYER, as 0:layer1"
            )
        target = own.setdefault(int(model), []) if colon else common
        target.append(layer_of(layer))
    if own and common:
        raise UserError(f"feature_layers: {common[0]!r} is for all models and others for one: say all as K:LAYER")
    return own or common or None


def layer_of(word: str) -> str | int:
    """A layer as the user typed it: the number of a timm stage, or a module's name."""
    return int(word) if re.fullmatch(r"-?\d+", word) else word


def restored(run: Path) -> OnlineAdversarialDistiller:
    """The distiller of a run, with the state of its newest checkpoint that is whole.

    Raises:
        UserError: where there is none.
    """
    from feature_gan_kd.distiller import OnlineAdversarialDistiller
    from feature_gan_kd.training.checkpoint_files import load_newest

    if not run.is_dir():
        raise UserError(f"run: there is no folder {run}: name the folder of a run")
    found = load_newest(run / "checkpoints", None)
    if found is None:
        raise UserError(f"run: there is no checkpoint in {run / 'checkpoints'}: name the folder of a run")
    return OnlineAdversarialDistiller.from_checkpoint(found[0])
