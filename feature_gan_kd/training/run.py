"""One call of `fit`: opens the data and the run's folder, and builds the trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_gan_kd.data import (
    Data,
    ImageSource,
    OwnTransform,
    build_mixup_cutmix,
    class_weights,
    open_data,
    open_evaluation,
)
from feature_gan_kd.distributed.collectives import on_main_process
from feature_gan_kd.optim.build import build_schedules
from feature_gan_kd.training.batch_checks import check_gradients
from feature_gan_kd.training.callbacks import Callback, build_callbacks, check_callbacks, check_trackers
from feature_gan_kd.training.checkpoint_contents import check_plain_state
from feature_gan_kd.training.class_names import align_class_names, common_class_names, notes_on_frozen
from feature_gan_kd.training.describe_recipe import describe_recipe
from feature_gan_kd.training.describe_run import describe_run
from feature_gan_kd.training.history import History
from feature_gan_kd.training.neighbours import NEIGHBOURS
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.training.provenance import title_of_data
from feature_gan_kd.training.run_folder import check_run_folder, device_name, write_run_config
from feature_gan_kd.training.scores import TOP
from feature_gan_kd.training.small_batches import check_batches
from feature_gan_kd.training.trainer import MeasureSimilarity, Publish, Trainer
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.processor import emulates_bf16


@dataclass(frozen=True)
class RunServices:
    """What a run needs from the folders above training/: the distiller provides it.

    Attributes:
        publish: writes model `index`, as its users get it, into a folder, unless it holds these very weights.
        similarity: measures how similar the models' feature maps are, by name; empty where it is not recorded.
        check_similarity_images: raises UserError where so many images are too few for `similarity`.
        taps: parameters and feature maps of each model, as JSON values.
    """

    publish: Publish
    similarity: MeasureSimilarity
    check_similarity_images: Callable[[int], None]
    taps: list[dict[str, Any]]


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept and shown, see `OnlineAdversarialDistiller.fit`."""

    output_dir: str | Path | None = None
    resume: bool = False
    callbacks: Sequence[Callback] = ()
    log_with: str | Sequence[str] = ()
    progress: bool = True
    license: str | None = None
    train_transform: OwnTransform | None = None
    unlabeled_data: Any = None


def change_settings(group: PeerGroup, **changes: Any) -> None:
    """Replaces settings of a group, but those that are None; what was built by the earlier ones stays.

    Args:
        group: the models.
        **changes: settings by name.
    """
    group.config = group.config.replace(**{name: value for name, value in changes.items() if value is not None})


def fit(group: PeerGroup, train_data: Any, eval_data: Any, options: RunOptions, services: RunServices) -> History:
    """Trains the models of a group together, see `OnlineAdversarialDistiller.fit`.

    Args:
        group: the models.
        train_data: see there.
        eval_data: see there.
        options: how the run is kept and shown.
        services: what the run needs from above.

    Raises:
        UserError: for data, folders or checkpoints that cannot be used, in one line; for models that know other classes
            than the data, or whose state a checkpoint cannot hold; where gradients are off.
        DivergedError: as `Trainer.run`.
        Interrupted: as `Trainer.run`.
    """
    check_gradients("fit")
    config, accelerator = group.config, group.accelerator
    folder = None if options.output_dir is None else check_run_folder(Path(options.output_dir), options.resume)
    trackers = (options.log_with,) if isinstance(options.log_with, str) else tuple(options.log_with)
    if folder is not None:
        check_plain_state(group.modules.trained_modules())
    check_trackers(trackers, folder)
    check_callbacks(options.callbacks)
    if options.train_transform is not None and config.cache_sources is not None:
        raise UserError(
            "cache_sources: train_transform may change the images from epoch to epoch: leave one of them out"
        )
    data = open_training_data(group, train_data, eval_data, options.train_transform, options.unlabeled_data)
    _check_normalisation(group, data, folder)
    check_batches(group, data.train)
    _check_evaluation(group, data, services)
    notes = [*data.notes, *align_class_names(group, data.class_names), *_notes_on_models(group, data)]
    if config.class_weights and data.train_labels is not None:
        weights = class_weights(data.train_labels, group.num_classes)
        group.step.label_loss.weigh_classes(weights.to(accelerator.device))
    history = group.begin_training(train_data, eval_data, data, options.license, options.unlabeled_data)
    accelerator.wait_for_everyone()  # before the folder changes: all processes must have checked it
    if folder is not None:
        given = (train_data, eval_data, options.unlabeled_data)
        about = describe_run(group, given, options.license, options.train_transform)
        about |= {"taps": services.taps, **_circumstances(group, data)}
        on_main_process(lambda: write_run_config(folder, about))
    accelerator.wait_for_everyone()
    callbacks = build_callbacks(
        config,
        options.callbacks,
        notes=notes if options.progress else None,
        trackers=trackers,
        running=accelerator.trackers,
        folder=folder,
    )
    optimizers = {name: own.optimizer for name, own in group.step.optimizer_groups.items()}
    trainer = Trainer(
        group=group,
        data=data,
        schedules=build_schedules(optimizers, config, data.train.steps(config.batch_size) * config.epochs),
        callbacks=callbacks,
        output_dir=folder,
        history=history,
        publish=services.publish,
        similarity=services.similarity,
        mixing=build_mixup_cutmix(config, group.num_classes),
    )
    return trainer.run(options.resume)


def open_training_data(
    group: PeerGroup,
    train_data: Any,
    eval_data: Any = None,
    train_transform: OwnTransform | None = None,
    unlabeled_data: Any = None,
) -> Data:
    """Opens training and evaluation data in the size, channels and normalisation of the models of a group.

    Where the user states no normalisation, pixels get the one that all models were trained with, else the data's own.

    Args:
        group: the models.
        train_data: see `OnlineAdversarialDistiller.fit`.
        eval_data: see there.
        train_transform: see there.
        unlabeled_data: see there.

    Raises:
        UserError: for data that cannot be used, or that have another number of classes.
    """
    data = open_data(
        train_data,
        eval_data,
        group.config,
        unlabeled_data=unlabeled_data,
        image_size=group.image_size,
        in_chans=group.in_chans,
        stated=group.stated_normalisation(),
        common=group.common_normalisation(),
        num_classes=group.num_classes or None,
        num_classes_given=group.num_classes_given,
        train_transform=train_transform,
    )
    if group.num_classes and data.num_classes not in (None, group.num_classes):
        raise UserError(
            f"data: {title_of_data(train_data)} has {data.num_classes} classes, the models have {group.num_classes}: "
            f"build them with num_classes={data.num_classes}"
        )
    return data


def open_evaluation_images(group: PeerGroup, data: Any = None) -> ImageSource:
    """Opens the images to evaluate the models of a group on.

    Args:
        group: the models.
        data: see `OnlineAdversarialDistiller.evaluate`; None takes what the last training was evaluated on.

    Raises:
        UserError: for data that cannot be used, or that are not known any more; for other images than in the training
            where `data` is None.
    """
    normalisation, provenance, stated = group.normalisation(), group.provenance, group.stated_normalisation()
    trained_on = False
    reopened = data is None
    if reopened:
        train_data, data = group.last_data or (provenance.reopenable_data() if provenance else (None, None))
        trained_on = data is None
        data = train_data if trained_on else data
    source, notes = open_evaluation(
        data,
        group.config,
        image_size=group.image_size,
        in_chans=group.in_chans,
        normalisation=normalisation,
        takes_floats=stated is not None or provenance is None or normalisation is None,
        class_names=provenance.class_names if provenance else common_class_names(group),
        num_classes=group.num_classes or None,
        num_classes_given=group.num_classes_given,
        trained_on=trained_on,
    )
    if reopened and provenance is not None:
        provenance.check_evaluated(source.fingerprint(), group.config.data_settings())
    if (not reopened or group.config.skip_bad_images) and group.accelerator.is_main_process:
        print(*notes, sep="\n", file=sys.stderr)
    return source


def _check_normalisation(group: PeerGroup, data: Data, folder: Path | None) -> None:
    """Raises UserError where a frozen model would get images of a normalisation that it was not trained on.

    Also where the published models could not state what their images were normalised with.
    """
    if data.normalisation is None and folder is not None:
        raise UserError(
            "data: the images are tensors of floats, and the published models must state what these were normalised "
            "with: give mean and std (0 and 1 for pixels / 255)"
        )
    for k in group.frozen if data.normalisation is not None and group.stated_normalisation() is None else ():
        model = group.peers[k]
        if model.pretrained and model.normalisation is None:
            raise UserError(
                f"frozen: model {k} ({model.name}) does not state what the images that it was trained on were "
                "normalised with: give mean and std (0 and 1 for pixels / 255)"
            )


def _check_evaluation(group: PeerGroup, data: Data, services: RunServices) -> None:
    """Raises UserError for settings of the evaluation that say nothing of these classes and images."""
    config, classes = group.config, group.num_classes or data.num_classes or 0
    if config.best_metric == "top5" and classes <= TOP:
        raise UserError(f"best_metric: top5 says nothing of {classes} classes: choose accuracy or macro_f1")
    without_effect = [name for name in ("similarity_images", "early_stopping_patience") if getattr(config, name)]
    if without_effect and data.evaluation is None:
        raise UserError(f"{without_effect[0]}: there are no images with labels to evaluate on: leave it out")
    if config.similarity_images and data.evaluation is not None:
        services.check_similarity_images(len(data.evaluation))


def _notes_on_models(group: PeerGroup, data: Data) -> list[str]:
    """Lines on models that teach noise or learn in part, maps that are a guess, a slow precision, and the recipe."""
    notes, bf16 = notes_on_frozen(group), group.config.mixed_precision == "bf16"
    notes += [note for model in group.tapped for note in model.notes()]
    notes += [
        f"{model.name}: it sees the images of {group.image_size} pixels resized once more, to {model.adapter.size}: "
        "published, it reads images at that size at once, which gives slightly other pixels"
        for model in group.tapped
        if model.adapter.size != group.image_size
    ]
    encoders = [str(k) for k in range(len(group.peers)) if k not in group.classifiers]
    if encoders and data.evaluation is not None:
        neighbours = min(NEIGHBOURS, len(data.evaluation) - 1)
        notes.append(
            f"model{'s' * (len(encoders) > 1)} {' and '.join(encoders)}: no classifier of the learners' classes, so an "
            f"image is classified by its {neighbours} nearest neighbours among the evaluation images"
        )
    if group.asked_precision == "auto":
        device = group.accelerator.device
        notes.append(f"mixed_precision auto: {group.config.mixed_precision} on {device_name(device)}")
    if bf16 and group.accelerator.device.type == "cpu" and emulates_bf16():
        notes.append("mixed_precision bf16: this processor emulates bf16, several times slower than fp32")
    return [*notes, *describe_recipe(group, data.idle_settings)]


def _circumstances(group: PeerGroup, data: Data) -> dict[str, Any]:
    """What `config.json` states besides models and settings, as JSON values."""
    assert group.provenance is not None
    more = f", and {group.provenance.unlabeled} without labels" if group.provenance.unlabeled else ""
    return {
        "data": {"name": group.provenance.data + more, **data.description()},
        "device": device_name(group.accelerator.device),
        "processes": group.accelerator.num_processes,
    }
