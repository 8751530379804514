"""`feature-gan-kd predict`."""

from __future__ import annotations

import dataclasses
from json import dumps
from pathlib import Path

from feature_gan_kd.utils.errors import UserError

# Images that are decoded and classified at once.
BATCH = 32


def predict(
    model_dir: Path,
    image: Path,
    images: tuple[Path, ...] = (),
    /,
    top: int = 5,
    json: bool = False,
    trust_code: bool = False,
) -> None:
    """Print the most probable classes of images.

    Args:
        model_dir: Folder of a published model, in any format of export; a leading local-dir: is ignored.
        image: Image file.
        images: More image files.
        top: Number of classes to print for each image.
        json: Print a line of JSON for each image.
        trust_code: Load a torch.export file, which can run code while it is loaded.
    """
    if top < 1:
        raise UserError(f"--top: {top} is not allowed, expected a whole number of at least 1")
    from feature_gan_kd.export.predictor import Predictor, read_image

    classifier = Predictor(Path(str(model_dir).removeprefix("local-dir:")), trust_code=trust_code)
    paths = [image, *images]
    for first in range(0, len(paths), BATCH):
        part = paths[first : first + BATCH]
        for path, guesses in zip(part, classifier([read_image(path) for path in part], top), strict=True):
            if json:
                print(dumps({"image": str(path), "classes": [dataclasses.asdict(guess) for guess in guesses]}))
            else:
                print(f"{path}  {', '.join(f'{guess.label} {guess.probability:.1%}' for guess in guesses)}")
