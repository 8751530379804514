"""Publishes a model as a folder that timm loads, checks it by rebuilding the model, and reads such folders back."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import is_model, list_models, save_for_hf
from torch import Tensor, nn

from feature_gan_kd.export.card import ModelCardInfo, license_of, model_card
from feature_gan_kd.utils.errors import UserError, closest
from feature_gan_kd.utils.files import atomic_folder

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_REMEDY = "the model was changed after timm built it, or model_args lacks arguments that it was built with"


class RebuildError(UserError):
    """timm cannot rebuild a model from its published form; its bare weights can still be written."""


def publish(model: nn.Module, folder: Path, card_info: ModelCardInfo) -> None:
    """Writes weights, config and card from which plain timm rebuilds the model, and checks that it does.

    The folder appears whole or not at all, and replaces one published before. Neither the model nor the random
    generators are changed.

    Args:
        model: built by timm, on any device and in any memory format.
        folder: its place; its parents are made.
        card_info: what config and card state.

    Raises:
        RebuildError: where timm cannot rebuild the model, or the rebuilt model gives other logits.
        UserError: where the folder holds other files or cannot be written, or the logits are not finite.
    """
    obstacle = rebuild_obstacle(model)
    if obstacle is not None:
        raise RebuildError(f"{folder}: {obstacle}")
    with export_folder(folder, WEIGHTS) as temporary, torch.random.fork_rng(devices=[]):
        twin = exportable_copy(model, card_info)
        try:
            save_for_hf(twin, str(temporary), **save_arguments(card_info))
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise RebuildError(f"{folder}: timm cannot describe the model ({error_line(error)}): {_REMEDY}") from None
        _check_rebuilt(twin, temporary, folder, card_info)
        (temporary / CARD).write_text(model_card(model, card_info), encoding="utf-8")


def publish_bare(model: nn.Module, folder: Path, card_info: ModelCardInfo) -> None:
    """Writes weights and card alone, for a model that timm cannot rebuild.

    Args:
        model: any module.
        folder: its place; its parents are made.
        card_info: what the card states.

    Raises:
        UserError: where the state holds more than tensors, or the folder holds other files or cannot be written.
    """
    with export_folder(folder, WEIGHTS) as temporary:
        save_file(_independent_tensors(model.state_dict()), temporary / WEIGHTS)
        (temporary / CARD).write_text(model_card(model, card_info, rebuildable=False), encoding="utf-8")


def rebuild_obstacle(model: nn.Module) -> str | None:
    """Says why timm cannot rebuild this model; None where only trying can tell."""
    kind = type(model).__name__
    cfg = getattr(model, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    if not isinstance(architecture, str):
        return f"timm cannot rebuild {kind}: timm did not build it"
    if not is_model(architecture):
        return f"timm cannot rebuild {kind}: no architecture {architecture!r} is registered with timm"
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        # torch.compile and Accelerate's prepare replace it. A copy of the module would run the original's.
        if forward is not None and getattr(forward, "__self__", None) is not module:
            return f"timm cannot rebuild {kind}: the forward of {name or 'the model'} was replaced on the object"
    return None


def has_same_weights(folder: Path, model: nn.Module) -> bool:
    """Whether a published folder has exactly the weights of the model; False for one that cannot be read.

    Raises:
        UserError: where the model's state holds more than tensors.
    """
    try:
        saved = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError):
        return False
    own = _independent_tensors(model.state_dict())
    return saved.keys() == own.keys() and all(torch.equal(saved[key], value) for key, value in own.items())


def load_published(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a published model and its config; reads safetensors and JSON only.

    Args:
        folder: what `publish` wrote. The architecture must be registered with timm.

    Returns:
        The model, on CPU and in evaluation mode, and the contents of `config.json`.

    Raises:
        UserError: where something is missing or broken, or timm loads other weights than were saved.
    """
    config = _read_config(folder)
    try:
        saved = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{folder / WEIGHTS}: is not a safetensors file ({error_line(error)}): export it again"
        ) from None
    try:
        with torch.device("cpu"):
            model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # a config is free text, on which timm's builders fail in every way
        raise UserError(f"{folder}: timm cannot rebuild the model ({error_line(error)}): export it again") from None
    # timm silently drops a classifier of another size, and converts weights that it takes for an older version's.
    built = model.state_dict()
    differing = (key for key, value in built.items() if not torch.equal(value, saved[key].to(value.dtype)))
    wrong = next(iter(sorted(saved.keys() ^ built.keys())), None) or next(differing, None)
    if wrong is not None:
        raise UserError(f"{folder}: timm does not load {wrong!r} as it was saved: config and weights do not match")
    return model.eval(), config


def exportable_copy(model: nn.Module, card_info: ModelCardInfo) -> nn.Module:
    """Copies a model for publishing: its `pretrained_cfg` states what is published, safetensors can hold its state.

    Raises:
        RebuildError: where the model cannot be copied.
    """
    twin: Any = contiguous_cpu_copy(model, card_info)
    twin.pretrained_cfg = pretrained_cfg(model, card_info)
    twin.register_state_dict_post_hook(_untie_state)
    return twin  # type: ignore[no-any-return]


def contiguous_cpu_copy(model: nn.Module, card_info: ModelCardInfo) -> nn.Module:
    """Copies a model to the CPU in evaluation mode, every tensor contiguous.

    Raises:
        RebuildError: where the model cannot be copied.
    """
    try:
        twin = copy.deepcopy(model).cpu().eval()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RebuildError(f"{card_info.architecture}: cannot be copied ({error_line(error)}): {_REMEDY}") from None
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.data = _contiguous_copy(tensor)
    return twin


def save_arguments(card_info: ModelCardInfo) -> dict[str, Any]:
    """The arguments that timm's `save_for_hf` and `push_to_hf_hub` have in common."""
    names = {"label_names": card_info.class_names} if card_info.class_names else {}
    return {"model_config": names, "model_args": dict(card_info.model_args), "safe_serialization": True}


def error_line(error: Exception) -> str:
    """Formats an error's type and text as one line of about 300 characters at most."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


def _untie_state(module: nn.Module, state: dict[str, Any], prefix: str, local: dict[str, Any]) -> None:
    state.update(_independent_tensors(state))


def _independent_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies that share no memory: what safetensors can hold."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{key}: is {type(value).__name__} in the model's state, safetensors can hold only tensors")
    return {key: _contiguous_copy(value) for key, value in state.items()}


def _contiguous_copy(tensor: Tensor) -> Tensor:
    # Not `contiguous()`: it keeps channels-last strides where a side has length 1, and kernels go by strides.
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def pretrained_cfg(model: nn.Module, card_info: ModelCardInfo) -> dict[str, Any]:
    """Builds timm's configuration of these weights: of the old one it keeps only what the architecture needs."""
    source: Any = getattr(model, "pretrained_cfg", None) or {}
    size = (card_info.in_chans, card_info.image_size, card_info.image_size)
    same_size = tuple(source.get("input_size", ()))[1:] == size[1:]
    cfg = {
        "architecture": source.get("architecture") or card_info.architecture,
        "custom_load": False,
        "input_size": size,
        "fixed_input_size": source.get("fixed_input_size", False),
        # The preprocessing with which the accuracy was measured.
        "interpolation": card_info.interpolation,
        "crop_pct": card_info.crop_pct,
        "crop_mode": "center",
        "mean": card_info.mean,
        "std": card_info.std,
        "num_classes": card_info.num_classes,
        "pool_size": source.get("pool_size") if same_size else None,
        "first_conv": source.get("first_conv"),
        "classifier": source.get("classifier"),
    }
    known = license_of(model, card_info)
    return cfg if known == "unknown" else {**cfg, "license": known}


def _check_rebuilt(twin: nn.Module, temporary: Path, folder: Path, card_info: ModelCardInfo) -> None:
    """Compares the output of the model that timm rebuilds from the folder with the model's own, bit for bit."""
    name, what = card_info.architecture, "logits" if card_info.num_classes else "features"
    own = _output(twin, folder, card_info)
    if card_info.num_classes and own.shape[1] != card_info.num_classes:
        raise UserError(f"{folder}: {name} gives {own.shape[1]} logits, expected {card_info.num_classes} classes")
    if not bool(own.isfinite().all()):
        raise UserError(f"{folder}: {name} gives {what} that are not finite: the model diverged and is not published")
    try:
        rebuilt, _ = load_published(temporary)
    except UserError as error:
        reason = str(error).removeprefix(f"{temporary}: ")
        raise RebuildError(f"{folder}: timm does not rebuild {name} ({reason}): {_REMEDY}") from None
    other = _output(rebuilt, folder, card_info)
    if own.shape != other.shape or not torch.equal(own.view(torch.int32), other.view(torch.int32)):
        raise RebuildError(f"{folder}: {name} gives other {what} when timm rebuilds it: {_REMEDY}")


def _output(model: nn.Module, folder: Path, card_info: ModelCardInfo) -> Tensor:
    """Logits (2, classes), or features of a model without a classifier, float32, of two fixed random images."""
    shape = (2, card_info.in_chans, card_info.image_size, card_info.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    try:
        with torch.no_grad():
            output = model.float().eval()(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{folder}: the model fails on images of shape {shape[1:]} ({error_line(error)})") from None
    if not isinstance(output, Tensor) or (card_info.num_classes and output.ndim != 2):
        raise UserError(f"{folder}: the model's output is not a tensor (batch, classes), as that of a classifier is")
    return output


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config of a published model, of any format.

    Raises:
        UserError: where it cannot be read, or names no architecture.
    """
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read ({error_line(error)}): export it again") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(f"{folder / CONFIG}: names no architecture, expected timm's config: export it again")
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: is not a folder, expected a published model ({WEIGHTS} and {CONFIG}): name one, or fetch it "
            "with hf download"
        )
    if not (folder / WEIGHTS).is_file():
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pth", ".pt", ".tar")]
        hint = f"; {pickles[0]} is a pickle, which is not read because it can run code" if pickles else ""
        inside = [path.parent for place in ("*", "networks/*") for path in folder.glob(f"{place}/{CARD}")]
        models = sorted(str(path) for path in inside if (path / CONFIG).is_file())
        if models:
            raise UserError(
                f"{folder}: holds models but is not one itself: name one of them, such as {' or '.join(models)}"
            )
        raise UserError(f"{folder}: has no {WEIGHTS}{hint}: name a folder with safetensors")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: has no {CONFIG}: load bare weights into the model's own class")
    config = read_config(folder)
    architecture = config["architecture"]
    if not is_model(architecture):
        near = closest(architecture, list_models()) or "none"
        raise UserError(
            f"{folder / CONFIG}: timm knows no architecture {architecture!r} (nearest: {near}): import the module "
            "that registers it"
        )
    return config


@contextmanager
def export_folder(folder: Path, weights: str) -> Iterator[Path]:
    """Makes a folder that appears whole, once the block has ended without an error.

    Args:
        folder: its place; one published before is replaced.
        weights: name of the file with the weights or the graph, besides config and card.

    Yields:
        Where to write the files.

    Raises:
        UserError: where the folder holds other files, or cannot be written.
    """
    folder = folder.resolve()
    try:
        foreign = sorted({path.name for path in folder.iterdir()} - {weights, CONFIG, CARD}) if folder.exists() else []
        if foreign:
            raise UserError(f"{folder}: holds {foreign[0]!r}, which this export does not write: name another folder")
        with atomic_folder(folder) as temporary:
            yield temporary
            # safetensors makes its file readable by the owner alone.
            shutil.copymode(temporary / CARD, temporary / weights)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: cannot be written ({error_line(error)}): make room or name another folder"
        ) from None
