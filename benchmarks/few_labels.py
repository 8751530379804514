"""Measures what images without labels add to few labelled ones: the same peers, with and without them.

    python -m benchmarks.few_labels --data ../shared/data/cifar100 --output-dir runs/few-labels
    python -m benchmarks.few_labels --tabulate runs/few-labels/scratch

The regime `scratch` trains two small ResNets on CIFAR-100, `finetune` two networks with ImageNet weights on
photographs. All runs of one number of labels have as many updates (to an epoch), of as many images. Finished runs are
not repeated.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch

from benchmarks.arms import arms_parser, difference, exit_status, read_results, write_result
from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.data.draws import draw_balanced
from feature_gan_kd.utils.errors import UserError

OTHERS = {"labeled_fraction": 0.25}
"""Of the arms with images without labels: every batch has as many with labels."""


@dataclass(frozen=True)
class Regime:
    """Which networks learn from which images, and how.

    Attributes:
        networks: in order.
        column: of the labels.
        images: drawn from the training images, from all classes alike; None for all.
        updates: of every run, to whole epochs.
        batch: images of an update.
        labels: of each class, where the command names no number.
        settings: of every run.
    """

    networks: tuple[str, ...]
    column: str
    images: int | None
    updates: int
    batch: int
    labels: tuple[int, ...]
    settings: Mapping[str, Any]


_SHORT_RATES = {"adversarial_lr": 2e-4, "discriminator_lr": 2e-4}
REGIMES: dict[str, Regime] = {
    "scratch": Regime(
        ("cifar_resnet8", "cifar_resnet14"),
        "fine_label",
        images=10_000,
        updates=1000,
        batch=64,
        labels=(10, 50),
        settings={
            **{"image_size": 32, "recipe": "paper", "scheduler": "cosine", "warmup_fraction": 0.1},
            **{"weight_decay": 5e-4, "max_eval_samples": 5000, **_SHORT_RATES},
        },
    ),
    "finetune": Regime(
        ("local-dir:weights/tf_efficientnet_lite0", "local-dir:weights/tf_efficientnet_lite2"),
        "label",
        images=None,
        updates=200,
        batch=32,
        labels=(10,),
        settings={"image_size": 96, "recipe": "finetune", **_SHORT_RATES},
    ),
}
_AVERAGED = {"model_ema": 0.99, "targets": "ema"}
_STRONG = {"aa": "rand-m9-mstd0.5"}
# Of each arm its settings, and whether it has the images without labels.
ARMS: dict[str, tuple[dict[str, Any], bool]] = {
    "logit, labelled images alone": ({"method": "logit"}, False),
    "logit, labelled images alone, augmented": ({"method": "logit", **_STRONG}, False),
    "logit, with the others": ({"method": "logit", **OTHERS}, True),
    "logit, with the others, averaged sources": ({"method": "logit", **OTHERS, **_AVERAGED}, True),
    "logit, with the others, averaged sources, plain view": (
        {"method": "logit", **OTHERS, **_AVERAGED, **_STRONG, "source_view": "plain"},
        True,
    ),
    "afd, with the others": ({"method": "afd", **OTHERS}, True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all arms, numbers of labels and seeds, or tabulates them.

    Returns:
        The exit status: 0, or 2 for a mistake in the arguments.
    """
    parser = arms_parser("benchmarks.few_labels", __doc__, ARMS)
    parser.add_argument("--regime", choices=REGIMES, default="scratch", help="[%(default)s]")
    parser.add_argument("--data", help="folder of CIFAR-100 (scratch), or of photographs (finetune)")
    parser.add_argument("--labels", nargs="+", type=int, help="of each class [10 50, finetune 10]")
    options = parser.parse_args(arguments)
    return exit_status("benchmarks.few_labels", functools.partial(_work, options))


def _work(options: argparse.Namespace) -> None:
    if options.tabulate is not None:
        print(table(read_results(options.tabulate, ())))
    elif not (options.data and options.output_dir):
        raise UserError("--data and --output-dir are needed, or --tabulate DIR")
    else:
        regime = REGIMES[options.regime]
        loaded = datasets.load_dataset(options.data)
        for seed in options.seeds:
            for labels in options.labels or regime.labels:
                for arm in options.arms:
                    run(arm, labels, seed, regime, loaded, options.output_dir / options.regime)


def draw(data: Any, regime: Regime, per_class: int, seed: int, *, others: bool) -> Any:
    """Draws a regime's images, `per_class` of each class with their label, and the others, if asked for, with -1."""
    labels = torch.tensor(data[regime.column])
    chosen = draw_balanced(labels, min(regime.images or len(labels), len(labels)), seed)
    kept = draw_balanced(labels[chosen], per_class * len(torch.unique(labels)), seed)
    if not others:
        return data.select(chosen[kept].tolist())
    known = torch.full_like(labels[chosen], -1)
    known[kept] = labels[chosen][kept]
    names = data.features[regime.column]
    return (
        data.select(chosen.tolist())
        .remove_columns(regime.column)
        .add_column(regime.column, known.tolist(), feature=names)
    )


def run(arm: str, labels: int, seed: int, regime: Regime, loaded: Any, output_dir: Path) -> None:
    """Trains one arm with one seed on splits of `datasets`, and evaluates on all but `train`, unless that is done.

    Raises:
        UserError: for data that cannot be used.
    """
    name = f"{arm.replace(', ', '-').replace(' ', '-')}-{labels}-{seed}"
    result = output_dir / f"{name}.json"
    if result.exists():
        return
    settings, others = ARMS[arm]
    train = draw(loaded["train"], regime, labels, seed, others=others)
    evaluation = datasets.concatenate_datasets([split for name, split in loaded.items() if name != "train"])
    classes = len(train.features[regime.column].names)
    known, batch = classes * labels, regime.batch
    total = min(regime.images or len(loaded["train"]), len(loaded["train"]))
    shared = max(-(-known // (batch // 4)), -(-(total - known) // (batch - batch // 4)))  # updates of an epoch
    updates = shared * max(1, round(regime.updates / shared))
    epochs = updates // shared if others else round(updates * batch / known)
    began = time.perf_counter()
    common = {"batch_size": batch, "mixed_precision": "no", "label_column": regime.column, **regime.settings}
    distiller = OnlineAdversarialDistiller(
        list(regime.networks),
        num_classes=classes,
        pretrained=any(name.startswith("local-dir:") for name in regime.networks),
        **{**common, **settings, "seed": seed, "epochs": epochs, "evaluate_every_epochs": epochs},
    )
    record = distiller.fit(train, evaluation, output_dir=output_dir / "runs" / name, resume=True, progress=False)
    about = {"arm": arm, "labels": labels, "seed": seed, "epochs": epochs, "updates": record.last["step"]}
    about |= {"settings": settings, "seconds": time.perf_counter() - began, "accuracy": record.accuracy}
    write_result(result, {**about, "last": record.last["metrics"]})
    print(f"{name}: {record.accuracy}", flush=True)


def table(results: Sequence[dict[str, Any]]) -> str:
    """The mean of both networks in every arm, and its paired difference to the labelled images alone, in Markdown."""
    alone = next(iter(ARMS))
    rows = ["| labels of a class | arm | seeds | top-1 % | against labelled images alone |", "|---|---|---|---|---|"]
    for labels in sorted({one["labels"] for one in results}):
        own = {
            arm: {
                one["seed"]: statistics.mean(one["accuracy"])
                for one in results
                if (one["arm"], one["labels"]) == (arm, labels)
            }
            for arm in ARMS
        }
        for arm, values in own.items():
            if not values:
                continue
            against = "" if arm == alone else difference(values, own[alone])
            mean = statistics.mean(values.values())
            rows.append(f"| {labels} | {arm} | {len(values)} | {mean:.1f} | {against} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
