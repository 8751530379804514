"""A model's classifier: the layers after the features, as timm names them (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


def classifiers(module: nn.Module) -> list[nn.Module]:
    """Returns the modules that timm's `get_classifier` gives; empty for a model without it.

    Args:
        module: the model.
    """
    get_classifier: Any = getattr(module, "get_classifier", None)
    return [] if get_classifier is None else list(_modules_in(get_classifier()))


def classifier_tensors(module: nn.Module, num_classes: int) -> list[nn.Parameter]:
    """Returns the weights and biases with one row for each class, of the layers that may give the logits.

    Those of timm's `get_classifier`; of other models those of all linear layers and convolutions.

    Args:
        module: the model.
        num_classes: number of classes.
    """
    heads = classifiers(module) or [module]
    layers = {layer for head in heads for layer in head.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    rows = [layer for layer in layers if layer.weight.shape[0] == num_classes]
    return [one for layer in rows for one in layer.parameters(recurse=False)]


def _modules_in(found: Any) -> Iterator[nn.Module]:
    """Yields the modules in what `get_classifier` gives: one, or several in tuples or mappings."""
    if isinstance(found, nn.Module):
        yield found
    elif isinstance(found, Mapping):
        yield from (module for one in found.values() for module in _modules_in(one))
    elif isinstance(found, (tuple, list)):
        yield from (module for one in found for module in _modules_in(one))
