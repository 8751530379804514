"""What a checkpoint holds of networks in training, and the networks that a checkpoint describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from feature_gan_kd.method.connection import Link
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.models.build import Network, build_architecture, check_description
from feature_gan_kd.training import checkpoint
from feature_gan_kd.training.checkpoint import Checkpoint
from feature_gan_kd.utils.errors import UserError, reason


def capture(
    models: Sequence[nn.Module], links: Sequence[Link], step: AdversarialStep, lesson: Mapping[str, Any] | None
) -> Checkpoint:
    """Everything that training changes: tensors by component, the rest as JSON values.

    Args:
        models: the networks, in order.
        links: transfers and discriminators, in the order of edges and taps.
        step: with the optimisers.
        lesson: what the networks were trained on, as JSON values.
    """
    tensors = {f"network-{k}": dict(module.state_dict()) for k, module in enumerate(models)}
    tensors |= {f"link-{i}": dict(link.state_dict()) for i, link in enumerate(links) if link.state_dict()}
    groups = {}
    for kind, update in step.updates.items():
        tensors[f"optimizer-{kind}"], groups[kind] = checkpoint.optimizer_state(update.optimizer)
    return Checkpoint(tensors, {"groups": groups, "lesson": lesson, "updates": step.number})


def restore(
    state: Checkpoint, models: Sequence[nn.Module], links: Sequence[Link], step: AdversarialStep
) -> dict[str, Any] | None:
    """The inverse of `capture`.

    Args:
        state: what it gave.
        models: as for `capture`.
        links: as for `capture`.
        step: as for `capture`.

    Returns:
        The lesson, as JSON values.

    Raises:
        UserError: where it is the state of other networks or discriminators; they may hold part of it then.
    """
    try:
        for k, module in enumerate(models):
            module.load_state_dict(state.tensors[f"network-{k}"])
        for i, link in enumerate(links):
            link.load_state_dict(state.tensors.get(f"link-{i}", {}))
        for kind, update in step.updates.items():
            checkpoint.load_optimizer_state(
                update.optimizer, state.tensors[f"optimizer-{kind}"], state.meta["groups"][kind]
            )
        step.number = state.meta.get("updates", 0)
        lesson: dict[str, Any] | None = state.meta["lesson"]
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint: it holds the state of other networks or discriminators ({reason(error, 300)}): give "
            "those it was written with"
        ) from None
    return lesson


def describe_network(network: Network) -> dict[str, Any]:
    """What is needed to build a network again, and a short digest of its tensors' names and shapes."""
    shapes = {key: list(value.shape) for key, value in network.module.state_dict().items()}
    return {**network.description(), "tensors": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]}


def rebuild_networks(signature: Mapping[str, Any], modules: Sequence[nn.Module] | None) -> list[Network]:
    """The networks of a checkpoint, without its weights.

    Args:
        signature: of the checkpoint.
        modules: the networks, in order; built by timm where none are given.

    Raises:
        UserError: for another number of modules, a description that cannot be trusted, or one that timm cannot build.
    """
    described = signature["models"]
    if modules is not None and len(modules) != len(described):
        raise UserError(f"models: {len(modules)} given, the checkpoint holds {len(described)}: give all, in order")
    networks = []
    for k, one in enumerate(described):
        known = {key: value for key, value in one.items() if key != "tensors"}
        check_description(known)
        module = (
            modules[k]
            if modules is not None
            else build_architecture(
                known["architecture"],
                num_classes=signature["num_classes"],
                in_chans=signature["in_chans"],
                **known["model_args"],
            )
        )
        networks.append(Network.described(module, known))
    return networks
