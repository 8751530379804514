"""A model as a graph of operations, for ONNX or torch.export: it runs without timm and without its own class."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.data import open_evaluation
from feature_gan_kd.export.card import ModelCardInfo, model_card
from feature_gan_kd.export.timm_folder import CARD, CONFIG, one_line, plain_copy, pretrained_cfg, written
from feature_gan_kd.utils.errors import UserError, not_installed

GraphFormat = Literal["onnx", "torch-export"]
GRAPHS: dict[GraphFormat, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
Graph = Callable[[Tensor], Tensor]
"""Images, float32 `(n, C, H, W)`, to logits `(n, classes)`, on CPU."""

# Of the largest logit: float32 sums in another order differ by some 1e-6 of it.
_TOLERANCE = 1e-4
# Batches of the check, besides that of the tracing: the graph must not know the size.
_TRACED, _TRIED = 2, (1, 5)


def publish_graph(model: nn.Module, folder: Path, card_info: ModelCardInfo, form: GraphFormat) -> None:
    """Writes the model as a graph, with config (labels, preprocessing) and card, proven before it returns.

    The graph takes batches of any size. What is written is read again and compared with the model on real
    images: digits of the bundled data set, brought to the model's size and normalisation. The folder appears whole
    or not at all.

    Args:
        model: any module that torch.export can trace, timm's or not.
        folder: its place; its parents are made.
        publication: what config and card say.
        form: of the graph.

    Raises:
        UserError: where the `onnx` extra is not installed, the model cannot be traced, the graph computes anything
            else, or the folder holds other files or cannot be written.
    """
    with written(folder, GRAPHS[form]) as temporary, torch.random.fork_rng(devices=[]):
        twin = plain_copy(model, card_info).float()
        images = _real_images(card_info)
        config = _config(model, card_info)
        path = temporary / GRAPHS[form]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tracer, on its own inside
                (_write_onnx if form == "onnx" else _write_program)(twin, images[:_TRACED], path, config)
        except ImportError as error:
            raise not_installed("export", error, "onnx") from None
        except Exception as error:  # tracing fails in every way
            raise UserError(
                f"{folder}: {card_info.architecture} cannot be traced for {form} ({one_line(error)}): export it as "
                "safetensors"
            ) from None
        (temporary / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        _check_graph(load_graph(temporary, form), twin, images, folder)
        (temporary / CARD).write_text(model_card(model, card_info, form), encoding="utf-8")


def load_graph(folder: Path, form: GraphFormat) -> Graph:
    """The graph in a published folder.

    A file of torch.export can run code while it is read: read only such as you made.

    Raises:
        UserError: where onnxruntime is not installed, or the file cannot be read.
    """
    path = folder / GRAPHS[form]
    try:
        return _read_onnx(path) if form == "onnx" else _read_program(path)
    except ImportError as error:
        raise not_installed(form, error, "onnx") from None
    except Exception as error:  # files are free text, on which readers fail in every way
        raise UserError(f"{path}: cannot be read ({one_line(error)}): export it again") from None


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
    # In the file, too: it is often passed on alone.
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


def _config(model: nn.Module, card_info: ModelCardInfo) -> dict[str, Any]:
    """What timm's config of the model says, as far as a graph needs it."""
    cfg = {key: value for key, value in pretrained_cfg(model, card_info).items() if value is not None}
    names = {"label_names": card_info.class_names} if card_info.class_names else {}
    return {
        "architecture": cfg.pop("architecture"),
        "num_classes": card_info.num_classes,
        **names,
        "pretrained_cfg": cfg,
    }


def _real_images(card_info: ModelCardInfo) -> Tensor:
    """Some digits of the bundled data set as the model wants its images."""
    source, _ = open_evaluation(
        None,
        DistillConfig(max_eval_samples=max(_TRACED, *_TRIED)),
        image_size=card_info.image_size,
        in_chans=card_info.in_chans,
        mean=card_info.mean,
        std=card_info.std,
    )
    images, _ = next(iter(source.batches(batch_size=len(source), seed=0, epoch=0, device="cpu", train=False)))
    return images.contiguous()


def _check_graph(graph: Graph, model: nn.Module, images: Tensor, folder: Path) -> None:
    for count in (_TRACED, *_TRIED):
        with torch.no_grad():
            own: Tensor = model(images[:count])
        try:
            other = graph(images[:count])
        except Exception as error:  # both runtimes raise their own
            raise UserError(f"{folder}: the graph fails on {count} images ({one_line(error)})") from None
        apart = float((own - other).abs().max()) if own.shape == other.shape else float("inf")
        bound = _TOLERANCE * max(1.0, float(own.abs().max()))
        if not apart <= bound:
            raise UserError(
                f"{folder}: the graph gives other logits than the model (apart by {apart:.2g}, allowed {bound:.2g}): "
                "export it as safetensors"
            )
