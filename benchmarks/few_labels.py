"""Measures what images without labels add to few labelled ones: the same peers, with and without them.

    python -m benchmarks.few_labels --data ../shared/data/cifar100 --output-dir runs/few-labels
    python -m benchmarks.few_labels --tabulate runs/few-labels

All runs of one number of labels have as many updates (to an epoch), of as many images. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from benchmarks.arms import arms_parser, difference, exit_status, read_results, write_result
from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.data.draws import draw_balanced
from feature_gan_kd.utils.errors import UserError

IMAGES, UPDATES, BATCH = 10_000, 1000, 64
NETWORKS = ("cifar_resnet8", "cifar_resnet14")
COMMON: dict[str, Any] = {
    **{"image_size": 32, "batch_size": BATCH, "recipe": "paper", "scheduler": "cosine", "warmup_fraction": 0.1},
    **{"weight_decay": 5e-4, "max_eval_samples": 5000, "mixed_precision": "no", "adversarial_lr": 2e-4},
    **{"discriminator_lr": 2e-4},
}
# Of each arm its settings, and whether it has the images without labels.
ARMS: dict[str, tuple[dict[str, Any], bool]] = {
    "logit, labelled images alone": ({"method": "logit"}, False),
    "logit, with the others": ({"method": "logit", "labeled_fraction": 0.25}, True),
    "logit, with the others, averaged sources": (
        {"method": "logit", "labeled_fraction": 0.25, "model_ema": 0.99, "targets": "ema"},
        True,
    ),
    "afd, with the others": ({"method": "afd", "labeled_fraction": 0.25}, True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all arms, numbers of labels and seeds, or tabulates them.

    Returns:
        The exit status: 0, or 2 for a mistake in the arguments.
    """
    parser = arms_parser("benchmarks.few_labels", __doc__, ARMS)
    parser.add_argument("--data", help="folder of parquet files of CIFAR-100")
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 50], help="of each class [10 50]")
    options = parser.parse_args(arguments)
    return exit_status("benchmarks.few_labels", functools.partial(_work, options))


def _work(options: argparse.Namespace) -> None:
    if options.tabulate is not None:
        print(table(read_results(options.tabulate, ())))
    elif not (options.data and options.output_dir):
        raise UserError("--data and --output-dir are needed, or --tabulate DIR")
    else:
        for seed in options.seeds:
            for labels in options.labels:
                for arm in options.arms:
                    run(arm, labels, seed, options.data, options.output_dir)


def draw(data: Any, per_class: int, seed: int, *, others: bool) -> Any:
    """Draws `IMAGES` images, `per_class` of each class with their label, and the others, if asked for, with -1."""
    labels = torch.tensor(data["fine_label"])
    chosen = draw_balanced(labels, min(IMAGES, len(labels)), seed)
    kept = draw_balanced(labels[chosen], per_class * len(torch.unique(labels)), seed)
    if not others:
        return data.select(chosen[kept].tolist())
    known = torch.full_like(labels[chosen], -1)
    known[kept] = labels[chosen][kept]
    names = data.features["fine_label"]
    return (
        data.select(chosen.tolist())
        .remove_columns("fine_label")
        .add_column("fine_label", known.tolist(), feature=names)
    )


def run(arm: str, labels: int, seed: int, data: str, output_dir: Path) -> None:
    """Trains one arm with one seed, unless its result is there.

    Raises:
        UserError: for data that cannot be used.
    """
    name = f"{arm.replace(', ', '-').replace(' ', '-')}-{labels}-{seed}"
    result = output_dir / f"{name}.json"
    if result.exists():
        return
    loaded = datasets.load_dataset(data)
    settings, others = ARMS[arm]
    train = draw(loaded["train"], labels, seed, others=others)
    known = 100 * labels
    shared = max(-(-known // (BATCH // 4)), -(-(IMAGES - known) // (BATCH - BATCH // 4)))  # updates of an epoch
    updates = shared * max(1, round(UPDATES / shared))
    epochs = updates // shared if others else round(updates * BATCH / known)
    began = time.perf_counter()
    distiller = OnlineAdversarialDistiller(
        list(NETWORKS),
        num_classes=100,
        **{**COMMON, **settings, "seed": seed, "epochs": epochs, "evaluate_every_epochs": epochs},
        label_column="fine_label",
    )
    record = distiller.fit(train, loaded["test"], output_dir=output_dir / "runs" / name, resume=True, progress=False)
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
