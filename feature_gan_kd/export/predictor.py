"""Classifies image files with a published model, of any export format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import create_transform, resolve_data_config

from feature_gan_kd.data.convert import convert_channels
from feature_gan_kd.export import GRAPH_FILES, Graph, load_graph, load_published, read_config
from feature_gan_kd.utils.errors import UserError, reason

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Prediction:
    """One class of an image, with its probability.

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
        folder: written by `save_pretrained` or `export`, in any format.
        trust_code: load a file of torch.export, which can run code when it is loaded.

    Raises:
        UserError: where the folder holds no model that can be loaded.
    """

    def __init__(self, folder: Path, *, trust_code: bool = False) -> None:
        graph = next((graph for graph, name in GRAPH_FILES.items() if (folder / name).is_file()), None)
        if graph == "torch-export" and not trust_code:
            raise UserError(
                f"{folder / GRAPH_FILES[graph]}: can run code when it is loaded: add --trust-code if you trust it"
            )
        self.model: Graph
        if graph is None:
            self.model, config = load_published(folder)
        else:
            self.model, config = load_graph(folder, graph), read_config(folder)
        try:
            cfg = dict(config["pretrained_cfg"])
            self.channels = int(cfg["input_size"][0])
            self.labels = _read_labels(config)
            self.transform: Any = create_transform(**resolve_data_config({}, pretrained_cfg=cfg), is_training=False)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{folder / 'config.json'}: does not state the form of the images ({reason(error)}): export it again"
            ) from None

    def __call__(self, images: Sequence[Image], top: int = 5) -> list[list[Prediction]]:
        """Predicts the most probable classes of each image, the best first.

        Args:
            images: of any size and mode; each is turned upright and converted to the model's input.
            top: how many classes, at most.

        Raises:
            UserError: for an image whose values are not understood, see `convert_channels`.
        """
        names = [getattr(image, "filename", None) or f"image {k}" for k, image in enumerate(images)]
        converted = (convert_channels(image, self.channels, name) for image, name in zip(images, names, strict=True))
        batch = torch.stack([self.transform(image) for image in converted])
        with torch.no_grad():
            probabilities = self.model(batch).softmax(dim=1)
        values, indices = probabilities.topk(min(top, probabilities.shape[1]))
        return [
            [Prediction(self._label(k), k, value) for k, value in zip(of.tolist(), row.tolist(), strict=True)]
            for of, row in zip(indices, values, strict=True)
        ]

    def _label(self, index: int) -> str:
        return self.labels.get(index, str(index))


def read_image(path: Path) -> Image:
    """Decodes an image file.

    Raises:
        UserError: where it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... for broken files
        if path.is_dir():
            problem = "is a folder"
        else:
            problem = f"is not an image ({reason(error)})" if path.exists() else "does not exist"
        raise UserError(f"image: {path} {problem}: name image files") from None


def _read_labels(config: Mapping[str, Any]) -> dict[int, str]:
    names = config.get("label_names") or []
    found = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(index): str(name) for index, name in found}
