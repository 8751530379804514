"""A run as a run file: what `config.json` says of models, topology, data and settings."""

from __future__ import annotations

from typing import Any

from feature_gan_kd.config.run_file import VERSION
from feature_gan_kd.models.peer import SHARED_ARGS
from feature_gan_kd.training.peer_group import PeerGroup
from feature_gan_kd.training.provenance import names_of_data


def describe_run(
    group: PeerGroup, data: tuple[Any, Any, Any], license: str | None, train_transform: Any = None
) -> dict[str, Any]:
    """The run file of which the same models, data and settings come, as JSON values.

    A model that was given as a module has null as its `model`, and data that were objects, or were changed by a
    transform of the user's own, are left out: a file cannot hold them.

    Args:
        group: the models.
        data: training, evaluation and unlabelled data, as given to `fit`.
        license: as given to `fit`.
        train_transform: as given to `fit`.
    """
    described = group.description()
    edges, models = described.pop("edges"), described.pop("models")
    for model, one in zip(group.peers, models, strict=True):
        one["model_args"] = {key: value for key, value in one["model_args"].items() if key not in SHARED_ARGS}
        one |= one.pop("settings")
        one["model"] = model.given_name
    names = names_of_data(*data) if train_transform is None else None
    kept = {} if names is None else dict(zip(("train_data", "eval_data", "unlabeled_data"), names, strict=True))
    return {"version": VERSION, "models": models, "topology": edges, **described, **kept, "license": license}
