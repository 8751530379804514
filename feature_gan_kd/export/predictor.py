"""Classifies image files with a published model, one of the hub, or one of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import create_transform, resolve_data_config

from feature_gan_kd.data.convert import ImageError, convert_channels
from feature_gan_kd.export.classifier import open_classifier
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
    """Classifies images with a model.

    Args:
        name: of the model, see `open_classifier`.
        trust_code: load a file of torch.export, which can run code when it is loaded.

    Raises:
        UserError: where there is no model that can be loaded.
    """

    def __init__(self, name: str, *, trust_code: bool = False) -> None:
        found = open_classifier(name, trust_code=trust_code)
        self.name, self.model = name, found.model
        try:
            self.channels = int(found.cfg["input_size"][0])
            self.label = found.label_of()
            self.transform: Any = create_transform(
                **resolve_data_config({}, pretrained_cfg=dict(found.cfg)), is_training=False
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{found.where}: does not state the form of the images ({reason(error)}): export it again"
            ) from None

    def __call__(self, images: Sequence[Image], top: int = 5) -> list[list[Prediction]]:
        """Predicts the most probable classes of each image, the best first.

        Args:
            images: of any size and mode; each is turned upright and converted to the model's input.
            top: how many classes, at most.

        Raises:
            UserError: for an image whose values are not understood, see `convert_channels`, and for a model whose
                output is no logits.
        """
        names = [getattr(image, "filename", None) or f"image {k}" for k, image in enumerate(images)]
        converted = (convert_channels(image, self.channels, name) for image, name in zip(images, names, strict=True))
        batch = torch.stack([self.transform(image) for image in converted])
        with torch.no_grad():
            logits = self.model(batch)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] == 0:
            raise UserError(f"{self.name}: gives no logits (batch, classes), it is no classifier: name a classifier")
        if not bool(logits.isfinite().all()):
            raise UserError(f"{self.name}: gives logits that are not finite: name a model that did not diverge")
        probabilities = logits.float().softmax(dim=1)
        values, indices = probabilities.topk(min(top, probabilities.shape[1]))
        return [
            [Prediction(self.label(k), k, value) for k, value in zip(of.tolist(), row.tolist(), strict=True)]
            for of, row in zip(indices, values, strict=True)
        ]


def read_image(path: Path) -> Image:
    """Decodes an image file.

    Raises:
        ImageError: where it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... for broken files
        problem = f"is not an image ({reason(error)})" if path.exists() else "does not exist"
        raise ImageError(
            f"image: {path} {problem}: name image files, or leave out such with --skip-bad-images"
        ) from None
