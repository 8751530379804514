"""Makes a built model ready to train as its settings say: its classifier, what is frozen, how activations are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.models.classifier import classifier_tensors, classifiers
from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.utils.errors import UserError


def prepare(model: PeerModel, settings: DistillConfig, where: str) -> None:
    """Applies the settings of a model that learns to its module.

    Args:
        model: whose module is changed.
        settings: in force for it.
        where: the model in error lines.

    Raises:
        UserError: where the classifier must be known and is not, or the model has no gradient checkpointing.
    """
    if model.has_new_classifier and settings.head_init_scale != 1:
        scale_logits(model.module, settings.head_init_scale)
    if settings.freeze_backbone:
        trained = set(classifier_parameters(model.module, where, "freeze_backbone"))
        for parameter in model.module.parameters():
            parameter.requires_grad_(parameter in trained and parameter.requires_grad)
    if settings.grad_checkpointing:
        checkpoint: Any = getattr(model.module, "set_grad_checkpointing", None)
        try:
            checkpoint(True)
        except (AssertionError, TypeError, NotImplementedError):
            raise UserError(f"grad_checkpointing: {where} does not support it: leave it out") from None


@torch.no_grad()
def scale_logits(module: nn.Module, scale: float) -> None:
    """Multiplies the layers that give the logits, and nothing before them.

    Some classifiers have several layers. With a norm or a hidden layer at zero, no gradient would ever pass.

    Args:
        module: a timm model, which states its number of classes.
        scale: factor of weights and biases.
    """
    for parameter in classifier_tensors(module, int(getattr(module, "num_classes", 0))):
        parameter.mul_(scale)


def classifier_parameters(module: nn.Module, where: str, setting: str) -> list[nn.Parameter]:
    """The parameters of a model's classifier.

    Args:
        module: the model.
        where: the model in error lines.
        setting: what needs them.

    Raises:
        UserError: where it is not known, as in modules that are not timm's.
    """
    found = [parameter for head in classifiers(module) for parameter in head.parameters()]
    if not found:
        raise UserError(f"{setting}: {where} does not say which layers are its classifier (timm's get_classifier)")
    return found


def modules_in_evaluation(module: nn.Module, settings: DistillConfig) -> list[nn.Module]:
    """The parts of a model that stay in evaluation mode: with `freeze_backbone` all those with frozen weights alone.

    Args:
        module: the model, prepared.
        settings: in force for it.
    """
    if not settings.freeze_backbone:
        return []
    found: list[nn.Module] = []
    for one in module.modules():
        parameters = list(one.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            found.append(one)
    return found
