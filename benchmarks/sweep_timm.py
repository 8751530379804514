"""Tries every timm architecture beside a partner.

    python -m benchmarks.sweep_timm connect --json benchmarks/results/sweep_connect.json
    python -m benchmarks.sweep_timm train   --json benchmarks/results/sweep_train.json
    python -m benchmarks.sweep_timm connect --torchvision --json benchmarks/results/sweep_torchvision_connect.json
    python -m benchmarks.sweep_timm train   --torchvision --json benchmarks/results/sweep_torchvision_train.json
    python -m benchmarks.sweep_timm connect --transformers --json benchmarks/results/sweep_transformers_connect.json
    python -m benchmarks.sweep_timm train   --transformers --json benchmarks/results/sweep_transformers_train.json

`connect` builds every architecture on the meta device and connects it with the partner in both directions. `train`
trains the smallest architecture of every model class for one update. With `--torchvision` the architectures are
torchvision's classifiers, given as modules and named `torchvision:NAME`; with `--transformers` those of
`transformers_models.py`, which are small. Results are written after each model; models
that are good in the file are not tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import pickle
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from accelerate import init_empty_weights
from torch import Tensor, nn

from benchmarks import transformers_models
from feature_gan_kd import DistillConfig, OnlineAdversarialDistiller, UserError
from feature_gan_kd.method.build import build_modules
from feature_gan_kd.method.topology import build_edges
from feature_gan_kd.models.build import build_models
from feature_gan_kd.models.outputs import logits_of
from feature_gan_kd.models.tapped_model import TappedModel

CLASSES = 7
RESULTS = Path(__file__).parent / "results"
TORCHVISION, TRANSFORMERS = "torchvision:", transformers_models.PREFIX


def architectures(library: str) -> list[str]:
    """Returns the names of all architectures of timm, or of the classifiers of torchvision or transformers."""
    if library == "transformers":
        return [TRANSFORMERS + name for name in transformers_models.MODELS]
    if library == "torchvision":
        return [TORCHVISION + name for name in torchvision.models.list_models(module=torchvision.models)]
    return list(timm.list_models())


def input_of(name: str) -> tuple[int, int]:
    """Returns the channels and the side in pixels of the images that an architecture was made for."""
    if name.startswith(TORCHVISION):
        weights = torchvision.models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
        own = getattr(model_of(name, empty=True), "image_size", None)  # that of its positions, not of its weights
        return 3, int(own or weights.transforms().crop_size[0])
    if name.startswith(TRANSFORMERS):
        return 3, transformers_models.side_of(name)
    channels, _, side = timm.get_pretrained_cfg(name, allow_unregistered=False).input_size
    return int(channels), int(side)


def model_of(name: str, *, empty: bool = False) -> str | nn.Module:
    """Returns what a user gives: timm's name, or a module of the other two, if `empty` on the meta device."""
    if name.startswith(TRANSFORMERS):
        model = transformers_models.build(name, CLASSES)
        return model.to("meta") if empty else model
    if not name.startswith(TORCHVISION):
        return name
    # RegNet computes its widths by tensors, so that it cannot be built inside `torch.device("meta")`.
    with init_empty_weights(include_buffers=False) if empty else contextlib.nullcontext():
        module: nn.Module = torchvision.models.get_model(name.removeprefix(TORCHVISION), num_classes=CLASSES)
    return module.to("meta") if empty else module


def connect(name: str, partner: str = "resnet18") -> dict[str, Any]:
    """Connects one architecture with a partner in both directions, on the meta device: nothing is computed."""
    channels, side = input_of(name)
    model = model_of(name, empty=True)
    with torch.device("meta"):
        models = build_models(
            [model, partner], num_classes=CLASSES, in_chans=channels, pretrained=[False] * 2, image_size=side, seed=0
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
        "connections": [
            [str(connection.edge), *connection.source_shape[:1], *connection.grid] for connection in modules.connections
        ],
    }


def train(name: str, image_size: int | None = None) -> dict[str, Any]:
    """Trains one architecture for an update beside a partner of another layout, and checks what must hold."""
    channels, side = input_of(name)
    partner = "test_resnet" if connect(name)["layout"].startswith("NL") else "test_vit"
    if name.startswith((TORCHVISION, TRANSFORMERS)):
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
    model, tapped = distiller.models[0], distiller.step.models[0]
    images, labels = torch.randn(2, channels, side, side), torch.tensor([1, 5])
    problems = [] if _has_own_logits(tapped, model, images) else ["logits differ with the wrapper"]
    expected = _touched_by_plain_training(model, images, labels)
    model.train()
    metrics = distiller.training_step(images, labels)
    # SGD with momentum has a state for a parameter once it was given a gradient.
    reached = {id(parameter) for parameter in distiller.step.logit_groups[0].optimizer.state}
    missed = sorted(key for key, value in model.named_parameters() if key in expected and id(value) not in reached)
    problems += [f"{len(missed)} parameters get no gradient, as {missed[0]}"] if missed else []
    problems += [] if all(bool(value.isfinite()) for value in metrics.values()) else ["a loss is not finite"]
    problems += ["hooks are left"] if any(module._forward_hooks for module in model.modules()) else []
    problems += [] if _copies_agree(model, images) else ["a copy gives other logits"]
    return {
        "class": type(model).__name__,
        "partner": partner,
        "image_size": side,
        "layer": tapped.taps[0].title,
        "map": list(tapped.taps[0].shape),
        "losses": {key: round(float(value), 4) for key, value in metrics.items()},
        "problems": problems,
    }


@torch.no_grad()
def _has_own_logits(tapped: TappedModel, model: nn.Module, images: Tensor) -> bool:
    """Returns whether a model gives the same logits with its wrapper as without, bit for bit."""
    model.eval()
    return torch.equal(logits_of(model(tapped.adapter(images)), "it"), tapped(images)[0])


@torch.no_grad()
def _copies_agree(model: nn.Module, images: Tensor) -> bool:
    """Returns whether a deep copy and a pickled copy give the same logits, bit for bit."""
    model.eval()
    logits = logits_of(model(images), "it")
    copies: list[nn.Module] = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    return all(torch.equal(logits_of(one(images), "it"), logits) for one in copies)


def _touched_by_plain_training(model: nn.Module, images: Tensor, labels: Tensor) -> set[str]:
    """Returns the names of the parameters that cross-entropy alone gives a gradient."""
    twin = copy.deepcopy(model).train()
    torch.nn.functional.cross_entropy(logits_of(twin(images), "it"), labels).backward()
    return {key for key, value in twin.named_parameters() if value.grad is not None}


def smallest_of_each_class(library: str = "timm") -> list[str]:
    """Returns the architecture with the fewest parameters of every model class, by the committed sweep."""
    best: dict[str, tuple[int, str]] = {}
    sweep = RESULTS / ("sweep_connect.json" if library == "timm" else f"sweep_{library}_connect.json")
    for name, result in json.loads(sweep.read_text()).items():
        if "class" in result:
            found = (result["parameters"], name)
            best[result["class"]] = min(best.get(result["class"], found), found)
    return sorted(name for _, name in best.values())


def main() -> None:
    """Tries what is not in the file yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("connect", "train"))
    parser.add_argument("--json", type=Path, required=True, help="file of the results, to which later calls add")
    parser.add_argument("--only", nargs="+", help="only these architectures")
    parser.add_argument("--torchvision", action="store_const", const="torchvision", default="timm", dest="library")
    parser.add_argument("--transformers", action="store_const", const="transformers", dest="library")
    parser.add_argument("--image-size", type=int, help="train: side in pixels [the model's own]")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    everything = smallest_of_each_class if options.what == "train" else architectures
    names = options.only or everything(options.library)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in results or "failed" in results[name]:
            trial = functools.partial(train, image_size=options.image_size) if options.what == "train" else connect
            results[name] = _try(trial, name)
            write(options.json, results)
            print(name, results[name].get("refused") or results[name].get("failed") or "ok", flush=True)
    print(table({name: results[name] for name in names}))
    sys.exit(any("failed" in results[name] for name in names))


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes results as JSON, a line for each model."""
    lines = [f"{json.dumps(name)}: {json.dumps(result)}" for name, result in sorted(results.items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _try(trial: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any]:
    """Returns what a trial found, or why it refused or failed, with its seconds."""
    began = time.perf_counter()
    try:
        result = trial(name)
        if result.get("problems"):
            result["failed"] = "; ".join(result["problems"])
    except UserError as error:
        result = {"refused" if "only encodes" in str(error) else "failed": str(error)}
    except Exception as error:  # the sweep is there to find failures
        result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {**result, "seconds": round(time.perf_counter() - began, 2)}


def table(results: dict[str, Any]) -> str:
    """Returns Markdown: for each class its architectures, the layer and layout of their taps, and what failed."""
    kinds: dict[str, list[str]] = {}
    for name, result in results.items():
        kinds.setdefault(result.get("class", "(not connected)"), []).append(name)
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
