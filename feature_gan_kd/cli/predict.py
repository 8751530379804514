"""`feature-gan-kd predict`."""

from __future__ import annotations

import csv as csv_format
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from feature_gan_kd.cli.output_file import check_output_file
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_file
from feature_gan_kd.utils.image_files import list_images
from feature_gan_kd.utils.imports import imports_without_collection

if TYPE_CHECKING:
    from feature_gan_kd.export.predictor import Prediction, Predictor

# Images that are decoded and classified at once.
BATCH = 32
COLUMNS = ("image", "rank", "label", "index", "probability")
"""Of the CSV file."""


def predict(
    model: str,
    image: Path,
    images: tuple[Path, ...] = (),
    /,
    top: int = 5,
    json: bool = False,
    csv: Path | None = None,
    skip_bad_images: bool = False,
    trust_code: bool = False,
) -> None:
    """Print the most probable classes of images.

    Args:
        model: Folder of a published model, in any format of export; or the name of a trained model, hf-hub:owner/name
            or timm's. A folder goes before a timm name; a leading local-dir: is ignored.
        image: Image file, or a folder of them.
        images: More image files or folders.
        top: Number of classes to print for each image.
        json: Print a line of JSON for each image.
        csv: Write a table to this file in place of the lines: image, rank (from 1), label, index, probability
            (default: none).
        skip_bad_images: Skip images that cannot be decoded.
        trust_code: Load a torch.export file, which can run code while it is loaded.
    """
    if top < 1:
        raise UserError(f"--top: {top} is not allowed, expected a whole number of at least 1")
    paths, notes = list_images([image, *images])
    if csv is not None:
        if json:
            raise UserError(
                "--csv: the table takes the place of the printed lines, and so do those of --json: give one"
            )
        check_output_file("--csv", csv, paths)
    with imports_without_collection():
        from feature_gan_kd.export.predictor import Predictor

    predictor = Predictor(model, trust_code=trust_code)
    if notes:
        print(*notes, sep="\n", file=sys.stderr)
    predictions = _predict(predictor, paths, top, skip_bad_images)
    if csv is not None:
        _write_csv(csv, predictions)
        return
    for path, guesses in predictions:
        if json:
            print(dumps({"image": str(path), "classes": [dataclasses.asdict(guess) for guess in guesses]}))
        else:
            print(f"{path}  {'; '.join(f'{guess.label} {guess.probability:.1%}' for guess in guesses)}")


def _predict(
    predictor: Predictor, paths: Sequence[Path], top: int, skip: bool
) -> Iterator[tuple[Path, list[Prediction]]]:
    """Yields each image with its classes, in order; at the end, says how many were skipped."""
    from feature_gan_kd.export.preprocessing import read_images, skipped_note

    bad: list[Path] = []
    for first in range(0, len(paths), BATCH):
        batch = dict(enumerate(paths[first : first + BATCH], first))
        read, skipped = read_images(batch, predictor.preprocess.channels, skip=skip)
        bad += skipped
        if read:
            for k, guesses in zip(read, predictor(list(read.values()), top), strict=True):
                yield paths[k], guesses
    if bad:
        print(skipped_note(bad), file=sys.stderr)


def _write_csv(file: Path, predictions: Iterator[tuple[Path, list[Prediction]]]) -> None:
    """Writes the table, whole or not at all, and says how many images are in it."""
    count = 0
    try:
        # A file's name may hold bytes that are no text: they are written as they are.
        with (
            atomic_file(file) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out,
        ):
            table = csv_format.writer(out, lineterminator="\n")
            table.writerow(COLUMNS)
            for path, guesses in predictions:
                count += 1
                table.writerows(
                    (path, rank, guess.label, guess.index, f"{guess.probability:.6g}")
                    for rank, guess in enumerate(guesses, 1)
                )
    except OSError as error:
        raise UserError(f"--csv: {file} cannot be written ({error.strerror}): make room or name another file") from None
    print(f"{file}: {count} images")
