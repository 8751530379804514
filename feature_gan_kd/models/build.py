"""The user's models: timm names are built, modules are taken as they are."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn

import feature_gan_kd.models  # noqa: F401  (registers the CIFAR models with timm)
from feature_gan_kd.models.input_adapter import Normalisation
from feature_gan_kd.models.weights import tensor_with_nan
from feature_gan_kd.utils.errors import UserError, closest, reason
from feature_gan_kd.utils.offline import offline_without_internet

IMAGENET_SIZE = 224


@dataclass
class PeerModel:
    """One model as the user gave it.

    Attributes:
        module: the module itself.
        name: a short one for folders and lines.
        architecture: timm's name, or the class of a module that is not timm's.
        pretrained: whether it began from trained weights.
        model_args: what timm must be told, besides classes and channels, to build it again.
        image_size: side in pixels of the images that it is given.
        normalisation: that of its training, if it is pretrained; None takes that of the data.
    """

    module: nn.Module
    name: str
    architecture: str
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)
    image_size: int = 0
    normalisation: Normalisation | None = None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """timm's facts on the images it expects (`input_size`, `mean`, `std`, ...); empty for other modules."""
        cfg = getattr(self.module, "pretrained_cfg", None)
        return dict(cfg) if isinstance(cfg, dict) else {}

    def stated_normalisation(self, channels: int = 3) -> Normalisation:
        """What timm states, else none (mean 0, standard deviation 1); for other channels the average of its own."""
        own = (tuple(self.preprocessing.get(key, (none,) * channels)) for key, none in (("mean", 0.0), ("std", 1.0)))
        return Normalisation(*(one if len(one) == channels else (sum(one) / len(one),) * channels for one in own))

    @property
    def fixed_size(self) -> int | None:
        """The only side in pixels that it takes; None where it takes others."""
        patches: Any = getattr(self.module, "patch_embed", None)
        size = getattr(patches, "img_size", None)
        if self.preprocessing.get("fixed_input_size"):
            return int(size[-1]) if size else int(self.preprocessing["input_size"][-1])
        return None

    @property
    def origin(self) -> dict[str, Any]:
        """Where its weights come from and their licence, as their card names them; None each where they do not say."""
        return {key: self.preprocessing.get(key) if self.pretrained else None for key in ("hf_hub_id", "license")}

    def description(self) -> dict[str, Any]:
        """What is needed to build it again, as JSON values."""
        return {
            "architecture": self.architecture,
            "name": self.name,
            "pretrained": self.pretrained,
            "origin": self.origin,
            "model_args": self.model_args,
            "image_size": self.image_size,
            "normalisation": self.normalisation and dataclasses.asdict(self.normalisation),
        }

    @classmethod
    def described(cls, module: nn.Module, description: Mapping[str, Any]) -> PeerModel:
        """The inverse of `description`, after JSON, for the module it was said of."""
        stated = description["normalisation"]
        own = stated and Normalisation(tuple(stated["mean"]), tuple(stated["std"]))
        known = {key: value for key, value in description.items() if key != "origin"}
        model = cls(module, **{**known, "normalisation": own})
        if model.pretrained and model.preprocessing:  # built without weights, it states those that timm would take
            origin = description.get("origin") or {"hf_hub_id": None, "license": None}
            model.module.pretrained_cfg = {**model.preprocessing, **origin}  # type: ignore[assignment]
        return model


def build_models(
    models: Sequence[str | nn.Module | PeerModel],
    *,
    num_classes: int | None,
    in_chans: int,
    pretrained: bool,
    image_size: int | None,
    seed: int,
) -> list[PeerModel]:
    """Builds what was named and takes what was given.

    Args:
        models: timm names (also `hf-hub:` and `local-dir:`), modules, or models that are described already.
        num_classes: of models built by name; None keeps each one's own.
        in_chans: input channels of models built by name.
        pretrained: load trained weights into models built by name.
        image_size: side of the images in pixels, where a model takes any; None keeps the own one of pretrained
            models and gives the others that of the first.
        seed: of the first weights; model k's are a function of (seed, k).

    Raises:
        UserError: for fewer than two models, one module twice or a tensor that two share, an unknown name (the
            closest are given), what is neither name nor module, weights that cannot be had or hold NaN, a model that
            is compiled, spread over devices, without a classifier or does not take images of that size, or fewer than
            two classes.
    """
    if isinstance(models, (str, nn.Module)) or len(models) < 2:
        raise UserError("models: one model is given, at least 2 are needed: name a peer for it to learn with")
    if num_classes is not None and (type(num_classes) is not int or num_classes < 2):
        raise UserError(f"num_classes: {num_classes!r} is not allowed, expected a whole number of at least 2")
    built = []
    for index, given in enumerate(models):
        if not isinstance(given, (str, nn.Module, PeerModel)):
            raise UserError(f"models: {type(given).__name__} at place {index}, expected a name of timm's or a module")
        if isinstance(given, PeerModel):
            built.append(given)
        elif isinstance(given, nn.Module):
            while isinstance(given, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
                given = given.module
            cfg: Any = getattr(given, "pretrained_cfg", None)
            architecture = (cfg.get("architecture") if isinstance(cfg, dict) else None) or type(given).__name__
            built.append(PeerModel(given, _slug(architecture), architecture, model_args=_model_args(given)))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 1009 + index)
                built.append(_build(given, num_classes, in_chans, pretrained, image_size))
    _check_nothing_shared(built)
    _check_state(built)
    first = built[0].preprocessing.get("input_size", (IMAGENET_SIZE,))[-1]
    for model in built:
        own = model.preprocessing["input_size"][-1] if model.pretrained and model.preprocessing else first
        model.image_size = model.image_size or int(model.fixed_size or image_size or own)
        if getattr(model.module, "num_classes", None) == 0:
            remedy = "name another" if num_classes else "give num_classes, or name another"
            raise UserError(f"models: {model.name} has no classifier, it only encodes: {remedy}")
    return built


def _check_nothing_shared(models: Sequence[PeerModel]) -> None:
    """Raises UserError where two models are one module, or share a tensor: each must learn by itself."""
    owner: dict[int, int] = {}
    for k, model in enumerate(models):
        for name, tensor in (*model.module.named_parameters(), *model.module.named_buffers()):
            other = owner.setdefault(id(tensor), k)
            if other != k and models[other].module is model.module:
                raise UserError(
                    "models: the same module stands twice: give each place a model of its own (copy.deepcopy)"
                )
            if other != k:
                raise UserError(f"models: models {other} and {k} share {name!r}: give each its own (copy.deepcopy)")


def _check_state(models: Sequence[PeerModel]) -> None:
    """Raises UserError where a model's parameters are spread over devices, or it is compiled by the user.

    A compiled forward pass cannot be walked back twice, and may go past hooks: it is for `compile` to compile it.
    """
    for k, model in enumerate(models):
        devices = sorted({str(parameter.device) for parameter in model.module.parameters()})
        if len(devices) > 1:
            raise UserError(
                f"models: model {k} ({model.name}) has parameters on {' and '.join(devices)}: put it on one device"
            )
        for module in model.module.modules():
            if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
                raise UserError(f"models: model {k} ({model.name}) is compiled: give it as it was, and set compile")


def _build(name: str, num_classes: int | None, in_chans: int, pretrained: bool, image_size: int | None) -> PeerModel:
    local = ":" in name
    bare = name.split(".")[0]
    if not local and not timm.is_model(bare):
        near = closest(bare, timm.list_models())
        raise UserError(f"models: timm has no model {name!r}, the closest are {near or 'listed by timm.list_models()'}")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    module = build_architecture(name, pretrained=pretrained, in_chans=in_chans, **classes)
    cfg: Any = module.pretrained_cfg
    if image_size is not None and cfg.get("fixed_input_size") and cfg["input_size"][-1] != image_size:
        module = build_architecture(name, pretrained=pretrained, in_chans=in_chans, **classes, img_size=image_size)
    architecture = cfg.get("architecture") or bare
    model = PeerModel(module, _slug(architecture), architecture, pretrained or local, _model_args(module))
    model.normalisation = model.stated_normalisation(in_chans) if model.pretrained else None
    return model


def _model_args(module: nn.Module) -> dict[str, Any]:
    """What timm was told to build a module, besides classes and channels, as far as JSON can hold it."""
    args = dict(getattr(module, "_model_args", {}))
    plain = (str, int, float, bool, tuple, list, type(None))
    return {k: v for k, v in args.items() if k not in ("num_classes", "in_chans") and isinstance(v, plain)}


def build_architecture(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model of timm's.

    Args:
        name: timm's name; `hf-hub:` and `local-dir:` names always come with their weights.
        pretrained: with its trained weights.
        **kwargs: for timm.

    Raises:
        UserError: where timm cannot build it so, or its weights cannot be had.
    """
    trained = pretrained or ":" in name
    with offline_without_internet() if trained else contextlib.nullcontext(False) as offline:
        try:
            module: nn.Module = timm.create_model(name, pretrained=trained, **kwargs)
        except Exception as error:  # a published model's files are free text, on which timm fails in every way
            if not (trained or isinstance(error, (TypeError, RuntimeError, ValueError, KeyError, AssertionError))):
                raise
            raise UserError(_not_built(name, error, list(kwargs), offline)) from None
    bad = tensor_with_nan(module.state_dict()) if trained else None
    if bad is not None:
        raise UserError(f"models: the weights of {name} hold NaN in {bad!r}: name a model that did not diverge")
    return module


def _not_built(name: str, error: Exception, options: list[str], offline: bool) -> str:
    """Why timm gave no model of that name, and what to do."""
    said = reason(error, 300)
    if name.startswith("local-dir:"):
        return f"models: {name} could not be read ({said}): name the folder of a published model"
    if isinstance(error, OSError):
        said = "there is no internet access, and they are not in the hub's cache" if offline else said
        return (
            f"models: the weights of {name} could not be fetched ({said}): start without them, or name a folder with "
            "local-dir:"
        )
    if isinstance(error, TypeError):
        return f"models: {name} does not take {', '.join(options)} ({said}): choose another size or model"
    return f"models: {name} could not be built ({said}): check the name"


def check_description(description: Mapping[str, Any]) -> None:
    """Looks through a `PeerModel.description` that comes from a file before a model is built from it.

    Raises:
        UserError: where it would write outside a folder, or have timm read or fetch anything.
    """
    name, architecture, args = (description[key] for key in ("name", "architecture", "model_args"))
    if _slug(str(name)) != name:
        raise UserError(f"checkpoint: {name!r} is no name of a model but a path: use a checkpoint that you trust")
    loading = sorted(args.keys() & inspect.signature(timm.create_model).parameters.keys())
    if ":" in str(architecture) or loading:
        what = f"the argument {loading[0]!r}" if loading else repr(architecture)
        raise UserError(f"checkpoint: {what} would load other files: use a checkpoint that you trust")


def place(models: Sequence[PeerModel], device: torch.device, *, channels_last: bool) -> None:
    """Brings every model to a device and into its memory format.

    Raises:
        UserError: for a model on the meta device: it has no weights.
    """
    for k, model in enumerate(models):
        if any(parameter.is_meta for parameter in model.module.parameters()):
            raise UserError(f"models: model {k} ({model.name}) is on the meta device: give it weights first")
        model.module.to(device)
        if channels_last:
            model.module.to(memory_format=memory_format_for(model.module, device, channels_last=True))


def memory_format_for(module: nn.Module, device: torch.device, channels_last: bool) -> torch.memory_format:
    """Channels-last where it is wanted and safe.

    On CPU the backward pass of a strided 1x1 convolution with fewer than 16 input channels writes outside its
    memory in that order (seen in torch 2.15: FastViT's stem ends the process).
    """
    unsafe = device.type == "cpu" and any(
        isinstance(one, nn.Conv2d) and one.kernel_size == (1, 1) and max(one.stride) > 1 and one.in_channels < 16
        for one in module.modules()
    )
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "model"
