"""Every timm architecture beside a partner: wired (all, on the meta device) or trained one step (one per class).

    python -m benchmarks.sweep_timm wire  --json benchmarks/results/sweep_wire.json
    python -m benchmarks.sweep_timm train --json benchmarks/results/sweep_train.json
    python -m benchmarks.sweep_timm wire  --torchvision --json benchmarks/results/sweep_torchvision_wire.json
    python -m benchmarks.sweep_timm train --torchvision --json benchmarks/results/sweep_torchvision_train.json

With `--torchvision` the architectures are torchvision's own classifiers, given as modules, named `torchvision:NAME`.
Results are written after each model, and models that stand in the file as good are not tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import pickle
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from accelerate import init_empty_weights
from torch import Tensor, nn

from feature_gan_kd import DistillConfig, OnlineAdversarialDistiller, UserError
from feature_gan_kd.method.build import build_modules
from feature_gan_kd.method.topology import build_edges
from feature_gan_kd.models.build import build_models

CLASSES = 7
RESULTS = Path(__file__).parent / "results"
TORCHVISION = "torchvision:"


def architectures(library: str) -> list[str]:
    """The names of all architectures of timm's, or of torchvision's classifiers."""
    if library == "torchvision":
        return [TORCHVISION + name for name in torchvision.models.list_models(module=torchvision.models)]
    return list(timm.list_models())


def input_of(name: str) -> tuple[int, int]:
    """Channels and side in pixels of the images that an architecture was made for."""
    if name.startswith(TORCHVISION):
        weights = torchvision.models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
        own = getattr(model_of(name, empty=True), "image_size", None)  # of its positions, whatever the weights' is
        return 3, int(own or weights.transforms().crop_size[0])
    channels, _, side = timm.get_pretrained_cfg(name, allow_unregistered=False).input_size
    return int(channels), int(side)


def model_of(name: str, *, empty: bool = False) -> str | nn.Module:
    """What a user hands in: timm's name, or a module of torchvision's, if `empty` on the meta device."""
    if not name.startswith(TORCHVISION):
        return name
    # RegNet computes its widths by tensors, so that it cannot be built inside `torch.device("meta")`.
    with init_empty_weights(include_buffers=False) if empty else contextlib.nullcontext():
        module: nn.Module = torchvision.models.get_model(name.removeprefix(TORCHVISION), num_classes=CLASSES)
    return module.to("meta") if empty else module


def wired(name: str, partner: str = "resnet18") -> dict[str, Any]:
    """Wires one architecture with a partner, in both directions, without computing anything."""
    channels, side = input_of(name)
    model = model_of(name, empty=True)
    with torch.device("meta"):
        models = build_models(
            [model, partner], num_classes=CLASSES, in_chans=channels, pretrained=False, image_size=side, seed=0
        )
        modules = build_modules(models, build_edges("cycle", 2), (), None, DistillConfig(), in_chans=channels)
    tap = modules.tapped[0].taps[0]
    return {
        "class": type(models[0].module).__name__,
        "layer": tap.title,
        "layout": tap.layout.name,
        "map": list(tap.shape),
        "prefix_tokens": tap.prefix_tokens,
        "extractor_parameters": sum(parameter.numel() for parameter in modules.extractors[0]),
        "parameters": sum(parameter.numel() for parameter in models[0].module.parameters()),
        "links": [
            [str(connection.edge), *connection.source_shape[:1], *connection.grid] for connection in modules.connections
        ],
    }


def trained(name: str, image_size: int | None = None) -> dict[str, Any]:
    """One real update beside a partner of another layout, and what must hold before and after it."""
    channels, side = input_of(name)
    layout = wired(name)["layout"]
    partner = "test_resnet" if layout.startswith("NL") else "test_vit"
    if name.startswith(TORCHVISION):
        image_size = image_size or side  # a module does not state it
    distiller = OnlineAdversarialDistiller(
        [model_of(name), partner],
        num_classes=CLASSES,
        in_chans=channels,
        image_size=image_size,
        method="afd",
        lr=1e-3,
    )
    side = distiller.image_size
    model = distiller.models[0]
    images = torch.randn(2, channels, side, side)
    labels = torch.tensor([1, 5])
    problems = []
    model.eval()
    with torch.no_grad():
        wrapped = distiller.step.models[0]
        if not torch.equal(model(wrapped.adapter(images)), wrapped(images)[0]):
            problems.append("logits differ with the wrapper")
    expected = _touched_by_plain_training(model, images, labels)
    model.train()
    distiller.step.gradients(images, labels)
    group = distiller.step.logit_group
    pairs = zip(group.parameters, group.gradients, strict=True)
    reached = {id(parameter) for parameter, gradient in pairs if gradient is not None}
    missed = sorted(key for key, value in model.named_parameters() if key in expected and id(value) not in reached)
    if missed:
        problems.append(f"{len(missed)} parameters get no gradient, as {missed[0]}")
    metrics = distiller.training_step(images, labels)
    if not all(bool(value.isfinite()) for value in metrics.values()):
        problems.append("a loss is not finite")
    if any(module._forward_hooks for module in model.modules()):
        problems.append("hooks are left")
    model.eval()
    with torch.no_grad():
        logits = model(images)
        twins: list[nn.Module] = [copy.deepcopy(model), pickle.load(io.BytesIO(pickle.dumps(model)))]
        if not all(torch.equal(twin(images), logits) for twin in twins):
            problems.append("a copy gives other logits")
    return {
        "class": type(model).__name__,
        "partner": partner,
        "image_size": side,
        "layer": distiller.step.models[0].taps[0].title,
        "map": list(distiller.step.models[0].taps[0].shape),
        "losses": {key: round(float(value), 4) for key, value in metrics.items()},
        "problems": problems,
    }


def _touched_by_plain_training(model: nn.Module, images: Tensor, labels: Tensor) -> set[str]:
    """Names of the parameters that cross-entropy alone gives a gradient."""
    twin = copy.deepcopy(model).train()
    output = twin(images)
    logits = output[0] if isinstance(output, (tuple, list)) else output
    torch.nn.functional.cross_entropy(logits, labels).backward()
    return {key for key, value in twin.named_parameters() if value.grad is not None}


def smallest_of_each_class(library: str = "timm") -> list[str]:
    """The architecture with the fewest parameters of every model class, by the committed sweep."""
    best: dict[str, tuple[int, str]] = {}
    remove_leftovers = RESULTS / ("sweep_torchvision_wire.json" if library == "torchvision" else "sweep_wire.json")
    for name, result in json.loads(remove_leftovers.read_text()).items():
        if "class" in result:
            found = (result["parameters"], name)
            best[result["class"]] = min(best.get(result["class"], found), found)
    return sorted(name for _, name in best.values())


def main() -> None:
    """Tries what is not in the file yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build_modules", "train"))
    parser.add_argument("--json", type=Path, required=True, help="results, kept from run to run")
    parser.add_argument("--only", nargs="+", help="these architectures alone")
    parser.add_argument("--torchvision", action="store_const", const="torchvision", default="timm", dest="library")
    parser.add_argument("--image-size", type=int, help="train: side in pixels [the model's own]")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    everything = smallest_of_each_class if options.what == "train" else architectures
    names = options.only or everything(options.library)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in results or "failed" in results[name]:
            train = functools.partial(trained, image_size=options.image_size)
            results[name] = _tried(train if options.what == "train" else wired, name)
            write(options.json, results)
            print(name, results[name].get("refused") or results[name].get("failed") or "ok", flush=True)
    print(table({name: results[name] for name in names}))
    sys.exit(any("failed" in results[name] for name in names))


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes results as JSON, a line for each model."""
    lines = [f"{json.dumps(name)}: {json.dumps(result)}" for name, result in sorted(results.items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _tried(function: Any, name: str) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        result: dict[str, Any] = function(name)
        if result.get("problems"):
            result["failed"] = "; ".join(result["problems"])
    except UserError as error:
        result = {"refused" if "only encodes" in str(error) else "failed": str(error)}
    except Exception as error:  # a failure is what the sweep is there to find
        result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {**result, "seconds": round(time.perf_counter() - began, 2)}


def table(results: dict[str, Any]) -> str:
    """Markdown: per class the number of architectures, the layer and layout of its tap, and what failed."""
    kinds: dict[str, list[str]] = {}
    for name, result in results.items():
        kinds.setdefault(result.get("class", "(not wired)"), []).append(name)
    lines = ["| class | architectures | tapped at | layout | failed |", "|---|---|---|---|---|"]
    for kind, names in sorted(kinds.items()):
        layers = Counter(results[name].get("layer", "-") for name in names)
        layouts = Counter(results[name].get("layout", "-") for name in names)
        failed = [name for name in names if "failed" in results[name]]
        lines.append(
            f"| {kind} | {len(names)} | {', '.join(layers)} | {', '.join(layouts)} | {', '.join(failed) or 0} |"
        )
    refused = [f"{name}: {result['refused']}" for name, result in results.items() if "refused" in result]
    failed = [f"{name}: {result['failed']}" for name, result in results.items() if "failed" in result]
    good = len(results) - len(refused) - len(failed)
    lines += ["", f"{good} good, {len(refused)} refused, {len(failed)} failed, of {len(results)}"]
    return "\n".join([*lines, *refused, *failed])


if __name__ == "__main__":
    main()
