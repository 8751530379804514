"""Writes a copy of labelled images in which a share of the training labels is wrong; the other splits stay as they are.

python -m benchmarks.wrong_labels ../shared/data/clothing runs/data/clothing-wrong-40 --share 0.4
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from torch import Tensor

from benchmarks.arms import exit_status
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the copy.

    Returns:
        The exit status: 0, or 2 for a mistake in the arguments.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wrong_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder of images with the splits train and test")
    parser.add_argument("output", type=Path, help="folder of parquet files to write")
    parser.add_argument("--share", type=float, default=0.4, help="of wrong labels [%(default)s]")
    parser.add_argument("--label-column", default="label", help="[%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the draw [%(default)s]")
    return exit_status("benchmarks.wrong_labels", functools.partial(_work, parser.parse_args(arguments)))


def _work(options: argparse.Namespace) -> None:
    if not 0 < options.share < 1:
        raise UserError(f"--share: {options.share:g} is not allowed, expected a number above 0 and below 1")
    if options.output.exists():
        raise UserError(f"{options.output}: is there already: name a new folder")
    splits = datasets.load_dataset(str(options.data))
    train, column = splits["train"], options.label_column
    labels = wrong_labels(torch.tensor(train[column]), options.share, options.seed)
    feature = train.features[column]
    splits["train"] = train.remove_columns(column).add_column(column, labels.tolist(), feature=feature)
    with atomic_folder(options.output) as temporary:
        for name, split in splits.items():
            split.to_parquet(temporary / f"{name}.parquet")
    print(f"{options.output}: {len(labels)} training images, {options.share:.0%} of their labels wrong")


def wrong_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """Gives that share of the images, rounded, the label of another class, drawn alike from all others.

    Args:
        labels: class indices, int64 (images,).
        share: of the images, above 0 and below 1.
        seed: decides which, and which class they get.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = int(labels.max()) + 1
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    changed = labels.clone()
    changed[chosen] = (labels[chosen] + torch.randint(1, classes, (len(chosen),), generator=generator)) % classes
    return changed


if __name__ == "__main__":
    sys.exit(main())
