"""Every label means one class: the models' classes are put into the order of the data's (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from feature_gan_kd.data.labels import first_difference
from feature_gan_kd.models.class_order import (
    order_of,
    reorder_rows,
    reorders_logits,
    state_class_names,
    stated_class_names,
)
from feature_gan_kd.models.classifier import classifier_tensors
from feature_gan_kd.models.weights import load_weights, read_class_names
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class _Plan:
    """How one model's classifier is to be reordered.

    Attributes:
        index: position of the model.
        tensors: weights and biases with one row for each class.
        order: the new row k is the old row `order[k]`.
    """

    index: int
    tensors: list[nn.Parameter]
    order: list[int]


def align_class_names(group: PeerGroup, names: list[str] | None) -> list[str]:
    """Puts the classifiers of all models, also of frozen ones, into the order of the data's classes.

    Nothing is changed before all models were checked. What is in order already is left alone, so that a run that is
    resumed does the same. Models that learn state the names from now on, for the next distiller that gets them.

    Args:
        group: the models.
        names: of the data's classes, by index; None where the data have none. Without labels to learn from, those of
            the models count.

    Returns:
        Lines that tell the user what was done, and what cannot be known.

    Raises:
        UserError: for a model that knows other classes than the data, or whose classifier cannot be reordered.
    """
    known = [_known_names(group, k) for k in range(len(group.peers))]
    plans: list[_Plan] = []
    notes: list[str] = []
    whose = "the data"
    if names is None:
        names, whose = _names_of_models(group, known)
        if names is not None:
            shown = ", ".join(f"{k} is {name!r}" for k, name in enumerate(names[:3])) + ", ..." * (len(names) > 3)
            notes.append(f"classes of {whose}: {shown}; labels to evaluate on are taken so, if they have no names")
    for k, own in enumerate(known):
        if k not in group.classifiers:
            continue
        if own is None or names is None:
            notes += _what_is_not_known(group, k, own)
        elif own != names:
            plans.append(_plan(group, k, own, names))
            notes.append(
                f"model {k} ({group.names[k]}): its classes were in another order than those of {whose}; its "
                "classifier was put into that one"
            )
    for plan in plans:
        reorder_rows([*plan.tensors, *_optimizer_rows(group, plan), *_averaged_rows(group, plan)], plan.order)
    for k in {plan.index for plan in plans} | set(group.classifiers).difference(group.frozen):
        state_class_names(group.models[k], names)
        if k in group.averages:
            state_class_names(group.averages[k].module, names)
    return notes


def _names_of_models(group: PeerGroup, known: Sequence[list[str] | None]) -> tuple[list[str] | None, str]:
    """The class names that count where the data have none, and whose they are: a learner's, else a source's.

    Raises:
        UserError: where labels are learned from, and two models state other names, so that a label means two classes.
    """
    stating = sorted((k for k in group.classifiers if known[k] is not None), key=lambda k: (k in group.frozen, k))
    first = known[stating[0]] if stating else None
    if first is None or not group.config.labels:
        return first, f"model {stating[0]}" if stating else "the models"
    other = next((k for k in stating if known[k] != first), None)
    if other is not None:
        at = first_difference(first, known[other] or [])
        raise UserError(
            f"models: class {at} is {first[at]!r} in model {stating[0]} and {(known[other] or [])[at]!r} in model "
            f"{other}, and the data's classes have no names: give the data names, as those of class folders"
        )
    return None, "the data"


def load_best(group: PeerGroup, run: Path) -> None:
    """Loads each model's weights of its best epoch, see `OnlineAdversarialDistiller.load_best`.

    Args:
        group: the models.
        run: the folder of a run.

    Raises:
        UserError: where they are not there, are those of other models, or know the classes in another order.
    """
    folders = [run / "networks" / f"{k}-{name}-best" for k, name in enumerate(group.names)]
    known = [read_class_names(folder) for folder in folders]
    for k, names in enumerate(known):
        own = _known_names(group, k)
        if names is not None and own is not None and names != own:
            at = first_difference(names, own)
            raise UserError(
                f"{folders[k]}: its class {at} is {names[at]!r}, that of model {k} is {own[at]!r}: load it as a model, "
                "local-dir:FOLDER, and fit puts its classes into the order of the data"
            )
    for k, folder in enumerate(folders):
        load_weights(group.models[k], folder)
        if known[k] is not None and group.provenance is None:
            state_class_names(group.models[k], known[k])


def common_class_names(group: PeerGroup) -> list[str] | None:
    """Returns the names of the classes that all models that state any have in common; None where none does.

    Raises:
        UserError: where two models have other classes, or the same in another order.
    """
    known = {k: own for k in group.classifiers if (own := _known_names(group, k)) is not None}
    first = next(iter(known), None)
    for k, own in known.items():
        if first is not None and own != known[first]:
            at = first_difference(known[first], own)
            raise UserError(
                f"models: class {at} is {known[first][at]!r} in model {first} and {own[at]!r} in model {k}: fit them "
                "first, which puts their classes into one order"
            )
    return None if first is None else known[first]


def published_class_names(group: PeerGroup, index: int) -> list[str] | None:
    """Returns the names of a model's classes, in the order of its logits; None where they are not known.

    In the user's own loop a label means the class of the models that state names: `check_class_order` made sure that
    these agree. A model beside them that states none has learned the same labels.
    """
    if index not in group.classifiers:
        return stated_class_names(group.models[index], group.modules.classes[index])
    own = _known_names(group, index)
    if own is not None or group.provenance is not None or group.step.number == 0:
        return own
    return common_class_names(group)


def check_class_order(group: PeerGroup) -> None:
    """Checks, before the first update of the user's own loop, that a label means the same class to all models.

    Raises:
        UserError: as `common_class_names`; after `fit` all models have the order of its data.
    """
    if group.provenance is None and group.step.number == 0:
        common_class_names(group)


def notes_on_frozen(group: PeerGroup) -> list[str]:
    """Says which frozen models teach noise, without trained weights, and which know other classes than the learners."""
    notes = []
    for k in group.frozen:
        peer = group.peers[k]
        if k in group.built_by_name and not peer.pretrained:
            notes.append(
                f"model {k} ({peer.name}) is frozen without trained weights, so it teaches noise: name one with "
                "weights (local-dir:, hf-hub:, or pretrained), or let it learn"
            )
        elif group.num_classes and k not in group.classifiers:
            what = f"knows {peer.classes} other classes" if peer.classes else "has no classifier"
            notes.append(f"model {k} ({peer.name}) {what}, so it teaches by its feature maps alone")
    return notes


def _known_names(group: PeerGroup, index: int) -> list[str] | None:
    """The names of a model's classes: those of the data of its last training, else those that it states."""
    if index not in group.classifiers:
        return None
    if group.provenance is not None and group.provenance.class_names is not None:
        return group.provenance.class_names
    if group.provenance is not None and index not in group.frozen and group.config.labels:
        return None  # it was trained since on classes without names
    return stated_class_names(group.models[index], group.num_classes)


def _what_is_not_known(group: PeerGroup, index: int, own: list[str] | None) -> list[str]:
    """Says of a frozen model, unless it is untrained, that its classes cannot be compared with the data's."""
    peer = group.peers[index]
    untrained = index in group.built_by_name and not peer.pretrained
    if index not in group.frozen or untrained:
        return []
    whose = "its class names are" if own is None else "the data's class names are"
    return [f"model {index} ({peer.name}): {whose} not known: class k of the data is taken as its output k"]


def _plan(group: PeerGroup, index: int, known: Sequence[str], names: Sequence[str]) -> _Plan:
    """Finds how a classifier is put into the order of the data's classes.

    Raises:
        UserError: where it cannot be.
    """
    where = f"models: model {index} ({group.names[index]})"
    order = order_of(known, names)
    remedy = (
        f"give it a new classifier without these names (model.reset_classifier({len(names)}), "
        "model.pretrained_cfg.pop('label_names'))"
    )
    if order is None:
        at = first_difference(known, names)
        raise UserError(
            f"{where} knows other classes than the data: class {at} is {known[at]!r} in the model and {names[at]!r} in "
            f"the data: {remedy}"
        )
    module, peer = group.models[index], group.peers[index]
    tensors = classifier_tensors(module, len(names))
    shape = (2, peer.channels, peer.image_size, peer.image_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(group.accelerator.device, group.dtype)
    if not reorders_logits(module, tensors, order, images):
        at = first_difference(known, names)
        raise UserError(
            f"{where} has the data's classes in another order (class {at} is {known[at]!r}, in the data {names[at]!r}) "
            f"and no linear classifier that could be reordered: give the data's classes its order, or {remedy}"
        )
    return _Plan(index, tensors, order)


def _averaged_rows(group: PeerGroup, plan: _Plan) -> list[Tensor]:
    """The same tensors of the model's averaged weights; none where it has no mean."""
    average = group.averages.get(plan.index)
    if average is None:
        return []
    names = {id(tensor): name for name, tensor in group.models[plan.index].named_parameters()}
    copies = dict(average.module.named_parameters())
    return [copies[names[id(tensor)]] for tensor in plan.tensors]


def _optimizer_rows(group: PeerGroup, plan: _Plan) -> list[Tensor]:
    """The optimisers' tensors of the same form as those of the plan, as of momentum: they belong to the same rows."""
    optimizers = [own.optimizer for own in group.step.optimizer_groups.values()]
    found: list[Tensor] = []
    for tensor in plan.tensors:
        for optimizer in optimizers:
            values = optimizer.state.get(tensor, {}).values()
            found += [value for value in values if isinstance(value, Tensor) and value.shape == tensor.shape]
    return found
