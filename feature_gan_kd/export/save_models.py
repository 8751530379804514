"""Publishes trained models: collects what a model's card states, and writes it in the format that was asked for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from feature_gan_kd.config.settings import UPDATE_SETTINGS
from feature_gan_kd.data import evaluation_crop_pct
from feature_gan_kd.export import (
    ExportFormat,
    ModelCardInfo,
    RebuildError,
    has_same_weights,
    publish,
    publish_bare,
    publish_graph,
    push,
)
from feature_gan_kd.models.normalisation import Normalisation, stated_normalisation
from feature_gan_kd.models.peer import DROP_RATES, PeerModel
from feature_gan_kd.training.class_names import published_class_names
from feature_gan_kd.training.history import Record, Which
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.training.provenance import RunProvenance
from feature_gan_kd.utils.errors import UserError

Stated = tuple[Sequence[float] | None, Sequence[float] | None]
"""Mean and standard deviation per channel, as a user states them; None each for what is not stated."""


def save_models(
    group: PeerGroup,
    directory: Path,
    which: Which,
    form: ExportFormat,
    license: str | None,
    stated: Stated,
) -> list[Path]:
    """Publishes every model of a group that has such weights, see `OnlineAdversarialDistiller.save_pretrained`.

    Args:
        group: the models.
        directory: for their folders.
        which: which weights these are.
        form: the format.
        license: of the weights; None takes what `fit` was given.
        stated: mean and standard deviation of the images, where the group does not know them.

    Returns:
        The folders.

    Raises:
        UserError: as `write_model`, for a normalisation that is not known, where no model has averaged weights, or
            another process is gone.
    """
    indices = list(group.averaged_models()) if which == "ema" else list(range(len(group.peers)))
    models = [_model_with(group, index, which) for index in indices or [0]]
    folders = [directory / f"{index}-{group.names[index]}" for index in indices]
    cards = [model_card_info(group, index, which, license, stated) for index in indices]
    group.average_buffers()
    if group.accelerator.is_main_process:
        for model, folder, card in zip(models, folders, cards, strict=True):
            write_model(model, folder, card, form)
    group.accelerator.wait_for_everyone()
    return folders


def save_if_changed(group: PeerGroup, index: int, which: Which, folder: Path) -> None:
    """Publishes one model of a group into a folder, unless the folder holds these very weights.

    A resumed run calls it again for what was published before it was killed.

    Args:
        group: the models.
        index: position of the model.
        which: which weights these are.
        folder: where to write.

    Raises:
        UserError: as `write_model`.
    """
    model = _model_with(group, index, which)
    if not has_same_weights(folder, model.module):
        write_model(model, folder, model_card_info(group, index, which, None))


def push_model(
    group: PeerGroup,
    repo_id: str,
    index: int,
    card_info: ModelCardInfo,
    *,
    private: bool,
    token: str | None,
) -> None:
    """Publishes one model of a group on the hub, see `OnlineAdversarialDistiller.push_to_hub`.

    Args:
        group: the models.
        repo_id: see there.
        index: position of the model.
        card_info: what its card states.
        private: see there.
        token: see there.

    Raises:
        UserError: without internet access, with a wrong token, or for averaged weights that the model does not have.
    """
    model = _model_with(group, index, card_info.which)
    if group.accelerator.is_main_process:
        push(model.module, repo_id, card_info, private=private, token=token)
    group.accelerator.wait_for_everyone()


def model_card_info(
    group: PeerGroup, index: int, which: Which, license: str | None, stated: Stated = (None, None)
) -> ModelCardInfo:
    """Collects what the card and the config of one model state.

    Args:
        group: the models, with the provenance of their training.
        index: position of the model.
        which: which weights are published; the card states their accuracy.
        license: of the weights; None takes that of the provenance.
        stated: mean and standard deviation of the images, where the group does not know them.

    Raises:
        UserError: for a position without a model, and where that is not known at all.
    """
    if type(index) is not int or not 0 <= index < len(group.models):
        known = ", ".join(f"{k} ({name})" for k, name in enumerate(group.names))
        raise UserError(f"model: {index!r} is not allowed, expected a position: {known}")
    model, provenance = group.peers[index], group.provenance
    record = None if provenance is None else _record_of(provenance, index, which)
    said = stated_normalisation(*stated, group.in_chans)
    normalisation, updates = published_normalisation(group, index, said), group.step.number
    settings = model.own_config(group.config).to_dict()
    crop_pct = evaluation_crop_pct(group.config, group.image_size)
    if provenance is not None:
        settings = {name: value for name, value in settings.items() if name not in provenance.idle_settings}
        crop_pct = provenance.crop_pct or crop_pct
    else:  # nobody called `fit`: what only `fit` uses says nothing about these weights
        settings = {name: value for name, value in settings.items() if name in UPDATE_SETTINGS} if updates else {}
    return ModelCardInfo(
        architecture=model.architecture,
        index=index,
        num_classes=group.modules.classes[index],
        class_names=published_class_names(group, index),
        image_size=model.image_size,
        in_chans=model.channels,
        mean=normalisation.mean,
        std=normalisation.std,
        method=group.config.method,
        peers=[name for k, name in enumerate(group.names) if k != index],
        data=provenance.data if provenance else None,
        unlabeled=provenance.unlabeled if provenance else None,
        evaluated_on=provenance.evaluated_on if provenance else None,
        scores=_scores(record, which, str(index)),
        ensemble=_scores(record, which, "ensemble"),
        epochs=record["epoch"] if record else None,
        updates=updates,
        recipe=settings,
        which=which,
        learned=() if index in group.frozen else _terms_of(group, index),
        by_neighbours=index not in group.classifiers,
        license=license or (provenance.license if provenance else None),
        pretrained=model.pretrained,
        model_args={name: value for name, value in model.model_args.items() if name not in DROP_RATES},
        crop_pct=crop_pct,
        interpolation=group.config.interpolation,
    )


def _terms_of(group: PeerGroup, index: int) -> tuple[str, ...]:
    """The loss terms that act on a learner, see `ModelCardInfo`."""
    weights, edges = group.config.loss_weights, [edge for edge in group.edges if edge.learner == index]
    taught = [term for edge in edges for term in group.modules.terms(edge, weights)]
    return (*["labels"] * weights.labels, *dict.fromkeys(taught))


def published_normalisation(group: PeerGroup, index: int, stated: Normalisation | None) -> Normalisation:
    """Mean and standard deviation of the images that a model learned from.

    Args:
        group: the models.
        index: position of the model.
        stated: what the user says, after the training, that the images were normalised with.

    Raises:
        UserError: where they are not known, or `stated` contradicts what is known.
    """
    model, shared = group.peers[index], group.shared
    if stated is not None and shared is not None and stated != shared:
        raise UserError(f"mean: the images were normalised with {shared}, not with {stated}: leave it out")
    if shared is not None:
        return model.normalisation or shared.of_channels(model.channels)
    trained = group.step.number > 0
    seen = stated if trained else model.normalisation or model.stated_normalisation(model.channels) or stated
    if seen is None:
        raise UserError(
            f"{model.name}: what its images were normalised with is not known, so it cannot be published: give mean "
            "and std (0 and 1 for pixels / 255)"
        )
    return seen.of_channels(model.channels)


def write_model(model: PeerModel, folder: Path, card_info: ModelCardInfo, form: ExportFormat = "safetensors") -> None:
    """Publishes a model into a folder; where timm cannot rebuild it, says why and writes its bare weights.

    Args:
        model: any.
        folder: where to write; parents are made.
        card_info: what config and card state.
        form: the format.

    Raises:
        UserError: where the folder holds other files or cannot be written, the logits are not finite, or a graph cannot
            be traced or computes other values.
    """
    if form != "safetensors":
        publish_graph(model.module, folder, card_info, form)
        return
    try:
        publish(model.module, folder, card_info)
    except RebuildError as error:
        print(f"{error}; the bare weights are in {folder}", file=sys.stderr)
        publish_bare(model.module, folder, card_info)


def _model_with(group: PeerGroup, index: int, which: Which) -> PeerModel:
    """One model of a group with the weights that are asked for; those of the best epoch must be loaded by then.

    Raises:
        UserError: for averaged weights that it does not have.
    """
    model = group.peers[index]
    if which != "ema":
        return model
    if index not in group.averaged_models():
        raise UserError(f"which: {model.name} has no averaged weights: train with model_ema, or choose last or best")
    return dataclasses.replace(model, module=group.averages[index].module)


def _scores(record: Record | None, which: Which, owner: str) -> dict[str, float]:
    """The figures of a model, or of the ensemble, by name; empty where there is no record."""
    prefix, found = "eval/ema_" if which == "ema" else "eval/", {}
    for key, value in ({} if record is None else record["metrics"]).items():
        name = key.removeprefix(prefix).removesuffix(f"/{owner}")
        if key == f"{prefix}{name}/{owner}" and "/" not in name:
            found[name] = value
    return found


def _record_of(provenance: RunProvenance, index: int, which: Which) -> Record | None:
    """The record of the epoch whose weights are published; None before the first evaluation."""
    history = provenance.history
    if which == "best" and history.best:
        best = history.best[index]["epoch"]
        return next(record for record in history.epochs if record["epoch"] == best)
    return history.epochs[-1] if history.epochs else None
