"""`train --config FILE`: what a run file says, as if it had been typed before the options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_gan_kd.cli.arguments import Given, Own
from feature_gan_kd.config.distill_config import setting_types
from feature_gan_kd.utils.errors import UserError

OPTION_NAMES = {"train_data": "data", "unlabeled_data": "unlabeled"}
"""Arguments of `fit` whose options have other names."""


def add_run_file(given: Given, own: Own) -> tuple[Given, Own]:
    """Adds what the run file says that `given` names; what was typed goes before it.

    What was typed for all models replaces what the file says for single ones, and `--models` all that it says of them.

    Args:
        given: typed values by the name of their option.
        own: typed values for single models.

    Returns:
        The same two, with those of the file.

    Raises:
        UserError: where the file cannot be used.
    """
    if given.get("config") is None:
        return given, own
    from feature_gan_kd.config.run_file import read_run_file

    file = read_run_file(Path(given["config"]))
    fit = {OPTION_NAMES.get(name, name): value for name, value in file.fit.items() if name != "progress"}
    file.check_data(["train_data"] if "data" in given else [])
    found: Given = {**file.arguments, **fit}
    if "output_dir" in found:
        found["output_dir"] = None if found["output_dir"] is None else Path(found["output_dir"])
    if file.fit.get("progress") is False:
        found["quiet"] = True
    found = {name: value for name, value in found.items() if name == "data" or value is not None}
    found = file.without_old_models(found, other_models="models" in given, labels=given.get("labels", True))
    layers = found.pop("feature_layers", None)
    if "models" not in given and file.peers is not None:
        peers = file.peers_with(given)
        found["models"] = tuple(peer.pop("model") for peer in peers)
        own_layers = {k: peer.pop("feature_layers") for k, peer in enumerate(peers) if "feature_layers" in peer}
        layers = _layers_by_model(layers, own_layers, len(peers))
        learners_only = [k for k, peer in enumerate(peers) if peer.pop("frozen", False)]
        found["frozen"] = tuple(sorted({*found.get("frozen", ()), *learners_only}))
        by_position = dict(enumerate(peers))
        own = {k: {**by_position.get(k, {}), **own.get(k, {})} for k in sorted({*by_position, *own})}
        own = {k: values for k, values in own.items() if values}
    found["feature_layers"] = _layer_words(layers)
    typed = {name: given[name] for name in given if name in setting_types()}
    return {**found, **file.settings_with(typed, other_models="models" in given), **given}, own


def _layers_by_model(common: Any, own: Mapping[int, Any], count: int) -> Any:
    """The layers by position, if a model has layers of its own; as they are if none has."""
    if not own:
        return common
    if isinstance(common, Mapping):
        twice = sorted(common.keys() & own.keys())
        if twice:
            raise UserError(f"feature_layers: those of model {twice[0]} are given twice: leave one of them out")
        return {**common, **own}
    return {**({} if common is None else dict.fromkeys(range(count), common)), **own}


def _layer_words(layers: Any) -> tuple[str, ...]:
    """The layers as `--feature-layers` takes them."""
    if layers is None:
        return ()
    if isinstance(layers, Mapping):
        return tuple(f"{k}:{layer}" for k, own in layers.items() for layer in (own if isinstance(own, list) else [own]))
    return tuple(map(str, layers if isinstance(layers, list) else [layers]))
