"""A published model put to use: from image files to classes, whatever format it was exported to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import create_transform, resolve_data_config

from feature_gan_kd.data.decode import convert_channels
from feature_gan_kd.export import GRAPHS, Graph, load_graph, load_published, read_config
from feature_gan_kd.utils.errors import UserError, reason

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Prediction:
    """One class of an image.

    Attributes:
        label: its name, or its index where the model has no names.
        index: from 0.
        probability: in [0, 1].
    """

    label: str
    index: int
    probability: float


class Predictor:
    """A published model that classifies images.

    Args:
        folder: what `save_pretrained` or `export` wrote, of any format.
        trust_code: read a file of torch.export, which can run code while it is read.

    Raises:
        UserError: where the folder holds no model that can be read.
    """

    def __init__(self, folder: Path, *, trust_code: bool = False) -> None:
        form = next((form for form, name in GRAPHS.items() if (folder / name).is_file()), None)
        if form == "torch-export" and not trust_code:
            raise UserError(
                f"{folder / GRAPHS[form]}: can run code while it is read: add --trust-code if you trust who made it"
            )
        self.run: Graph
        if form is None:
            self.run, config = load_published(folder)
        else:
            self.run, config = load_graph(folder, form), read_config(folder)
        try:
            cfg = dict(config["pretrained_cfg"])
            self.channels = int(cfg["input_size"][0])
            self.labels = _labels(config)
            self.transform: Any = create_transform(**resolve_data_config({}, pretrained_cfg=cfg), is_training=False)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{folder / 'config.json'}: does not say what images are wanted ({reason(error)}): export it again"
            ) from None

    def __call__(self, images: Sequence[Image], top: int = 5) -> list[list[Prediction]]:
        """The most probable classes of each image, the best first.

        Args:
            images: of any size and mode; each is brought to what the model wants.
            top: how many classes, at most.
        """
        batch = torch.stack([self.transform(convert_channels(image, self.channels)) for image in images])
        with torch.no_grad():
            probabilities = self.run(batch).softmax(dim=1)
        values, indices = probabilities.topk(min(top, probabilities.shape[1]))
        return [
            [Prediction(self._label(k), k, value) for k, value in zip(of.tolist(), row.tolist(), strict=True)]
            for of, row in zip(indices, values, strict=True)
        ]

    def _label(self, index: int) -> str:
        return self.labels.get(index, str(index))


def read_image(path: Path) -> Image:
    """An image file, decoded and turned upright as its EXIF orientation says: as `datasets` reads it for training.

    Raises:
        UserError: where it is none.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... for broken files
        said = (
            "is a folder"
            if path.is_dir()
            else "is not there"
            if not path.exists()
            else f"is no image ({reason(error)})"
        )
        raise UserError(f"image: {path} {said}: name image files") from None


def _labels(config: Mapping[str, Any]) -> dict[int, str]:
    names = config.get("label_names") or []
    found = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(index): str(name) for index, name in found}
