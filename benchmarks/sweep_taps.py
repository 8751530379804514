"""The tap of every timm class under every way to run a model: does it deliver the same map, with gradient?

    python -m benchmarks.sweep_taps --json benchmarks/results/sweep_taps.json

The smallest architecture of each class, with random weights, is tapped and run plainly; then in channels-last memory
order, with gradient checkpointing, and compiled (by AOTAutograd without code generation: hooks and graph are what is
in question): in training mode and float64, where rounding cannot hide a difference, or in float32 where a model has
float32 parts. Under bf16 autocast it is compared in evaluation mode. Stage -2 is compared with timm's own
`forward_intermediates`. Results are written after each model, and models that stand in the file as good are not
tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.sweep_timm import CLASSES, input_of, smallest_of_each_class, write
from feature_gan_kd import UserError
from feature_gan_kd.models.build import safe_memory_format
from feature_gan_kd.models.compile import Compiler
from feature_gan_kd.models.discovery import find_taps
from feature_gan_kd.models.taps import TappedModel

# bf16 has 8 bits of mantissa. How far deep models add their rounding up is theirs: where it is more than this, the
# map must be, bit for bit, what timm's own `forward_features` gives under autocast.
TOLERANCES = {"channels_last": 1e-6, "checkpointing": 1e-6, "compile": 1e-6, "stage": 0.0, "bf16": 0.05}
FLOAT32_TOLERANCE = 1e-3
MOST_IN_FLOAT64 = 100_000_000  # parameters


def measured(model: nn.Module, images: Tensor, layers: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
    """The map, and the gradient of a fixed sum over it by every parameter, in training mode with a fixed seed."""
    tapped = TappedModel(model, find_taps(model, images, "it", layers), "it")
    return _map_and_gradient(tapped, images)


def _map_and_gradient(tapped: TappedModel, images: Tensor) -> tuple[Tensor, list[Tensor]]:
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


def apart(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> float:
    """The larger of the differences of map and gradient, by their norms, relative to the first."""
    map_difference = _relative(one[0], other[0])
    flat = [torch.cat([gradient.flatten() for gradient in gradients]) for _, gradients in (one, other)]
    return max(map_difference, _relative(*flat))


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm().clamp(min=1e-12))


def tried(name: str, image_size: int | None) -> dict[str, Any]:
    """The differences of one architecture from its plain run, by the way it was run."""
    channels, side = input_of(name)
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=False).fixed_input_size
    options = {"img_size": image_size} if fixed and image_size not in (None, side) else {}
    side = image_size or side
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=CLASSES, in_chans=channels, **options)
    images = torch.randn(2, channels, side, side)
    low_precision, is_own = _bf16(original, images)
    plain = None
    if sum(parameter.numel() for parameter in original.parameters()) < MOST_IN_FLOAT64:
        with contextlib.suppress(RuntimeError):  # some have parts that are always float32
            plain = measured(copy.deepcopy(original).double(), images.double())
            original, images = original.double(), images.double()
    if plain is None:
        plain = measured(copy.deepcopy(original), images)

    def fresh() -> nn.Module:
        return copy.deepcopy(original)

    def channels_last() -> tuple[Tensor, list[Tensor]]:
        model = fresh()
        order = safe_memory_format(model, images.device, channels_last=True)
        return measured(model.to(memory_format=order), images.contiguous(memory_format=order))

    def checkpointing() -> tuple[Tensor, list[Tensor]]:
        model: Any = fresh()
        model.set_grad_checkpointing(True)
        return measured(model, images)

    def compiled() -> tuple[Tensor, list[Tensor]]:
        torch._dynamo.reset()
        model = fresh()
        tapped = TappedModel(model, find_taps(model, images, "it"), "it")
        tapped.compile_forward(Compiler("aot_eager"))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="compile: ")  # that it goes on without
            return _map_and_gradient(tapped, images)

    ways: dict[str, Callable[[], tuple[Tensor, list[Tensor]]]] = {
        "channels_last": channels_last,
        "checkpointing": checkpointing,
        "compile": compiled,
    }
    result: dict[str, Any] = {"class": type(original).__name__, "image_size": side, "dtype": str(images.dtype)}
    result |= {"differences": {}, "refused": {}}
    for way, run in ways.items():
        try:
            result["differences"][way] = apart(plain, run())
        except UserError as error:
            result["refused"][way] = str(error)
        except AssertionError as error:  # timm's own, of models without gradient checkpointing
            if way != "checkpointing":
                raise
            result["refused"][way] = f"timm: {' '.join(str(error).split())}"
    result["differences"]["bf16"] = low_precision
    model: Any = fresh().eval()
    try:
        tapped = TappedModel(model, find_taps(model, images, "it", [-2]), "it")
        with torch.no_grad():
            expected = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)[-2]
            logits, (feature_map,) = tapped(images)
            result["differences"]["stage"] = _relative(expected, feature_map) + _relative(model(images), logits)
    except UserError as error:
        result["refused"]["stage"] = str(error)
    over = [way for way, value in result["differences"].items() if not value <= _tolerance(way, images.dtype)]
    if is_own and "bf16" in over:
        over.remove("bf16")
        result["rounding"] = "bf16: the model's own"
    if over:
        result["failed"] = ", ".join(f"{way} {result['differences'][way]:.2g}" for way in over)
    result["differences"] = {way: float(f"{value:.2g}") for way, value in result["differences"].items()}
    return result


def _bf16(model: Any, images: Tensor) -> tuple[float, bool]:
    """How far the map under autocast is from that without; if far, whether it is what timm's own pass gives there."""
    model.eval()
    (tap,) = find_taps(model, images, "it")
    tapped = TappedModel(model, [tap], "it")
    with torch.no_grad():
        expected = tapped(images)[1][0]
        with torch.autocast("cpu", torch.bfloat16):
            found = tapped(images)[1][0]
            difference = _relative(expected, found.float())
            far = difference > TOLERANCES["bf16"]
            return difference, far and torch.equal(tap.to_map(model.forward_features(images)), found)


def _tolerance(way: str, dtype: torch.dtype) -> float:
    return FLOAT32_TOLERANCE if dtype == torch.float32 and way not in ("stage", "bf16") else TOLERANCES[way]


def main() -> None:
    """Tries what is not in the file yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results, kept from run to run")
    parser.add_argument("--only", nargs="+", help="these architectures alone")
    parser.add_argument("--image-size", type=int, help="side in pixels [the model's own]")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    names = options.only or smallest_of_each_class()
    for name in names:
        if name in results and "failed" not in results[name]:
            continue
        try:
            results[name] = tried(name, options.image_size)
        except Exception as error:  # a failure is what the sweep is there to find
            results[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        write(options.json, results)
        print(name, results[name].get("failed") or results[name]["refused"] or "ok", flush=True)
    print(table({name: results[name] for name in names}))
    sys.exit(any("failed" in results[name] for name in names))


def table(results: dict[str, Any]) -> str:
    """Markdown: per way the models that agree, the largest difference, and those refused."""
    lines = ["| way | same map and gradient | largest relative difference | refused |", "|---|---|---|---|"]
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
