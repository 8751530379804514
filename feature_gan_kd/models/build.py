"""The user's models: builds timm names, takes modules as they are, and checks both."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import feature_gan_kd.models  # noqa: F401  (registers the CIFAR models with timm)
from feature_gan_kd.models.grey_input import averaged_note, differing_layers, fold_channels, takes_colours
from feature_gan_kd.models.image_shape import check_square
from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.models.weights import tensor_with_nan
from feature_gan_kd.utils.errors import UserError, closest, reason
from feature_gan_kd.utils.offline import offline_without_internet

# Side in pixels of the images of a model that states none.
_DEFAULT_IMAGE_SIZE = 224


def build_models(
    models: Sequence[str | nn.Module | PeerModel],
    *,
    num_classes: int | None,
    labels: bool = True,
    in_chans: int,
    pretrained: Sequence[bool],
    image_size: int | None,
    seed: int,
    frozen: Collection[int] = (),
    model_args: Sequence[Mapping[str, Any]] = (),
) -> list[PeerModel]:
    """Builds the models that are named, and takes the modules that are given.

    Args:
        models: timm names (also `hf-hub:` and `local-dir:`), modules, or ready `PeerModel`s.
        num_classes: of models built by name; None keeps each one's own number. A frozen model keeps the classifier of
            its trained weights, or none.
        labels: whether labels are learned from. Otherwise, and without `num_classes`, models are built by name without
            a classifier.
        in_chans: input channels of models built by name. A frozen model keeps the 3 of its trained weights where the
            images have 1, which is then repeated.
        pretrained: for each model, whether trained weights are loaded into it, or a module has them.
        image_size: side of the images in pixels, for models that take any size; None keeps the size that pretrained
            models were trained with, and gives the others the size of the first.
        seed: of the initial weights; those of model k are a function of (seed, k).
        frozen: positions of models that only teach: a module among them has trained weights.
        model_args: for each model, keyword arguments for timm.

    Raises:
        UserError: for fewer than two models or classes, an unknown name (the line lists the closest), anything but
            names and modules, arguments for a module, weights that cannot be loaded or hold NaN, a model that cannot be
            trained, see `_check_trainable`, one made for rectangles, models that share a module or a tensor, and in
            `inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        raise UserError(
            "models: in inference_mode no model can be built that learns: build the distiller outside of that block"
        )
    if len(models) < 2:
        raise UserError("models: one model is given, at least 2 are needed: name a peer for it to learn with")
    if num_classes is not None and (type(num_classes) is not int or num_classes < 2):
        raise UserError(f"num_classes: {num_classes!r} is not allowed, expected a whole number of at least 2")
    headless = num_classes is None and not labels
    built = []
    for index, given in enumerate(models):
        args = model_args[index] if model_args else {}
        if isinstance(given, str):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 1009 + index)
                has_weights = pretrained[index] or ":" in given  # `hf-hub:` and `local-dir:` models
                wanted = 0 if headless else None if index in frozen and has_weights else num_classes
                model = _build_by_name(
                    given, wanted, in_chans, has_weights, image_size, args, learns=index not in frozen
                )
        else:
            model = _take_module(given, index, in_chans, args, trained=pretrained[index], frozen=index in frozen)
        model.channels = model.channels or in_chans
        built.append(model)
    _check_trainable(built)
    _check_nothing_shared(built)
    first_size = built[0].timm_cfg.get("input_size", (_DEFAULT_IMAGE_SIZE,))[-1]
    for k, model in enumerate(built):
        check_square(model.module, f"models: model {k} ({model.name})", model.image_size or image_size)
        own_size = model.timm_cfg["input_size"][-1] if model.pretrained and model.timm_cfg else first_size
        model.image_size = model.image_size or int(model.fixed_size or image_size or own_size)
        if getattr(model.module, "num_classes", None) == 0 and not headless and k not in frozen:
            remedy = "name another" if num_classes else "give num_classes, or name another"
            raise UserError(
                f"models: {model.name} has no classifier, it only encodes: {remedy}, or learn without labels "
                "(labels=False)"
            )
    return built


def _take_module(
    given: Any, index: int, channels: int, args: Mapping[str, Any], *, trained: bool, frozen: bool
) -> PeerModel:
    """Takes what was not given by name.

    Raises:
        UserError: for anything but a module or a ready model, and for arguments of timm for either.
    """
    if isinstance(given, PeerModel):
        return given  # with the arguments that it was built with
    if not isinstance(given, nn.Module):
        raise UserError(f"models: {type(given).__name__} at place {index}, expected a timm name or a module")
    if args:
        name = next(iter(args))
        raise UserError(f"{name}: model {index} is a module, which has its own: build it with {name}")
    return _from_module(given, channels, trained=trained or frozen, frozen=frozen)


def _from_module(module: nn.Module, channels: int, *, trained: bool, frozen: bool) -> PeerModel:
    """Describes a module that the user built; out of a wrapper for several processes, since ours reduces by itself.

    A trained module of timm keeps the normalisation that its config states.
    """
    while isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        module = module.module
    cfg: Any = getattr(module, "pretrained_cfg", None)
    architecture = (cfg.get("architecture") if isinstance(cfg, dict) else None) or type(module).__name__
    model = PeerModel(module, _folder_name(architecture), architecture, trained, _model_args(module))
    model.channels = 3 if frozen and channels == 1 and takes_colours(module, model.timm_cfg) else channels
    model.normalisation = model.stated_normalisation(model.channels) if trained else None
    model.input_note = averaged_note(model.timm_cfg, model.channels) if trained else None
    return model


def _check_nothing_shared(models: Sequence[PeerModel]) -> None:
    """Raises UserError where two models are one module, or share a tensor: each has an optimiser of its own."""
    owner: dict[int, int] = {}
    for k, model in enumerate(models):
        for name, tensor in (*model.module.named_parameters(), *model.module.named_buffers()):
            # Two parameters may have one memory, as after `load_state_dict(other, assign=True)`.
            memory = tensor.untyped_storage().data_ptr() if not is_lazy(tensor) and tensor.numel() else 0
            other = owner.setdefault(memory or id(tensor), k)
            if other != k and models[other].module is model.module:
                raise UserError("models: the same module is given twice: give each place its own model (copy.deepcopy)")
            if other != k:
                raise UserError(f"models: models {other} and {k} share {name!r}: give each its own (copy.deepcopy)")


def _check_trainable(models: Sequence[PeerModel]) -> None:
    """Raises UserError for a module that the method cannot train as it is.

    A compiled forward pass cannot run backward twice and may bypass hooks; the setting `compile` avoids both. Layers of
    a scripted module run outside Python, where no hook is called. Lazy parameters have no shape before the first
    forward pass, so no optimiser can hold them.
    """
    for k, model in enumerate(models):
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.module.modules()):
            raise UserError(
                f"models: model {k} ({model.name}) is scripted (torch.jit), so its feature maps cannot be taken: give "
                "the module as it was before scripting"
            )
        tensors = (*model.module.named_parameters(), *model.module.named_buffers())
        complex_one = next((name for name, one in model.module.named_parameters() if one.is_complex()), None)
        if complex_one is not None:
            raise UserError(
                f"models: model {k} ({model.name}) has a complex parameter {complex_one!r}, which cannot be trained "
                "here: hold its real and imaginary parts (torch.view_as_real)"
            )
        lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
        if lazy is not None:
            raise UserError(
                f"models: model {k} ({model.name}) has an uninitialised lazy tensor {lazy!r}: run one batch of images "
                "through it first"
            )
        inferring = next((name for name, tensor in tensors if not is_lazy(tensor) and tensor.is_inference()), None)
        if inferring is not None:
            raise UserError(
                f"models: model {k} ({model.name}) was built in inference_mode, so {inferring!r} cannot learn: build "
                "it outside of that block"
            )
        devices = sorted({str(parameter.device) for parameter in model.module.parameters()})
        if len(devices) > 1:
            raise UserError(
                f"models: model {k} ({model.name}) has parameters on {' and '.join(devices)}: put it on one device"
            )
        for module in model.module.modules():
            if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
                raise UserError(f"models: model {k} ({model.name}) is compiled: give it uncompiled, and set compile")


def _build_by_name(
    name: str,
    num_classes: int | None,
    in_chans: int,
    has_weights: bool,
    image_size: int | None,
    args: Mapping[str, Any],
    *,
    learns: bool,
) -> PeerModel:
    """Builds a timm model; one with a fixed size is built for `image_size`."""
    bare = name.split(".")[0]
    if ":" not in name and not timm.is_model(bare):
        near = closest(bare, timm.list_models())
        raise UserError(f"models: timm has no model {name!r}, the closest are {near or 'listed by timm.list_models()'}")
    args = {**args, **({} if num_classes is None else {"num_classes": num_classes})}
    module = build_architecture(name, pretrained=has_weights, in_chans=in_chans, **args)
    cfg: Any = module.pretrained_cfg
    if image_size is not None and cfg.get("fixed_input_size") and cfg["input_size"][-1] != image_size:
        args |= {"img_size": image_size}
        module = build_architecture(name, pretrained=has_weights, in_chans=in_chans, **args)
    architecture = cfg.get("architecture") or bare
    model = PeerModel(module, _folder_name(architecture), architecture, has_weights, _model_args(module))
    model.given_name = name
    model.normalisation = model.stated_normalisation(in_chans) if model.pretrained else None
    # timm's config states the classes of the trained weights; for another number it made a new classifier.
    own_classes = getattr(module, "num_classes", None)
    model.has_new_classifier = own_classes != 0 and (not has_weights or cfg.get("num_classes") != own_classes)
    trained_channels = cfg.get("input_size", (3,))[0]
    if has_weights and in_chans == 1 and trained_channels == 3:
        _adapt_colours(model, args, learns=learns)
    elif has_weights and in_chans != trained_channels:
        model.input_note = f"its weights were trained on {trained_channels} channels, the images here have {in_chans}"
    elif has_weights:
        model.input_note = averaged_note(cfg, in_chans)
    return model


def _adapt_colours(model: PeerModel, args: Mapping[str, Any], *, learns: bool) -> None:
    """Lets a model that was trained on colours see in grey images what it saw in these.

    One that only teaches keeps its 3 channels. One that learns is published for 1, see `fold_channels`.

    Args:
        model: built by name for 1 channel, with its weights.
        args: for timm, that it was built with.
        learns: whether it does.
    """
    try:
        colour = build_architecture(str(model.given_name), pretrained=True, **args)
    except UserError:  # its weights are for 1 channel, whatever its config states
        colour = model.module
    if not differing_layers(model.module, colour):
        model.input_note = averaged_note(model.timm_cfg, 1)
    elif learns:
        model.input_note = fold_channels(model.module, colour, model.stated_normalisation(3), model.normalisation)
    else:
        model.module, model.channels, model.normalisation = colour, 3, model.stated_normalisation(3)


def _model_args(module: nn.Module) -> dict[str, Any]:
    """Returns the arguments that timm built a module with, besides classes and channels, if JSON can hold them."""
    args = dict(getattr(module, "_model_args", {}))
    plain = (str, int, float, bool, tuple, list, type(None))
    return {k: v for k, v in args.items() if k not in ("num_classes", "in_chans") and isinstance(v, plain)}


def build_architecture(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Builds a model with timm.

    Args:
        name: timm's name; models with `hf-hub:` and `local-dir:` names always come with their weights.
        pretrained: load its trained weights.
        **kwargs: for timm.

    Raises:
        UserError: where timm cannot build it with these arguments, or its weights cannot be loaded.
    """
    trained = pretrained or ":" in name
    with offline_without_internet() if trained else contextlib.nullcontext(False) as offline:
        try:
            module: nn.Module = timm.create_model(name, pretrained=trained, **kwargs)
        except (
            Exception
        ) as error:  # the files of a published model may hold anything, and timm fails on it in many ways
            if not (trained or isinstance(error, (TypeError, RuntimeError, ValueError, KeyError, AssertionError))):
                raise
            raise UserError(_explain_failed_build(name, error, list(kwargs), offline)) from None
    bad = tensor_with_nan(module.state_dict()) if trained else None
    if bad is not None:
        raise UserError(f"models: the weights of {name} hold NaN in {bad!r}: name a model that did not diverge")
    return module


def _explain_failed_build(name: str, error: Exception, options: list[str], offline: bool) -> str:
    """Returns the error line for a model that timm could not build."""
    cause = reason(error, 300)
    if name.startswith("local-dir:"):
        return f"models: {name} could not be read ({cause}): name the folder of a published model"
    if isinstance(error, OSError):
        cause = "there is no internet access, and they are not in the hub's cache" if offline else cause
        return (
            f"models: the weights of {name} could not be fetched ({cause}): start without them, or name a folder with "
            "local-dir:"
        )
    if isinstance(error, TypeError):
        unknown = [one for one in options if f"'{one}'" in str(error)] or options
        remedy = "choose another size or model" if "img_size" in unknown else "leave it out, or choose another model"
        return f"models: {name} does not take {', '.join(unknown)} ({cause}): {remedy}"
    return f"models: {name} could not be built ({cause}): check the name"


def check_description(description: Mapping[str, Any]) -> None:
    """Checks a `PeerModel.description` from a file before a model is built from it.

    Raises:
        UserError: where it would write outside a folder, or make timm read or download anything.
    """
    name, architecture, args = (description[key] for key in ("name", "architecture", "model_args"))
    if _folder_name(str(name)) != name:
        raise UserError(f"checkpoint: {name!r} is a path, not the name of a model: use a checkpoint that you trust")
    loading = sorted(args.keys() & inspect.signature(timm.create_model).parameters.keys())
    if ":" in str(architecture) or loading:
        what = f"the argument {loading[0]!r}" if loading else repr(architecture)
        raise UserError(f"checkpoint: {what} would load other files: use a checkpoint that you trust")


def move_to_device(models: Sequence[PeerModel], device: torch.device, *, channels_last: bool) -> None:
    """Moves every model to a device and into its memory format.

    Raises:
        UserError: for a model on the meta device: it has no weights.
    """
    for k, model in enumerate(models):
        if any(parameter.is_meta for parameter in model.module.parameters()):
            raise UserError(f"models: model {k} ({model.name}) is on the meta device: give it weights first")
        model.module.to(device)
        if channels_last:
            model.module.to(memory_format=safe_memory_format(model.module, device, channels_last=True))


def safe_memory_format(module: nn.Module, device: torch.device, channels_last: bool) -> torch.memory_format:
    """Returns channels-last where it is wanted and safe.

    In channels-last on CPU, the backward pass of a strided 1x1 convolution with fewer than 16 input channels writes
    outside its memory (seen in torch 2.15: FastViT's stem ends the process).
    """
    unsafe = device.type == "cpu" and any(
        isinstance(one, nn.Conv2d) and one.kernel_size == (1, 1) and max(one.stride) > 1 and one.in_channels < 16
        for one in module.modules()
    )
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format


def _folder_name(name: str) -> str:
    """Turns an architecture's name, which may hold any characters, into one that a folder can have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "model"
