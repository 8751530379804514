"""Turns a run file into the arguments of the distiller and of `fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from feature_gan_kd.config.distill_config import DistillConfig, setting_types
from feature_gan_kd.config.run_file import RunFile
from feature_gan_kd.data import count_classes
from feature_gan_kd.models.peer import Peer
from feature_gan_kd.training.run import RunOptions
from feature_gan_kd.utils.errors import UserError


def distiller_arguments(file: RunFile, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that build the distiller of a run file.

    Args:
        file: what the file says. Where it names data and no number of classes, the data are asked.
        changes: arguments and settings that replace the file's. What one says for all models replaces what the file
            says for single ones; `models` replaces all that the file says of them.

    Raises:
        UserError: where the file names no models, or a module, and `changes` does not either; for a bad value.
    """
    settings = changes["config"].given_values if isinstance(changes.get("config"), DistillConfig) else {}
    settings = {**settings, **{name: value for name, value in changes.items() if name in setting_types()}}
    others = {name: value for name, value in changes.items() if name not in setting_types() and name != "config"}
    if "models" not in others:
        if file.peers is None:
            raise UserError(f"{file.path}: names no models: add the key models")
        others["models"] = [Peer(**peer) for peer in file.peers_with({**settings, **others})]
    config = DistillConfig(**file.settings_with(settings, other_models="models" in changes))
    kept = file.without_old_models(
        file.arguments, other_models="models" in changes, labels=settings.get("labels", True)
    )
    arguments = {**kept, **others, "config": config}
    if config.labels and arguments.get("num_classes") is None and "train_data" in file.fit:
        arguments["num_classes"] = count_classes(file.fit["train_data"], config)
    return arguments


def complete_fit(
    file: RunFile | None, train_data: Any, eval_data: Any, options: RunOptions
) -> tuple[Any, Any, RunOptions]:
    """The arguments of `fit`, where they are left at their defaults those of the run file.

    Args:
        file: that the distiller was built from; None for none.
        train_data: as given to `fit`.
        eval_data: as given to `fit`; that of the file belongs to its training data, and so do unlabelled data.
        options: as given to `fit`.

    Raises:
        UserError: where the training data are those of a run that was given an object.
    """
    if file is None:
        return train_data, eval_data, options
    own_data = train_data is None
    if own_data:
        file.check_data(())
        train_data = file.fit.get("train_data")
        eval_data = file.fit.get("eval_data") if eval_data is None else eval_data
    untouched = RunOptions()
    unset = {
        spec.name: file.fit[spec.name]
        for spec in dataclasses.fields(RunOptions)
        if spec.name in file.fit
        and getattr(options, spec.name) == getattr(untouched, spec.name)
        and (own_data or spec.name != "unlabeled_data")
    }
    return train_data, eval_data, dataclasses.replace(options, **unset)
