"""The user's networks: timm names are built, modules are taken as they are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn

import feature_gan_kd.models  # noqa: F401  (registers the CIFAR networks with timm)
from feature_gan_kd.errors import UserError, closest
from feature_gan_kd.offline import offline_without_network


@dataclass
class Network:
    """One network as the user gave it.

    Attributes:
        module: the module itself.
        name: a short one for folders and lines.
        architecture: timm's name, or the class of a module that is not timm's.
        pretrained: whether it began from trained weights.
        model_args: what timm must be told, besides classes and channels, to build it again.
    """

    module: nn.Module
    name: str
    architecture: str
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """timm's facts on the images it expects (`input_size`, `mean`, `std`, ...); empty for other modules."""
        cfg = getattr(self.module, "pretrained_cfg", None)
        return dict(cfg) if isinstance(cfg, dict) else {}


def build_networks(
    models: Sequence[str | nn.Module],
    *,
    num_classes: int | None,
    in_chans: int,
    pretrained: bool,
    image_size: int | None,
    seed: int,
) -> list[Network]:
    """Builds what was named and takes what was given.

    Args:
        models: timm names (also `hf-hub:` and `local-dir:`) or modules.
        num_classes: of networks built by name; None keeps each one's own.
        in_chans: input channels of networks built by name.
        pretrained: load trained weights into networks built by name.
        image_size: side of the images in pixels; None keeps the networks' own.
        seed: of the first weights; network k's are a function of (seed, k).

    Raises:
        UserError: for fewer than two networks, one module twice, an unknown name (the closest are given), weights
            that cannot be had, or a network that does not take images of that size.
    """
    if isinstance(models, (str, nn.Module)) or len(models) < 2:
        raise UserError("models: one network is given, at least 2 are needed: name a peer for it to learn with")
    if num_classes is not None and (type(num_classes) is not int or num_classes < 2):
        raise UserError(f"num_classes: {num_classes!r} is not allowed, expected a whole number of at least 2")
    built = []
    for index, model in enumerate(models):
        if not isinstance(model, (str, nn.Module)):
            raise UserError(f"models: {type(model).__name__} at place {index}, expected a name of timm's or a module")
        if isinstance(model, nn.Module):
            cfg: Any = getattr(model, "pretrained_cfg", None)
            architecture = (cfg.get("architecture") if isinstance(cfg, dict) else None) or type(model).__name__
            built.append(Network(model, _slug(architecture), architecture))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 1009 + index)
                built.append(_build(model, num_classes, in_chans, pretrained, image_size))
    if len({id(network.module) for network in built}) < len(built):
        raise UserError("models: the same module stands twice: give each place a network of its own (copy.deepcopy)")
    for network in built:
        if getattr(network.module, "num_classes", None) == 0:
            remedy = "name another" if num_classes else "give num_classes, or name another"
            raise UserError(f"models: {network.name} has no classifier, it only encodes: {remedy}")
    return built


def _build(name: str, num_classes: int | None, in_chans: int, pretrained: bool, image_size: int | None) -> Network:
    local = ":" in name
    bare = name.split(".")[0]
    if not local and not timm.is_model(bare):
        near = closest(bare, timm.list_models())
        raise UserError(f"models: timm has no model {name!r}, the closest are {near or 'listed by timm.list_models()'}")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    extra: dict[str, Any] = {}
    module = build_architecture(name, pretrained=pretrained, in_chans=in_chans, **classes)
    cfg: Any = module.pretrained_cfg
    if image_size is not None and cfg.get("fixed_input_size") and cfg["input_size"][-1] != image_size:
        extra = {"img_size": image_size}
        module = build_architecture(name, pretrained=pretrained, in_chans=in_chans, **classes, **extra)
    architecture = cfg.get("architecture") or bare
    return Network(module, _slug(architecture), architecture, pretrained or local, extra)


def build_architecture(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network of timm's.

    Args:
        name: timm's name; `hf-hub:` and `local-dir:` names always come with their weights.
        pretrained: with its trained weights.
        **kwargs: for timm.

    Raises:
        UserError: where timm cannot build it so, or its weights cannot be had.
    """
    trained = pretrained or ":" in name
    with offline_without_network() if trained else contextlib.nullcontext(False) as offline:
        try:
            module: nn.Module = timm.create_model(name, pretrained=trained, **kwargs)
        except TypeError as error:
            raise UserError(
                f"models: {name} does not take {', '.join(kwargs)} ({error}): choose another size or network"
            ) from None
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if not isinstance(error, OSError):
                raise UserError(f"models: {name} could not be built ({reason}): check the name") from None
            if name.startswith("local-dir:"):
                raise UserError(f"models: {name} could not be read ({reason}): name a published network") from None
            reason = "there is no network, and they are not in the hub's cache" if offline else reason
            raise UserError(
                f"models: the weights of {name} could not be fetched ({reason}): start without them, or name a folder "
                "with local-dir:"
            ) from None
    return module


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "network"
