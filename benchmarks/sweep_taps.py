"""Checks that the tap of every timm class gives the same map and gradients in every way of running the model.

    python -m benchmarks.sweep_taps --json benchmarks/results/sweep_taps.json

The smallest architecture of each class, with random weights, is tapped and run plainly; then in channels-last memory
order, with gradient checkpointing, and compiled (by AOTAutograd without code generation, which is enough to test hooks
and graph). All this is in training mode and float64, where rounding cannot hide a difference, or in float32 where a
model has float32 parts. Under bf16 autocast the map is compared in evaluation mode. Stage -2 is compared with timm's
own `forward_intermediates`. Results are written after each model; models that are good in the file are not tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.sweep_timm import CLASSES, input_of, smallest_of_each_class, write
from feature_gan_kd import UserError
from feature_gan_kd.models.build import safe_memory_format
from feature_gan_kd.models.compile import Compiler
from feature_gan_kd.models.find_taps import find_taps
from feature_gan_kd.models.tapped_model import TappedModel

# bf16 has 8 bits of mantissa, and a deep model may add up its rounding to more than this tolerance: then its map must
# be, bit for bit, what timm's own `forward_features` gives under autocast.
TOLERANCES = {"channels_last": 1e-6, "checkpointing": 1e-6, "compile": 1e-6, "stage": 0.0, "bf16": 0.05}
FLOAT32_TOLERANCE = 1e-3
MOST_IN_FLOAT64 = 100_000_000  # parameters


MapAndGradients = tuple[Tensor, list[Tensor]]


def measure(model: nn.Module, images: Tensor) -> MapAndGradients:
    """Returns the map, and the gradient of a fixed sum over it by every parameter; training mode, fixed seed."""
    return _map_and_gradients(TappedModel(model, find_taps(model, images, "it"), "it"), images)


def _map_and_gradients(tapped: TappedModel, images: Tensor) -> MapAndGradients:
    tapped.train()
    torch.manual_seed(1)
    _, (feature_map,) = tapped(images)
    weights = torch.linspace(-1, 1, feature_map.numel(), dtype=feature_map.dtype).view(feature_map.shape)
    parameters = [parameter for parameter in tapped.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((feature_map * weights).mean(), parameters, allow_unused=True)
    return feature_map.detach(), [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]


def difference(one: MapAndGradients, other: MapAndGradients) -> float:
    """Returns the larger of the relative differences of map and gradients, by their norms."""
    map_difference = _relative(one[0], other[0])
    flat = [torch.cat([gradient.flatten() for gradient in gradients]) for _, gradients in (one, other)]
    return max(map_difference, _relative(*flat))


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm().clamp(min=1e-12))


def run_every_way(name: str, image_size: int | None) -> dict[str, Any]:
    """Measures how far one architecture differs from its plain run, by the way it is run."""
    channels, side = input_of(name)
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size
    options = {"img_size": image_size} if fixed and image_size not in (None, side) else {}
    side = image_size or side
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, in_chans=channels, **options)
    images = torch.randn(2, channels, side, side)
    low_precision, is_own = _bf16(model, images)
    plain = None
    if sum(parameter.numel() for parameter in model.parameters()) < MOST_IN_FLOAT64:
        with contextlib.suppress(RuntimeError):  # some models have parts that are always float32
            plain = measure(copy.deepcopy(model).double(), images.double())
            model, images = model.double(), images.double()
    if plain is None:
        plain = measure(copy.deepcopy(model), images)
    result: dict[str, Any] = {"class": type(model).__name__, "image_size": side, "dtype": str(images.dtype)}
    differences: dict[str, float] = {}
    refused: dict[str, str] = {}
    for way, run in {"channels_last": _channels_last, "checkpointing": _checkpointing, "compile": _compiled}.items():
        try:
            differences[way] = difference(plain, run(copy.deepcopy(model), images))
        except UserError as error:
            refused[way] = str(error)
        except AssertionError as error:  # timm's own, for models without gradient checkpointing
            if way != "checkpointing":
                raise
            refused[way] = f"timm: {' '.join(str(error).split())}"
    differences["bf16"] = low_precision
    try:
        differences["stage"] = _stage(copy.deepcopy(model), images)
    except UserError as error:
        refused["stage"] = str(error)
    over = [way for way, value in differences.items() if not value <= _tolerance(way, images.dtype)]
    if is_own and "bf16" in over:
        over.remove("bf16")
        result["rounding"] = "bf16: the model's own"
    if over:
        result["failed"] = ", ".join(f"{way} {differences[way]:.2g}" for way in over)
    return {
        **result,
        "differences": {way: float(f"{value:.2g}") for way, value in differences.items()},
        "refused": refused,
    }


def _channels_last(model: nn.Module, images: Tensor) -> MapAndGradients:
    order = safe_memory_format(model, images.device, channels_last=True)
    return measure(model.to(memory_format=order), images.contiguous(memory_format=order))


def _checkpointing(model: Any, images: Tensor) -> MapAndGradients:
    model.set_grad_checkpointing(True)
    return measure(model, images)


def _compiled(model: nn.Module, images: Tensor) -> MapAndGradients:
    torch._dynamo.reset()
    tapped = TappedModel(model, find_taps(model, images, "it"), "it")
    tapped.compile_forward(Compiler("aot_eager"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile: ")  # says that a model runs without being compiled
        return _map_and_gradients(tapped, images)


@torch.no_grad()
def _stage(model: Any, images: Tensor) -> float:
    """Measures how far the map of stage -2 and the logits differ from timm's own."""
    model.eval()
    tapped = TappedModel(model, find_taps(model, images, "it", [-2]), "it")
    expected = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)[-2]
    logits, (feature_map,) = tapped(images)
    return _relative(expected, feature_map) + _relative(model(images), logits)


def _bf16(model: Any, images: Tensor) -> tuple[float, bool]:
    """Returns the map's relative difference under autocast; if it is large, whether timm's own pass gives the same."""
    model.eval()
    (tap,) = find_taps(model, images, "it")
    tapped = TappedModel(model, [tap], "it")
    with torch.no_grad():
        expected = tapped(images)[1][0]
        with torch.autocast("cpu", torch.bfloat16):
            found = tapped(images)[1][0]
            apart = _relative(expected, found.float())
            is_large = apart > TOLERANCES["bf16"]
            return apart, is_large and torch.equal(tap.to_map(model.forward_features(images)), found)


def _tolerance(way: str, dtype: torch.dtype) -> float:
    return FLOAT32_TOLERANCE if dtype == torch.float32 and way not in ("stage", "bf16") else TOLERANCES[way]


def main() -> None:
    """Tries what is not in the file yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file of the results, to which later calls add")
    parser.add_argument("--only", nargs="+", help="only these architectures")
    parser.add_argument("--image-size", type=int, help="side in pixels [the model's own]")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    names = options.only or smallest_of_each_class()
    for name in names:
        if name in results and "failed" not in results[name]:
            continue
        try:
            results[name] = run_every_way(name, options.image_size)
        except Exception as error:  # the sweep is there to find failures
            results[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        write(options.json, results)
        print(name, results[name].get("failed") or results[name]["refused"] or "ok", flush=True)
    print(table({name: results[name] for name in names}))
    sys.exit(any("failed" in results[name] for name in names))


def table(results: dict[str, Any]) -> str:
    """Returns Markdown: for each way the number of models that agree, the largest difference, and those refused."""
    lines = ["| way | same map and gradients | largest relative difference | refused |", "|---|---|---|---|"]
    for way in TOLERANCES:
        values = [result["differences"][way] for result in results.values() if way in result.get("differences", ())]
        reasons = Counter(result["refused"][way] for result in results.values() if way in result.get("refused", ()))
        good = sum(f"{way} " not in result.get("failed", "") for result in results.values() if "differences" in result)
        lines.append(
            f"| {way} | {good - sum(reasons.values())} | {max(values, default=0.0):.2g} | {sum(reasons.values())} |"
        )
    lines += [f"{name}: {result['failed']}" for name, result in results.items() if "failed" in result]
    lines += [
        f"{name}, {way}: {reason}"
        for name, result in results.items()
        for way, reason in result.get("refused", {}).items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
