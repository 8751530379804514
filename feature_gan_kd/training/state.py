"""What a checkpoint holds of models in training, and the models that a checkpoint describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.models.build import PeerModel, build_architecture, check_description
from feature_gan_kd.training import checkpoint
from feature_gan_kd.training.checkpoint import Checkpoint
from feature_gan_kd.utils.errors import UserError, reason


def capture_state(
    models: Sequence[nn.Module],
    connections: Sequence[Connection],
    step: AdversarialStep,
    provenance: Mapping[str, Any] | None,
) -> Checkpoint:
    """Everything that training changes: tensors by component, the rest as JSON values.

    Args:
        models: the models, in order.
        links: transfers and discriminators, in the order of edges and taps.
        step: with the optimisers.
        lesson: what the models were trained on, as JSON values.
    """
    tensors = {f"model-{k}": dict(module.state_dict()) for k, module in enumerate(models)}
    tensors |= {
        f"connection-{i}": dict(connection.state_dict())
        for i, connection in enumerate(connections)
        if connection.state_dict()
    }
    groups = {}
    for kind, update in step.optimizer_groups.items():
        tensors[f"optimizer-{kind}"], groups[kind] = checkpoint.optimizer_state(update.optimizer)
    return Checkpoint(tensors, {"groups": groups, "provenance": provenance, "updates": step.number})


def restore(
    state: Checkpoint, models: Sequence[nn.Module], connections: Sequence[Connection], step: AdversarialStep
) -> dict[str, Any] | None:
    """The inverse of `capture_state`.

    Args:
        state: what it gave.
        models: as for `capture_state`.
        links: as for `capture_state`.
        step: as for `capture_state`.

    Returns:
        The lesson, as JSON values.

    Raises:
        UserError: where it is the state of other models or discriminators; they may hold part of it then.
    """
    try:
        for k, module in enumerate(models):
            module.load_state_dict(state.tensors[f"model-{k}"])
        for i, connection in enumerate(connections):
            connection.load_state_dict(state.tensors.get(f"connection-{i}", {}))
        for kind, update in step.optimizer_groups.items():
            checkpoint.load_optimizer_state(
                update.optimizer, state.tensors[f"optimizer-{kind}"], state.meta["groups"][kind]
            )
        step.number = state.meta.get("updates", 0)
        provenance: dict[str, Any] | None = state.meta["provenance"]
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint: it holds the state of other models or discriminators ({reason(error, 300)}): give "
            "those it was written with"
        ) from None
    return provenance


def describe_model(model: PeerModel) -> dict[str, Any]:
    """What is needed to build a model again, and a short digest of its tensors' names and shapes."""
    shapes = {key: list(value.shape) for key, value in model.module.state_dict().items()}
    return {**model.description(), "tensors": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]}


def rebuild_models(signature: Mapping[str, Any], modules: Sequence[nn.Module] | None) -> list[PeerModel]:
    """The models of a checkpoint, without its weights.

    Args:
        signature: of the checkpoint.
        modules: the models, in order; built by timm where none are given.

    Raises:
        UserError: for another number of modules, a description that cannot be trusted, or one that timm cannot build.
    """
    described = signature["models"]
    if modules is not None and len(modules) != len(described):
        raise UserError(f"models: {len(modules)} given, the checkpoint holds {len(described)}: give all, in order")
    models = []
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
        models.append(PeerModel.from_description(module, known))
    return models
