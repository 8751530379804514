"""Publishes a model as a graph of operations (ONNX or torch.export), which runs without timm and the model's class."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import open_evaluation
from feature_gan_kd.export.card import ModelCardInfo, model_card
from feature_gan_kd.export.timm_folder import (
    CARD,
    CONFIG,
    contiguous_cpu_copy,
    error_line,
    export_folder,
    pretrained_cfg,
)
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError, not_installed

GraphFormat = Literal["onnx", "torch-export"]
"""The formats of `ExportFormat` that are graphs."""

GRAPH_FILES: dict[GraphFormat, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
Graph = Callable[[Tensor], Tensor]
"""Maps images, float32 `(n, C, H, W)`, to logits `(n, classes)`, on the CPU."""

# Fraction of the largest logit. Float32 sums in another order differ by some 1e-6 of it.
_TOLERANCE = 1e-4
# Batch sizes: of the tracing, and of the check, since the graph must take any size.
_TRACED_BATCH, _CHECKED_BATCHES = 2, (1, 5)


def publish_graph(model: nn.Module, folder: Path, card_info: ModelCardInfo, format: GraphFormat) -> None:
    """Writes the model as a graph, with config (labels, preprocessing) and card, and checks the graph.

    The graph takes batches of any size. The written file is read again and compared with the model: on digits of the
    bundled data set in the model's size and normalisation, or on noise where it takes other channels. The folder
    appears whole or not at all.

    Args:
        model: any module that torch.export can trace, timm's or not.
        folder: its place; its parents are made.
        card_info: what config and card state.
        format: of the graph.

    Raises:
        UserError: where the `onnx` extra is not installed, the model cannot be traced, the graph gives other logits,
            or the folder holds other files or cannot be written.
    """
    with export_folder(folder, GRAPH_FILES[format]) as temporary, torch.random.fork_rng(devices=[]):
        twin = contiguous_cpu_copy(model, card_info).float()
        images = _images_to_compare(card_info)
        config = _graph_config(model, card_info)
        path = temporary / GRAPH_FILES[format]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer warns about its own internals
                (_write_onnx if format == "onnx" else _write_program)(twin, images[:_TRACED_BATCH], path, config)
        except ImportError as error:
            raise not_installed("export", error, "onnx") from None
        except Exception as error:  # the tracer raises errors of every type
            raise UserError(
                f"{folder}: {card_info.architecture} cannot be traced for {format} ({error_line(error)}): export it as "
                "safetensors"
            ) from None
        (temporary / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        _check_graph(load_graph(temporary, format), twin, images, folder)
        (temporary / CARD).write_text(model_card(model, card_info, format), encoding="utf-8")


def load_graph(folder: Path, format: GraphFormat) -> Graph:
    """Loads the graph in a published folder.

    A file of torch.export can run code when it is loaded: load only files that you trust.

    Raises:
        UserError: where onnxruntime is not installed, or the file cannot be read.
    """
    path = folder / GRAPH_FILES[format]
    try:
        return _read_onnx(path) if format == "onnx" else _read_program(path)
    except ImportError as error:
        raise not_installed(format, error, "onnx") from None
    except Exception as error:  # on a damaged file the readers raise errors of every type
        raise UserError(f"{path}: cannot be read ({error_line(error)}): export it again") from None


def _write_onnx(model: nn.Module, images: Tensor, path: Path, config: dict[str, Any]) -> None:
    import onnxruntime  # noqa: F401  (the check needs it)
    import onnxscript  # noqa: F401  (torch needs it)

    program: Any = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
    )
    # In the file too, since it is often passed on alone.
    program.model.metadata_props["config"] = json.dumps(config)
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Graph:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda images: torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])


def _write_program(model: nn.Module, images: Tensor, path: Path, config: dict[str, Any]) -> None:
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={"config.json": json.dumps(config)})


def _read_program(path: Path) -> Graph:
    model = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return run


def _graph_config(model: nn.Module, card_info: ModelCardInfo) -> dict[str, Any]:
    """The part of timm's config that a graph needs."""
    cfg = {key: value for key, value in pretrained_cfg(model, card_info).items() if value is not None}
    names = {"label_names": card_info.class_names} if card_info.class_names else {}
    return {
        "architecture": cfg.pop("architecture"),
        "num_classes": card_info.num_classes,
        **names,
        "pretrained_cfg": cfg,
    }


def _images_to_compare(card_info: ModelCardInfo) -> Tensor:
    """Digits of the bundled data set in the model's size, channels and normalisation; noise of other channels."""
    count = max(_TRACED_BATCH, *_CHECKED_BATCHES)
    if card_info.in_chans not in (1, 3):
        shape = (count, card_info.in_chans, card_info.image_size, card_info.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    source, _ = open_evaluation(
        None,
        DistillConfig(max_eval_samples=count),
        image_size=card_info.image_size,
        in_chans=card_info.in_chans,
        normalisation=Normalisation(card_info.mean, card_info.std),
    )
    images, _ = next(iter(source.batches(batch_size=len(source), seed=0, epoch=0, device="cpu", train=False)))
    return images.contiguous()


def _check_graph(graph: Graph, model: nn.Module, images: Tensor, folder: Path) -> None:
    for count in (_TRACED_BATCH, *_CHECKED_BATCHES):
        with torch.no_grad():
            own: Tensor = model(images[:count].clone())  # a model may change its images in place
        try:
            other = graph(images[:count])
        except Exception as error:  # each runtime raises errors of its own
            raise UserError(f"{folder}: the graph fails on {count} images ({error_line(error)})") from None
        difference = float((own - other).abs().max()) if own.shape == other.shape else float("inf")
        bound = _TOLERANCE * max(1.0, float(own.abs().max()))
        if not difference <= bound:
            raise UserError(
                f"{folder}: the graph gives other logits than the model (they differ by {difference:.2g}, allowed is "
                f"{bound:.2g}): export it as safetensors"
            )
