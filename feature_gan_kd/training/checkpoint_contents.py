"""Turns models in training into a checkpoint and back, and builds the models that a checkpoint describes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.models.build import build_architecture, check_description
from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.training.checkpoint_files import Checkpoint, load_optimizer_state, optimizer_state
from feature_gan_kd.utils.errors import UserError, reason


def collect_state(
    models: Sequence[nn.Module],
    connections: Sequence[Connection],
    averages: Mapping[int, nn.Module],
    step: AdversarialStep,
    provenance: Mapping[str, Any] | None,
) -> Checkpoint:
    """Collects everything that training changes.

    Args:
        models: the models, in order.
        connections: transfer layers and discriminators, in the order of edges and taps.
        averages: running means of models' weights, by position.
        step: with the optimisers.
        provenance: what the models were trained on, as JSON values.

    Returns:
        The tensors themselves, not copies.
    """
    tensors = {f"model-{k}": dict(module.state_dict()) for k, module in enumerate(models)}
    for i, connection in enumerate(connections):
        own = dict(connection.state_dict())
        if own:  # without transfer layer and discriminator there is nothing to keep
            tensors[f"connection-{i}"] = own
    tensors |= {f"average-{k}": dict(average.state_dict()) for k, average in averages.items()}
    optimizers = {}
    for name, group in step.optimizer_groups.items():
        tensors[f"optimizer-{name}"], optimizers[name] = optimizer_state(group.optimizer)
    meta = {"optimizers": optimizers, "provenance": provenance, "updates": step.number}
    meta["scalers"] = {name: group.scaler.state_dict() for name, group in step.optimizer_groups.items()}
    return Checkpoint(tensors, {**meta, "grad_accum_steps": step.grad_accum_steps})


def check_plain_state(modules: Mapping[str, nn.Module]) -> None:
    """Refuses a module whose state holds more than tensors.

    Args:
        modules: by name for messages.

    Raises:
        UserError: naming what it holds, such as a dict from `get_extra_state`.
    """
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            if not isinstance(value, Tensor):
                raise UserError(
                    f"{name}: its state holds a {type(value).__name__} ({key}), and checkpoints hold tensors alone: "
                    "let get_extra_state return a tensor, or leave it out"
                )


def restore_state(
    state: Checkpoint,
    models: Sequence[nn.Module],
    connections: Sequence[Connection],
    averages: Mapping[int, nn.Module],
    step: AdversarialStep,
) -> dict[str, Any] | None:
    """The inverse of `collect_state`.

    Args:
        state: what it returned.
        models: as there.
        connections: as there.
        averages: as there.
        step: as there.

    Returns:
        The provenance, as JSON values.

    Raises:
        UserError: where the state is that of other models or discriminators; part of it may be loaded by then.
    """
    try:
        for k, module in enumerate(models):
            module.load_state_dict(state.tensors[f"model-{k}"])
        for i, connection in enumerate(connections):
            connection.load_state_dict(state.tensors.get(f"connection-{i}", {}))
        for k, average in averages.items():
            average.load_state_dict(state.tensors[f"average-{k}"])
        for name, group in step.optimizer_groups.items():
            load_optimizer_state(group.optimizer, state.tensors[f"optimizer-{name}"], state.meta["optimizers"][name])
            group.scaler.load_state_dict(state.meta.get("scalers", {}).get(name, {}))
        # More than the settings say where memory ran out.
        step.grad_accum_steps = state.meta.get("grad_accum_steps", step.grad_accum_steps)
        step.number = state.meta["updates"]
        provenance: dict[str, Any] | None = state.meta["provenance"]
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint: it holds the state of other models or discriminators ({reason(error, 300)}): give those it "
            "was written with"
        ) from None
    return provenance


def describe_model(model: PeerModel) -> dict[str, Any]:
    """What is needed to build a model again, and a short digest of its tensors' names and shapes."""
    state = model.module.state_dict().items()
    shapes = {key: list(value.shape) for key, value in state if isinstance(value, Tensor)}
    return {**model.description(), "tensors": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]}


def rebuild_models(signature: Mapping[str, Any], modules: Sequence[nn.Module] | None) -> list[PeerModel]:
    """Builds the models of a checkpoint, without its weights.

    Args:
        signature: of the checkpoint.
        modules: the models, in order; None builds them by timm.

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
        if modules is not None:
            module = modules[k]
        else:
            sizes = {"num_classes": known["classes"], "in_chans": known["channels"]}
            module = build_architecture(known["architecture"], **sizes, **known["model_args"])
        models.append(PeerModel.from_description(module, known))
    return models


def checkpointed_arguments(signature: Mapping[str, Any], modules: Sequence[nn.Module] | None) -> dict[str, Any]:
    """The arguments that build the distiller of a checkpoint again, without its state.

    Args:
        signature: of the checkpoint.
        modules: as for `rebuild_models`.

    Raises:
        UserError: as `rebuild_models`.
    """
    layers = signature["feature_layers"]
    return {
        "models": rebuild_models(signature, modules),
        # JSON has no numbers as keys.
        "feature_layers": {int(k): own for k, own in layers.items()} if isinstance(layers, dict) else layers,
        "in_chans": signature["in_chans"],
        "topology": [(source, learner) for source, learner in signature["edges"]],
        "frozen": signature["frozen"],
        "config": DistillConfig.from_dict(signature["config"]),
    }
