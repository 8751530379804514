"""The models that train together: how the user asks for one, and what is known of it once it is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.recipes import RECIPES_BY_KIND, ModelKind
from feature_gan_kd.config.settings import PEER_SETTINGS
from feature_gan_kd.config.validation import show
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.models.tapped_model import Layer
from feature_gan_kd.utils.errors import UserError, closest

DROP_RATES = ("drop_rate", "drop_path_rate")
"""Settings that belong to a training: timm builds a model with them, but a published one is built without."""

SHARED_ARGS = frozenset({"num_classes", "in_chans", "pretrained", "img_size"})
"""Arguments for timm that the distiller and the peer give it."""


class Peer:
    """One of the models that train together, with what it has for itself; the run's settings decide the rest.

    Args:
        model: a timm name (also `hf-hub:` and `local-dir:`), or a torch module.
        pretrained: whether it starts from trained weights; None as the other models.
        frozen: whether it only teaches.
        feature_layers: where its feature maps are taken: a layer or a list of them; None as the other models.
        model_args: keyword arguments for timm, such as `{"global_pool": "max"}`.
        **settings: values of its own for settings of the run: optimizer, lr, momentum, betas, eps, weight_decay,
            decay_norms, layer_decay, head_lr_scale, head_init_scale, clip_grad, drop_rate, drop_path_rate,
            freeze_backbone, grad_checkpointing.

    Raises:
        UserError: for a setting that does not exist or that all models share, or a bad value.
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        pretrained: bool | None = None,
        frozen: bool = False,
        feature_layers: Layer | Sequence[Layer] | None = None,
        model_args: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        settings = check_peer_settings(settings)
        if model_args and not isinstance(model, str):
            raise UserError(f"model_args: {type(model).__name__} is a module already: build it with {show(model_args)}")
        shared = sorted(SHARED_ARGS & (model_args or {}).keys())
        if shared:
            raise UserError(f"model_args: {shared[0]} is an argument of the distiller or the peer: give it there")
        self.model = model
        self.pretrained = pretrained
        self.frozen = frozen
        self.feature_layers = feature_layers
        self.model_args = dict(model_args or {})
        self.settings = settings

    def __repr__(self) -> str:
        name = self.model if isinstance(self.model, str) else type(self.model).__name__
        return f"Peer({', '.join([repr(name), *(f'{key}={value!r}' for key, value in self.settings.items())])})"


def check_peer_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Checks settings of one model, and returns them as JSON values.

    Raises:
        UserError: for a setting that does not exist or that all models share, or a bad value.
    """
    for name in settings:
        if name not in PEER_SETTINGS:
            shared = name in {spec.name for spec in dataclasses.fields(DistillConfig)}
            near = closest(name, list(PEER_SETTINGS))
            what = "is shared by all models: give it to the distiller" if shared else "is no setting of a peer"
            raise UserError(f"Peer: {name} {what}{f', the closest are {near}' if near and not shared else ''}")
    checked = DistillConfig(**settings).to_dict()
    return {name: checked[name] for name in settings}


@dataclass(frozen=True)
class PeerOptions:
    """What the user asks for, model by model.

    Attributes:
        models: names, modules or ready models.
        pretrained: whether each starts from trained weights.
        frozen: positions of those that only teach.
        feature_layers: in the notation of `OnlineAdversarialDistiller`.
        model_args: for timm, by model.
        settings: values of each one's own.
    """

    models: list[str | nn.Module | PeerModel]
    pretrained: list[bool]
    frozen: tuple[int, ...]
    feature_layers: Any
    model_args: list[dict[str, Any]]
    settings: list[Mapping[str, Any]]

    def architecture_args(self, config: DistillConfig) -> list[dict[str, Any]]:
        """For each model the keyword arguments for timm, with the rates of dropout where they are set; no default."""
        found = []
        for k, (args, settings) in enumerate(zip(self.model_args, self.settings, strict=True)):
            own = config.replace(**settings)
            rates = {} if k in self.frozen else {name: getattr(own, name) for name in DROP_RATES}
            found.append({**args, **{name: rate for name, rate in rates.items() if rate is not None}})
        return found


def resolve_peers(
    models: Sequence[Any], *, pretrained: bool, frozen: Collection[int], feature_layers: Any
) -> PeerOptions:
    """Combines what is said of all models with what each `Peer` says of itself.

    Args:
        models: see `OnlineAdversarialDistiller`.
        pretrained: see there.
        frozen: see there.
        feature_layers: see there.

    Raises:
        UserError: for one model in place of several, layers that are given twice, or a `frozen` that is no list.
    """
    if isinstance(models, (str, nn.Module, Peer, PeerModel)):
        raise UserError("models: one model is given, at least 2 are needed: name a peer for it to learn with")
    if isinstance(frozen, int):
        raise UserError(f"frozen: {frozen!r} is not allowed, expected a list of positions, as [{frozen}]")
    peers = {k: model for k, model in enumerate(models) if isinstance(model, Peer)}
    own_layers = {k: peer.feature_layers for k, peer in peers.items() if peer.feature_layers is not None}
    if own_layers:
        if isinstance(feature_layers, Mapping):
            twice = sorted(own_layers.keys() & feature_layers.keys())
            others = dict(feature_layers)
        else:
            twice = []
            others = {} if feature_layers is None else dict.fromkeys(range(len(models)), feature_layers)
        if twice:
            raise UserError(f"feature_layers: those of model {twice[0]} are given twice: leave one of them out")
        feature_layers = {**others, **own_layers}
    asked = [peers.get(k) for k in range(len(models))]
    return PeerOptions(
        [model.model if isinstance(model, Peer) else model for model in models],
        [pretrained if one is None or one.pretrained is None else one.pretrained for one in asked],
        tuple(sorted({*frozen, *(k for k, peer in peers.items() if peer.frozen)})),
        feature_layers,
        [{} if one is None else one.model_args for one in asked],
        [
            (model.settings if isinstance(model, PeerModel) else {}) if one is None else one.settings
            for model, one in zip(models, asked, strict=True)
        ],
    )


@dataclass
class PeerModel:
    """One of the models that train together, with what is needed to build it again.

    Attributes:
        module: the module itself.
        name: a short one, for folders and messages.
        architecture: timm's name, or the class of a module that is not timm's.
        pretrained: whether it starts from trained weights.
        model_args: arguments that timm needs to build it again, besides classes and channels.
        image_size: side in pixels of its images.
        channels: of its images; a grey one is repeated in them.
        normalisation: of the images that its weights were trained on, if it is pretrained; None takes that of the data.
        settings: those of the run's settings that it has a value of its own for.
        given_name: by which the user asked for it, which is not part of its `description`; None for a module.
        has_new_classifier: whether its classifier was just initialised, by us; of modules that is not known.
        classes: size of its logits, 0 where it does not classify; None before that was found.
        input_note: in what its first layer differs from the trained one, for the user; None if in nothing.
    """

    module: nn.Module
    name: str
    architecture: str
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)
    image_size: int = 0
    channels: int = 0
    normalisation: Normalisation | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    given_name: str | None = None
    has_new_classifier: bool = False
    classes: int | None = None
    input_note: str | None = None

    @property
    def kind(self) -> ModelKind:
        """By which a recipe chooses the optimiser."""
        has_batch_norm = any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in self.module.modules())
        return "batch-norm" if has_batch_norm else "other"

    def own_config(self, config: DistillConfig) -> DistillConfig:
        """The settings in force for this model: its own, else those of the run."""
        return config.replace(**self.settings)

    @property
    def timm_cfg(self) -> dict[str, Any]:
        """timm's `pretrained_cfg` (`input_size`, `mean`, `std`, `license`, ...); empty for other modules."""
        cfg = getattr(self.module, "pretrained_cfg", None)
        return dict(cfg) if isinstance(cfg, dict) else {}

    def stated_normalisation(self, channels: int) -> Normalisation | None:
        """Returns the normalisation in `timm_cfg`; None where it states none.

        Each channel gets the average of the stated values where these are of another number.
        """
        if not {"mean", "std"} <= self.timm_cfg.keys():
            return None
        return Normalisation(*(tuple(self.timm_cfg[key]) for key in ("mean", "std"))).of_channels(channels)

    @property
    def fixed_size(self) -> int | None:
        """The only side in pixels that the model takes; None where it takes others."""
        patches: Any = getattr(self.module, "patch_embed", None)
        size = getattr(patches, "img_size", None)
        if self.timm_cfg.get("fixed_input_size"):
            return int(size[-1]) if size else int(self.timm_cfg["input_size"][-1])
        return None

    @property
    def weights_origin(self) -> dict[str, Any]:
        """Where its pretrained weights come from, and their licence, as timm names them; None each where unknown."""
        return {key: self.timm_cfg.get(key) if self.pretrained else None for key in ("hf_hub_id", "license")}

    def description(self) -> dict[str, Any]:
        """Returns what is needed to build the model again, as JSON values."""
        return {
            "architecture": self.architecture,
            "name": self.name,
            "pretrained": self.pretrained,
            "origin": self.weights_origin,
            "model_args": self.model_args,
            "image_size": self.image_size,
            "channels": self.channels,
            "normalisation": self.normalisation and dataclasses.asdict(self.normalisation),
            "settings": dict(self.settings),
            "classes": self.classes,
        }

    @classmethod
    def from_description(cls, module: nn.Module, description: Mapping[str, Any]) -> PeerModel:
        """Restores a model from its `description`, after JSON, and its module, which the caller has built."""
        stated = description["normalisation"]
        own = stated and Normalisation(tuple(stated["mean"]), tuple(stated["std"]))
        known = {key: value for key, value in description.items() if key != "origin"}
        model = cls(module, **{**known, "normalisation": own})
        if model.pretrained and model.timm_cfg:
            # The module was built without weights, so its config names the weights that timm would have loaded.
            origin = description.get("origin") or {"hf_hub_id": None, "license": None}
            model.module.pretrained_cfg = {**model.timm_cfg, **origin}  # type: ignore[assignment]
        return model


def recipe_settings(
    config: DistillConfig, model: PeerModel, given: Mapping[str, Any], *, fine_tuned: bool = False
) -> dict[str, Any]:
    """What the recipe gives to one model for itself, besides what it gives to all.

    Args:
        config: of the run; what the user gave to all models counts more than the recipe.
        model: that learns.
        given: what the user gave to this model, which counts most.
        fine_tuned: whether it gets the optimiser of finetune, whatever the recipe of the run.
    """
    named = given.get("optimizer") or (config.optimizer if "optimizer" in config.given else None)
    is_sgd = named is not None and ("sgd" in named or named in ("momentum", "nesterov"))
    kind: ModelKind = model.kind if named is None else "batch-norm" if is_sgd else "other"
    recipe = "finetune" if fine_tuned else config.recipe
    own = RECIPES_BY_KIND.get(recipe, {}).get(kind, {})
    return {name: value for name, value in own.items() if name not in config.given}


def resolve_recipe(config: DistillConfig, learners: Iterable[PeerModel]) -> DistillConfig:
    """The settings with the recipe that `auto` means: finetune where all learners start from trained weights.

    Without labels it is unlabeled. Of a mix it is paper, and those with trained weights get the optimiser of finetune,
    see `recipe_settings`.

    Args:
        config: of the run.
        learners: the models that learn.
    """
    if config.recipe != "auto":
        return config
    if not config.labels:
        return config.replace(recipe="unlabeled")
    return config.replace(recipe="finetune" if all(model.pretrained for model in learners) else "paper")
