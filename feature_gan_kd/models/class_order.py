"""The names of a model's classes, and its classifier in another order of them (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from feature_gan_kd.models.outputs import logits_of
from feature_gan_kd.models.tapped_model import evaluating

_TOLERANCE = 1e-3  # of the largest logit: a product of matrices rounds otherwise where its rows are in another order


def stated_class_names(module: nn.Module, num_classes: int) -> list[str] | None:
    """Returns the names of a model's classes, in the order of its logits; None where it states none.

    timm keeps them in `pretrained_cfg["label_names"]`, transformers in `config.id2label`. Names of another number of
    classes are those of a classifier that was replaced.

    Args:
        module: the model.
        num_classes: the size of its logits.
    """
    cfg: Any = getattr(module, "pretrained_cfg", None)
    stated = cfg.get("label_names") if isinstance(cfg, Mapping) else None
    if stated is None:
        stated = getattr(getattr(module, "config", None), "id2label", None)
    if isinstance(stated, Mapping):
        stated = [name for _, name in sorted((int(index), name) for index, name in stated.items())]
    if not isinstance(stated, Sequence) or isinstance(stated, str) or len(stated) != num_classes:
        return None
    names = [str(name) for name in stated]
    return None if names == [f"LABEL_{k}" for k in range(num_classes)] else names  # what transformers writes for none


def state_class_names(module: nn.Module, names: Sequence[str] | None) -> None:
    """Writes the names of a model's classes to where `stated_class_names` reads them; None where they have none."""
    cfg: Any = getattr(module, "pretrained_cfg", None)
    if isinstance(cfg, Mapping):
        others = {key: value for key, value in cfg.items() if key != "label_names"}
        module.pretrained_cfg = others if names is None else {**others, "label_names": list(names)}  # type: ignore[assignment]
    config: Any = getattr(module, "config", None)
    if isinstance(getattr(config, "id2label", None), Mapping):
        names = [f"LABEL_{k}" for k in range(len(config.id2label))] if names is None else names
        config.id2label = dict(enumerate(names))
        config.label2id = {name: k for k, name in enumerate(names)}


def order_of(known: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Returns for each wanted name its place among the known ones; None where the names are not the same, or repeat."""
    places = {name: k for k, name in enumerate(known)}
    if list(known) == list(wanted):
        return list(range(len(known)))
    return None if len(places) < len(known) or sorted(known) != sorted(wanted) else [places[name] for name in wanted]


def reorders_logits(module: nn.Module, tensors: Iterable[Tensor], order: Sequence[int], images: Tensor) -> bool:
    """Whether a model's logits come in another order where rows of these tensors do. Leaves the model as it was.

    Args:
        module: the model; its logits are compared in evaluation mode.
        tensors: see `classifier_tensors`.
        order: the new row k is the old row `order[k]`.
        images: (batch, channels, height, width) to compare the logits of.
    """
    tensors = list(tensors)
    back = torch.tensor(order).argsort().tolist()
    with evaluating(module), torch.no_grad():
        before = logits_of(module(images.clone()), "it")
        reorder_rows(tensors, order)
        try:
            after = logits_of(module(images.clone()), "it")
        finally:
            reorder_rows(tensors, back)
    expected = before[:, list(order)]
    bound = _TOLERANCE * float(expected.abs().max())
    return bool(tensors) and bool(expected.isfinite().all()) and float((after - expected).abs().max()) <= bound


@torch.no_grad()
def reorder_rows(tensors: Iterable[Tensor], order: Sequence[int]) -> None:
    """Puts the rows of each tensor (classes, ...) into another order, in place.

    Args:
        tensors: of any shape, with one row for each class.
        order: the new row k is the old row `order[k]`.
    """
    for tensor in tensors:
        tensor.copy_(tensor[torch.tensor(order, device=tensor.device)])
