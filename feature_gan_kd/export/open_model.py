"""Opens a model by the name that people give it: a published folder, a model of the hub, or a timm name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import CustomDatasetInfo, DatasetInfoLabelMapper, ImageNetInfo, infer_imagenet_subset
from timm.models import is_model_pretrained
from torch import nn

import feature_gan_kd.models  # noqa: F401  (registers the CIFAR models with timm)
from feature_gan_kd.export.graph import GRAPH_FILES, Graph, load_graph
from feature_gan_kd.export.timm_folder import load_published, read_config
from feature_gan_kd.models.weights import tensor_with_nan
from feature_gan_kd.utils.errors import UserError, closest, reason
from feature_gan_kd.utils.offline import offline_without_internet

HUB, FOLDER = "hf-hub:", "local-dir:"
# What timm calls weights that were trained last on ImageNet: a1_in1k, in12k, fb_in22k_ft_in1k, ...
_IMAGENET_TAG = re.compile(r"in(1|12|21|22)k")
# Image encoders of such pairs of image and text. timm states the size of their embedding as the number of classes.
_EMBEDDING = re.compile(r"clip|_pe_core")


@dataclass(frozen=True)
class OpenedModel:
    """A model with its trained weights, in evaluation mode on the CPU.

    Attributes:
        name: as the user gave it.
        model: maps images, float32 (batch, channels, height, width), to logits (batch, classes), or to features where
            it has no classifier. A torch module, or a graph that was exported.
        cfg: timm's `pretrained_cfg`: form of the images, and where known the names of the classes.
        where: the file that states `cfg`, for errors.
    """

    name: str
    model: Graph
    cfg: Mapping[str, Any]
    where: str

    @property
    def module(self) -> nn.Module:
        """The model as a torch module, which it is where `open_model` was asked for no graph."""
        assert isinstance(self.model, nn.Module)
        return self.model

    def label_of(self) -> Callable[[int], str]:
        """The name of each class by its index; the index where the model has no names.

        They are the names that the model states, else ImageNet's where timm calls the weights ImageNet's.

        Raises:
            ValueError, TypeError: where the names that it states are none.
        """
        stated, subset = self.cfg.get("label_names"), infer_imagenet_subset(dict(self.cfg))
        mapper: Callable[[int], str]
        if stated:
            known = stated if isinstance(stated, Mapping) else dict(enumerate(stated))
            names = {int(k): str(name) for k, name in known.items()}
            described = self.cfg.get("label_descriptions")
            complete = isinstance(described, Mapping) and not set(names.values()) - described.keys()
            info = CustomDatasetInfo(names, described if complete else None)
            mapper = DatasetInfoLabelMapper(info, fallback_format="{index}")
        elif subset and _IMAGENET_TAG.search(str(self.cfg.get("tag"))):
            mapper = DatasetInfoLabelMapper(ImageNetInfo(subset))
        else:
            mapper = str
        return mapper


def open_model(name: str, *, trust_code: bool = False, graphs: bool = True) -> OpenedModel:
    """Opens a model.

    Args:
        name: a published folder, of any export format, also as `local-dir:`; a model of the hub, as `hf-hub:`; or a
            timm name, which comes with timm's trained weights. An existing folder goes before a timm name.
        trust_code: load a file of torch.export, which can run code when it is loaded.
        graphs: whether a graph will do, from which only its output can be had.

    Raises:
        UserError: where there is no such model, it cannot be loaded or fetched, or it is a graph and none will do.
    """
    if name.startswith(FOLDER) or Path(name).is_dir():
        return _open_folder(name, Path(name.removeprefix(FOLDER)), trust_code, graphs)
    if not name.startswith(HUB):
        _check_has_weights(name)
    return _open_trained(name)


def open_classifier(name: str, *, trust_code: bool = False) -> OpenedModel:
    """Opens a model that has classes.

    Args:
        name: see `open_model`.
        trust_code: see there.

    Raises:
        UserError: as `open_model`, and where it has no classes.
    """
    found = open_model(name, trust_code=trust_code)
    cfg = found.cfg
    tag = str(cfg.get("tag") or "")
    has_text = _EMBEDDING.search(f"{cfg.get('architecture')}.{tag}")
    is_embedding = tag and has_text and not _IMAGENET_TAG.search(tag) and not cfg.get("label_names")
    if cfg.get("num_classes") == 0 or is_embedding:
        raise UserError(f"{name}: has no classes, it gives features: name a classifier")
    return found


def _open_folder(name: str, folder: Path, trust_code: bool, graphs: bool) -> OpenedModel:
    graph = next((graph for graph, file in GRAPH_FILES.items() if (folder / file).is_file()), None)
    if graph is not None and not graphs:
        raise UserError(
            f"{folder / GRAPH_FILES[graph]}: is a graph, which gives logits alone: export it as safetensors"
        )
    if graph == "torch-export" and not trust_code:
        raise UserError(
            f"{folder / GRAPH_FILES[graph]}: can run code when it is loaded: add --trust-code if you trust it"
        )
    model: Graph
    if graph is None:
        model, config = load_published(folder)
    else:
        model, config = load_graph(folder, graph), read_config(folder)
    stated = config.get("pretrained_cfg")
    if not isinstance(stated, dict):
        raise UserError(f"{folder / 'config.json'}: does not state the form of the images: export it again")
    above = ("architecture", "num_classes", "label_names", "label_descriptions")
    cfg: dict[str, Any] = {**stated, **{key: config[key] for key in above if key in config}}
    return OpenedModel(name, model, cfg, str(folder / "config.json"))


def _check_has_weights(name: str) -> None:
    """Raises UserError for what is no name of timm's, and for one without trained weights."""
    bare = name.split(".")[0]
    if not timm.is_model(bare):
        near = closest(bare, timm.list_models())
        hint = f" (the closest are {near})" if near else ""
        raise UserError(
            f"{name}: there is no such folder, and timm has no model of this name{hint}: name a published model, "
            f"{HUB}owner/name or a timm name"
        )
    if not is_model_pretrained(name):
        tags = ", ".join(timm.list_pretrained(f"{bare}.*")[:3])
        what = f"timm has no such weights (it has {tags})" if tags else "timm has no trained weights of this model"
        raise UserError(f"{name}: {what}: name a model with trained weights")


def _open_trained(name: str) -> OpenedModel:
    """Builds a model with its trained weights, which may have to be fetched. timm reads pickles without running code.

    Raises:
        UserError: where it cannot be fetched or built, or its weights hold NaN.
    """
    with offline_without_internet() as offline:
        try:
            model: Any = timm.create_model(name, pretrained=True)
        except Exception as error:  # the files of a repository may hold anything, and timm fails on them in many ways
            if offline and isinstance(error, OSError):
                raise UserError(
                    f"{name}: there is no internet access, and the model is not in the hub's cache: connect, or name a "
                    "folder"
                ) from None
            raise UserError(f"{name}: could not be loaded ({reason(error, 300)}): check the name") from None
    bad = tensor_with_nan(model.state_dict())
    if bad is not None:
        raise UserError(f"{name}: its weights hold NaN in {bad!r}: name a model that did not diverge")
    return OpenedModel(name, model.eval(), {**model.pretrained_cfg, "num_classes": model.num_classes}, name)
