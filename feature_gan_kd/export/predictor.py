"""Classifies image files with a published model, one of the hub, or one of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from feature_gan_kd.export.open_model import open_classifier
from feature_gan_kd.export.preprocessing import Preprocessing, stated_form
from feature_gan_kd.utils.errors import UserError

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
        self.preprocess = Preprocessing(found)
        with stated_form(found):
            self.label = found.label_of()

    def __call__(self, images: Sequence[Image], top: int = 5) -> list[list[Prediction]]:
        """Predicts the most probable classes of each image, the best first.

        Args:
            images: of any size and mode; each is turned upright and converted to the model's input.
            top: how many classes, at most.

        Raises:
            UserError: for an image whose values are not understood, see `convert_channels`, and for a model whose
                output is no logits.
        """
        with torch.no_grad():
            logits = self.model(self.preprocess(images))
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
