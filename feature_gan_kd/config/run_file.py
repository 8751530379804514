"""A run file: models, topology, data and settings of a run in YAML, TOML or JSON; `config.json` of a run is one."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from feature_gan_kd.config.distill_config import DistillConfig, setting_types
from feature_gan_kd.config.document import Document, Place, read_document
from feature_gan_kd.config.fields import bounded
from feature_gan_kd.config.methods import METHODS
from feature_gan_kd.config.recipes import RECIPES, RECIPES_BY_KIND
from feature_gan_kd.config.settings import PEER_SETTINGS
from feature_gan_kd.config.validation import ValueType, check_value, show
from feature_gan_kd.utils.errors import UserError, closest

VERSION = 1
"""Of the format. A change after which an older file would mean something else raises it."""


@dataclass(frozen=True, kw_only=True)
class DistillerKeys:
    """Arguments of `OnlineAdversarialDistiller` that are plain values."""

    num_classes: int | None = bounded(None, at_least=2)
    """Number of classes (default: that of the data)."""
    in_chans: Literal[1, 3] = 3
    """Channels of the images."""
    pretrained: bool = False
    """Start from trained weights, all models that do not say otherwise."""
    frozen: tuple[int, ...] = bounded((), at_least=0)
    """Positions of models that only teach."""


@dataclass(frozen=True, kw_only=True)
class FitKeys:
    """Arguments of `fit`."""

    train_data: str | None = None
    """Name on the hub, local folder or file (default: the bundled digits)."""
    eval_data: str | None = None
    """Images to evaluate on (default: the evaluation split of train_data, else a fifth of the training images)."""
    unlabeled_data: str | None = None
    """Images without labels to train on besides: name on the hub, local folder or file (default: none)."""
    output_dir: str | None = None
    """Folder to write the run to."""
    resume: bool = False
    """Continue from the newest checkpoint in output_dir, if there is one."""
    log_with: tuple[str, ...] = ()
    """Trackers that log every metric: tensorboard, wandb or another of Accelerate's."""
    progress: bool = True
    """Print notes on the data, and the progress."""
    license: str | None = None
    """Licence of the published weights, as the hub writes it (default: that of pretrained weights)."""


@dataclass(frozen=True, kw_only=True)
class PeerKeys:
    """Arguments of `Peer` that are plain values; its settings come on top."""

    model: str | None = None
    """timm's name, or a local-dir: or hf-hub: name. Null stands for a module, which a file cannot hold."""
    pretrained: bool | None = None
    """Start from trained weights (default: as all models)."""
    frozen: bool = False
    """Only teach."""


RECORDED = ("image_size", "taps", "data", "device", "processes", "command", "versions")
"""What the `config.json` of a run states besides: facts, which are not read."""
RECORDED_OF_MODEL = ("architecture", "name", "origin", "image_size", "channels", "normalisation", "classes", "tensors")
"""The same of a model."""
_NOT_A_NAME = "expected a layer's name, the number of a stage, or a list of them"


@dataclass(frozen=True)
class RunFile:
    """What a run file says; only what it says, no defaults.

    Attributes:
        path: of the file.
        arguments: of the distiller, without `models` and `config`.
        peers: the arguments of `Peer` for each model; None where the file names no models.
        settings: under `config`.
        fit: arguments of `fit`.
        is_record: whether a run wrote it, with every setting in force.
    """

    path: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    peers: list[dict[str, Any]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    is_record: bool = False

    def settings_with(self, changes: Mapping[str, Any], *, other_models: bool = False) -> dict[str, Any]:
        """The settings, with changes on top.

        A run records what its method and its recipe had preset. Those values make room for another method or recipe,
        and for what the recipe gives to other models; what had been set apart from them stays, as all that a person
        wrote.
        """
        kept = dict(self.settings)
        recipes = [*RECIPES.values(), *(own for kinds in RECIPES_BY_KIND.values() for own in kinds.values())]
        for name, presets in (("method", [*METHODS.values()]), ("recipe", recipes)):
            is_replaced = name == "recipe" and other_models and self.is_record and name in kept
            if is_replaced or self._gets_another(name, changes):
                before = DistillConfig(**{name: kept[name]})
                for preset in {key for one in presets for key in one}:
                    if preset in kept and kept[preset] == getattr(before, preset):
                        del kept[preset]
        for one, other in (("warmup_epochs", "warmup_fraction"), ("warmup_fraction", "warmup_epochs")):
            if one in changes:  # two names of one thing
                kept.pop(other, None)
        return {**kept, **changes}

    def without_old_models(self, values: Mapping[str, Any], *, other_models: bool, labels: bool) -> dict[str, Any]:
        """The values that are not about models or classes which are given up.

        Args:
            values: arguments of the distiller and of `fit`, by name.
            other_models: whether other models take the place of the file's: what stood for single ones by their
                position goes with them.
            labels: whether the models learn from labels; the number of classes goes with labels that are given up.
        """
        gone = {"frozen", "feature_layers"} if other_models else set()
        if other_models and not isinstance(values.get("topology"), str):
            gone.add("topology")
        if not labels and self.settings.get("labels", True):
            gone.add("num_classes")
        return {name: value for name, value in values.items() if name not in gone}

    def _gets_another(self, name: str, changes: Mapping[str, Any]) -> bool:
        """Whether a recorded method or recipe is replaced by another one."""
        recorded = self.settings.get(name)
        return self.is_record and recorded is not None and changes.get(name, recorded) != recorded

    def peers_with(self, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The arguments of `Peer`, without those that `changes` now says for all models.

        What the recipe of a recorded run had preset for single models makes room for another recipe.

        Raises:
            UserError: for a model that the file cannot hold.
        """
        for k, peer in enumerate(self.peers or []):
            if peer.get("model") is None:
                raise UserError(
                    f"{self.path}: model {k} is no name but a module, which a file cannot hold: give the models"
                )
        kinds = RECIPES_BY_KIND.get(self.settings.get("recipe", "auto"), {})
        presets = [*kinds.values()] if self._gets_another("recipe", changes) else []
        return [
            {
                key: value
                for key, value in peer.items()
                if key not in changes and not any(key in own and own[key] == value for own in presets)
            }
            for peer in self.peers or []
        ]

    def check_data(self, changed: Collection[str]) -> None:
        """Raises UserError where the run was trained on an object, which a file cannot hold, and none replaces it."""
        if self.is_record and "train_data" not in {*self.fit, *changed}:
            raise UserError(
                f"{self.path}: its run was trained on an object, or with a transform of one's own, which a file cannot "
                "hold: give the training data"
            )


def read_run_file(path: Path) -> RunFile:
    """Reads and checks a run file.

    Raises:
        UserError: where it cannot be read, for another version of the format, an unknown key or a value that is not
            allowed; the line of the file is named.
    """
    document = read_document(path)
    values, is_record = document.values, "versions" in document.values
    version = values.get("version", VERSION)
    if type(version) is not int or version != VERSION:
        raise document.error(
            ("version",),
            f"version {show(version)} is another one, this program reads {VERSION}: leave it out, or adapt the file",
        )
    own = [spec.name for cls in (DistillerKeys, FitKeys) for spec in dataclasses.fields(cls)]
    known = ["version", "models", "feature_layers", "topology", "config", *own]
    _check_keys(document, (), values, [*known, *(RECORDED if is_record else ())])
    config = values.get("config", {})
    if not isinstance(config, Mapping):
        raise document.error(
            ("config",), f"config: {show(config)} is not allowed, expected names of settings and values"
        )
    _check_keys(document, ("config",), config, list(setting_types()))
    settings = _check_settings(document, ("config",), config)
    arguments = _check_fields(document, (), values, DistillerKeys)
    if "feature_layers" in values:
        arguments["feature_layers"] = _layers_of_all(document, values["feature_layers"])
    if "topology" in values:
        arguments["topology"] = _topology(document, values["topology"])
    peers = _peers(document, values["models"], is_record) if "models" in values else None
    return RunFile(path, arguments, peers, settings, _check_fields(document, (), values, FitKeys), is_record)


def _check_keys(document: Document, place: Place, values: Mapping[str, Any], known: Collection[str]) -> None:
    for key in values:
        if key not in known:
            where = f"{place[0]}: " if place else ""
            if not place and key in setting_types():
                raise document.error((key,), f"{key} is a setting: put it below config")
            near = closest(key, list(known))
            raise document.error((*place, key), f"{where}there is no key {key!r}{near and f', the closest are {near}'}")


def _check_fields(document: Document, place: Place, values: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """The values of a dataclass's fields that are given."""
    hints = typing.get_type_hints(cls)
    return {
        spec.name: _check(
            document, (*place, spec.name), values[spec.name], ValueType.from_hint(hints[spec.name]), spec.metadata
        )
        for spec in dataclasses.fields(cls)
        if spec.name in values
    }


def _check_settings(document: Document, place: Place, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings that are given."""
    bounds = {spec.name: spec.metadata for spec in dataclasses.fields(DistillConfig)}
    types = setting_types()
    return {name: _check(document, (*place, name), value, types[name], bounds[name]) for name, value in values.items()}


def _check(document: Document, place: Place, value: Any, expected: ValueType, bounds: Mapping[str, Any]) -> Any:
    numbers = {key: bound for key, bound in bounds.items() if key != "per_peer"}
    try:
        return check_value(str(place[-1]), value, expected, numbers)
    except UserError as error:
        raise document.error(place, str(error)) from None


def _layers_of(document: Document, place: Place, value: Any) -> str | int | list[str | int]:
    """The layers of one model, or those of every model alike."""
    layers = value if isinstance(value, list) else [value]
    if not layers or not all(type(one) in (str, int) for one in layers):
        raise document.error(place, f"feature_layers: {show(value)} is not allowed, {_NOT_A_NAME}")
    return typing.cast("str | int | list[str | int]", value)


def _layers_of_all(document: Document, value: Any) -> Any:
    place: Place = ("feature_layers",)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return _layers_of(document, place, value)
    wrong = next((key for key in value if not str(key).isdecimal()), None)
    if wrong is not None:
        raise document.error((*place, wrong), f"feature_layers: {wrong!r} is not allowed, expected positions of models")
    return {int(key): _layers_of(document, (*place, key), layers) for key, layers in value.items()}


def _topology(document: Document, value: Any) -> str | list[tuple[int, int]]:
    """A topology's name, or edges."""
    if isinstance(value, str):
        return value
    edges = value if isinstance(value, list) else [value]
    for k, edge in enumerate(edges):
        if not isinstance(edge, list) or len(edge) != 2 or not all(type(end) is int for end in edge):
            raise document.error(
                ("topology", k),
                f"topology: {show(edge)} is not allowed, expected a name or a list of [source, learner]",
            )
    return [(source, learner) for source, learner in edges]


def _peers(document: Document, value: Any, is_record: bool) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise document.error(("models",), f"models: {show(value)} is not allowed, expected a list of models")
    return [_peer(document, k, entry, is_record) for k, entry in enumerate(value)]


def _peer(document: Document, k: int, entry: Any, is_record: bool) -> dict[str, Any]:
    """The arguments of `Peer` for one model: a name, or names and values."""
    place: Place = ("models", k)
    if isinstance(entry, str):
        return {"model": entry}
    if not isinstance(entry, Mapping):
        raise document.error(place, f"models: {show(entry)} is not allowed, expected a name, or arguments of a Peer")
    if "model" not in entry:
        raise document.error(place, f"models: model {k} has no name, expected the key model")
    plain = [spec.name for spec in dataclasses.fields(PeerKeys)]
    known = [*plain, "feature_layers", "model_args", *sorted(PEER_SETTINGS), *(RECORDED_OF_MODEL if is_record else ())]
    shared = next((key for key in entry if key in setting_types() and key not in known), None)
    if shared is not None:
        raise document.error((*place, shared), f"{shared} is shared by all models: put it below config")
    _check_keys(document, place, entry, known)
    found = _check_fields(document, place, entry, PeerKeys)
    found |= _check_settings(document, place, {key: one for key, one in entry.items() if key in PEER_SETTINGS})
    if entry.get("feature_layers") is not None:
        found["feature_layers"] = _layers_of(document, (*place, "feature_layers"), entry["feature_layers"])
    args = entry.get("model_args")
    if args is not None and not isinstance(args, Mapping):
        raise document.error(
            (*place, "model_args"), f"model_args: {show(args)} is not allowed, expected arguments for timm"
        )
    return found | ({"model_args": dict(args)} if args else {})
