"""Which learning rate and weight decay each parameter of a model gets from its settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.utils.errors import UserError

Rates = tuple[float, float]
"""Learning rate and weight decay."""


def rates_of_parameters(
    module: nn.Module, settings: DistillConfig, classifier: Collection[nn.Parameter]
) -> dict[nn.Parameter, Rates]:
    """Learning rate and weight decay of every parameter of a model that is trained, in the model's order.

    Args:
        module: the model.
        settings: in force for it.
        classifier: parameters of its classifier, for `head_lr_scale`.

    Raises:
        UserError: for a model whose `no_weight_decay` is neither names nor a method that returns them.
    """
    common: dict[str, Any] = {
        "weight_decay": settings.weight_decay,
        "weight_decay_exclude_1d": not settings.decay_norms,
        "no_weight_decay_list": () if settings.decay_norms else _exempt_from_decay(module),
    }
    if settings.layer_decay is not None:
        groups = param_groups_layer_decay(module, layer_decay=settings.layer_decay, **common)
    else:
        groups = param_groups_weight_decay(module, **common)
    found = {
        parameter: (settings.lr * own.get("lr_scale", 1.0), own["weight_decay"])
        for own in groups
        for parameter in own["params"]
    }
    scaled = set(classifier) if settings.head_lr_scale != 1 else set()
    return {
        parameter: (lr * settings.head_lr_scale if parameter in scaled else lr, decay)
        for parameter in module.parameters()
        if parameter.requires_grad
        for lr, decay in [found[parameter]]
    }


def _exempt_from_decay(module: nn.Module) -> set[str]:
    """The names of parameters that a model exempts: timm's models have a method for it, others may hold the names."""
    stated: Any = getattr(module, "no_weight_decay", None)
    names = stated() if callable(stated) else stated
    if names is None:
        return set()
    if isinstance(names, str) or not isinstance(names, Iterable) or not all(isinstance(one, str) for one in names):
        raise UserError(
            f"decay_norms: {type(module).__name__}.no_weight_decay gives {names!r}, expected a set of parameter names: "
            "correct it, or set decay_norms"
        )
    return set(names)
