"""`evaluation.json`: the classes that the models confuse at the last evaluation, and images with all their answers."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.training.scores import Evaluation
from feature_gan_kd.utils.files import atomic_file

SAMPLES = 12
"""Images that are kept with the answers of all models."""

MAX_SAMPLE_SIDE = 128
"""Larger images are scaled down to this side in pixels."""


class SampleCollector:
    """Keeps images of the first batch: those on which most models err, and then the first ones."""

    def __init__(self) -> None:
        self.images: Tensor | None = None
        self.labels: list[int] = []
        self.answers: list[list[tuple[int, float]]] = []

    def __call__(self, images: Tensor, labels: Tensor, logits: Sequence[Tensor]) -> None:
        """Takes the first batch that has images.

        Args:
            images: (batch, channels, height, width), normalised.
            labels: (batch,) class indices.
            logits: (batch, classes) of each model.
        """
        if self.images is not None:
            return
        probabilities, answers = torch.stack([one.softmax(1) for one in logits]).max(2)
        errors = (answers != labels).sum(0)
        chosen = errors.argsort(descending=True, stable=True)[:SAMPLES].sort().values
        self.images, self.labels = images[chosen].float().cpu(), labels[chosen].tolist()
        self.answers = [
            list(zip(answers[:, k].tolist(), probabilities[:, k].tolist(), strict=True)) for k in chosen.tolist()
        ]


def write_evaluation(
    path: Path,
    evaluation: Evaluation,
    samples: SampleCollector,
    *,
    epoch: int,
    class_names: Sequence[str] | None,
    normalisation: Normalisation | None,
) -> None:
    """Writes the file, which replaces that of the evaluation before.

    Args:
        path: of the file.
        evaluation: of all models.
        samples: some of its images.
        epoch: after which it was made, from 1.
        class_names: by class index; None where there are none.
        normalisation: of the images; None keeps no pictures.

    Raises:
        OSError: where the disk cannot hold it.
    """
    pictures = [] if normalisation is None or samples.images is None else _data_urls(samples.images, normalisation)
    rows = zip(pictures, samples.labels, samples.answers, strict=bool(pictures))
    content = {
        "epoch": epoch,
        "class_names": None if class_names is None else list(class_names),
        **dataclasses.asdict(evaluation),
        "samples": [{"image": picture, "label": label, "answers": answers} for picture, label, answers in rows],
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content))


def _data_urls(images: Tensor, normalisation: Normalisation) -> list[str]:
    """Images (batch, channels, height, width) as PNG data URLs: grey with one channel, else of the first three."""
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (normalisation.mean, normalisation.std))
    pixels = ((images * std + mean).clamp(0, 1) * 255).round().byte()
    pixels = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1]
    urls = []
    for one in pixels.permute(0, 2, 3, 1).numpy():
        image = Image.fromarray(one if one.shape[2] == 3 else one[:, :, 0])
        image.thumbnail((MAX_SAMPLE_SIDE, MAX_SAMPLE_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        urls.append(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return urls
