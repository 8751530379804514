"""Measures learning without labels: a frozen source without its classifier teaches a small network from scratch.

    python -m benchmarks.unlabeled --data ../shared/data/clothing --source weights/tf_efficientnet_lite0 \
        --output-dir runs/unlabeled/clothing
    python -m benchmarks.unlabeled --tabulate runs/unlabeled/clothing
    python -m benchmarks.unlabeled --price --source weights/tf_efficientnet_lite0 --output-dir runs/unlabeled

Each run trains by one arm and one seed, and is then measured on labelled images by nearest neighbours and by a linear
probe, as `feature-gan-kd probe` does. Finished runs are not repeated: the same command resumes.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from benchmarks.arms import arms_parser, difference, exit_status, read_results, write_result
from feature_gan_kd import OnlineAdversarialDistiller, Peer
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import count_classes
from feature_gan_kd.export.probe_model import probe_model
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.training.neighbours import NEIGHBOURS
from feature_gan_kd.utils.errors import UserError

SOURCE, UNTRAINED, CONTROL = "source", "untrained", "aligned"
# The settings of every run.
COMMON: dict[str, Any] = {"image_size": 64, "epochs": 10, "batch_size": 32, "evaluate_every_epochs": 10}
COMMON |= {"discriminator_lr": 2e-4, "label_column": None, "max_eval_samples": 500}
# Of each arm its settings; two runs of one seed differ in these alone. All but `supervised` see no labels.
ARMS: dict[str, dict[str, Any]] = {
    SOURCE: {},
    UNTRAINED: {},
    "supervised": {
        **{"labels": True, "method": "vanilla", "recipe": "scratch", "optimizer": "momentum", "lr": 0.1},
        **{"weight_decay": 5e-4, "smoothing": 0.0, "model_ema": None, "aa": None},
    },
    "aligned": {"method": "aligned"},
    "relation": {"method": "relation"},
    "statistics": {"method": "statistics"},
    # The mean squared difference of pooled features, as timm's FeatureDistillationTask has it.
    "pooled-l2": {"method": "l2-only", "vectors_as_maps": True},
    "pooled-aligned": {"method": "aligned", "vectors_as_maps": True},
    "l2": {"method": "l2-only"},
    "adversarial": {"method": "feature"},
    "aligned-relation": {"method": "aligned", "relation_weight": 1.0},
    "aligned-adversarial": {"method": "aligned", "adversarial_weight": 1.0},
    "all": {"method": "aligned", "relation_weight": 1.0, "statistics_weight": 1.0, "adversarial_weight": 1.0},
}
SHARED = ("data", "source", "network", "images")  # what all results of a table have in common
FIGURES = {"knn_accuracy": "k-NN", "linear_accuracy": "linear probe"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all arms and seeds, or tabulates them.

    Returns:
        The exit status: 0, or 2 for a mistake in the arguments.
    """
    parser = arms_parser("benchmarks.unlabeled", __doc__, ARMS)
    parser.add_argument("--data", help="labelled images; their labels serve to measure, and to the arm supervised")
    parser.add_argument("--source", help="folder of a trained model of timm")
    parser.add_argument("--network", default="cifar_resnet8", help="that learns from scratch [%(default)s]")
    parser.add_argument("--images", type=int, default=1200, help="to train on [%(default)s]")
    parser.add_argument("--label-column", help="of the data [found by its type]")
    parser.add_argument("--price", action="store_true", help="time updates beside the source's forward pass alone")
    options = parser.parse_args(arguments)
    return exit_status("benchmarks.unlabeled", functools.partial(_work, options))


def _work(options: argparse.Namespace) -> None:
    if options.tabulate is not None:
        print(table(read_results(options.tabulate, SHARED)))
    elif not (options.source and options.output_dir and (options.data or options.price)):
        raise UserError("--data (or --price), --source and --output-dir are needed, or --tabulate DIR")
    elif options.price:
        measure_price(options)
    else:
        for seed in options.seeds:
            for arm in options.arms:
                run(arm, seed, options)


def run(arm: str, seed: int, options: argparse.Namespace) -> None:
    """Trains and measures one arm with one seed, unless its result is there.

    Raises:
        UserError: for models or data that cannot be used.
    """
    result = options.output_dir / f"{arm}-{seed}.json"
    if result.exists():
        return
    began = time.perf_counter()
    settings = {**COMMON, "labels": False, **ARMS[arm], "seed": seed, "max_train_samples": options.images}
    settings["label_column"] = options.label_column
    classes = None
    if settings["labels"]:
        classes = count_classes(options.data, DistillConfig(label_column=options.label_column))
    distiller = _distiller(settings, options, classes)
    folder = options.output_dir / "runs" / f"{arm}-{seed}"
    if arm in (SOURCE, UNTRAINED):
        source = timm.create_model(f"local-dir:{options.source}", pretrained=True).pretrained_cfg
        distiller.save_pretrained(folder / "networks", mean=source["mean"], std=source["std"])
        record: dict[str, Any] = {}
    else:
        record = distiller.fit(options.data, output_dir=folder, resume=True, progress=False).last["metrics"]
    trained = time.perf_counter() - began
    index = 0 if arm == SOURCE else 1
    limits = {"max_train_samples": options.images, "max_eval_samples": 2000, "label_column": options.label_column}
    measured, _ = probe_model(
        str(folder / "networks" / f"{index}-{distiller.names[index]}"),
        options.data,
        DistillConfig(**limits),
        k=min(NEIGHBOURS, options.images),
    )
    about = {"arm": arm, "seed": seed, "data": Path(options.data).name, "source": Path(options.source).name}
    about |= {"network": options.network, "images": options.images, "settings": settings, "seconds": trained}
    write_result(result, {**about, "measured": measured, "last": record})
    print(
        f"{arm} {seed}: k-NN {measured['knn_accuracy']:.1f}, probe {measured['linear_accuracy']:.1f}, {trained:.0f} s"
    )


def measure_price(options: argparse.Namespace, rounds: int = 7, updates: int = 4) -> None:
    """Times an update of each kind, side by side, and writes the medians in milliseconds."""
    images = torch.randn(COMMON["batch_size"], 3, COMMON["image_size"], COMMON["image_size"])
    labels = torch.arange(len(images)) % 10
    timed: dict[str, Callable[[], object]] = {}
    for arm in ("supervised", "aligned", "relation", "adversarial", "all", "aligned, outputs kept"):
        settings = {**COMMON, "labels": False, **ARMS.get(arm, ARMS["aligned"])}
        if arm not in ARMS:
            settings |= {"cache_sources": "memory", "augmentation": "none"}
        distiller = _distiller(settings, options, 10 if settings["labels"] else None)
        if arm == "supervised":  # the network alone: the frozen source is not asked
            distiller.step.passes.cached_sources[0] = lambda images: (None, ())  # type: ignore[assignment]
        timed[arm] = functools.partial(distiller.training_step, images, labels)
    source = distiller.group.tapped[0]
    timed["forward pass of the source"] = functools.partial(_without_gradient, source, images)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, work in timed.items():
            began = time.perf_counter()
            for _ in range(updates):
                work()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - began) / updates)
    medians = {name: round(1000 * statistics.median(own), 1) for name, own in seconds.items()}
    about = {"milliseconds": medians, "batch_size": len(images), "rounds": rounds, "network": options.network}
    # Not beside the results of arms, which are all read together.
    write_result(options.output_dir / "price" / "price.json", about)
    print(json.dumps(about, indent=1))


@torch.no_grad()
def _without_gradient(model: TappedModel, images: Tensor) -> None:
    model(images)


def _distiller(
    settings: dict[str, Any], options: argparse.Namespace, classes: int | None
) -> OnlineAdversarialDistiller:
    layers = "global_pool" if settings.get("vectors_as_maps") else None
    return OnlineAdversarialDistiller(
        [Peer(f"local-dir:{options.source}", frozen=True), options.network],
        num_classes=classes,
        feature_layers=layers,
        **settings,
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """The means of every arm, and its paired differences to the untrained network and to `aligned`, in Markdown."""
    rows = [
        "| arm | seeds | k-NN % | linear probe % | probe against untrained | probe against aligned |",
        "|---|---|---|---|---|---|",
    ]
    by_arm = {arm: {one["seed"]: one["measured"] for one in results if one["arm"] == arm} for arm in ARMS}
    for arm, measured in by_arm.items():
        if not measured:
            continue
        means = [statistics.mean(one[name] for one in measured.values()) for name in FIGURES]
        probed = {name: {seed: one["linear_accuracy"] for seed, one in own.items()} for name, own in by_arm.items()}
        against = [difference(probed[arm], probed[other]) if other != arm else "" for other in (UNTRAINED, CONTROL)]
        rows.append(f"| {arm} | {len(measured)} | {means[0]:.1f} | {means[1]:.1f} | {' | '.join(against)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
