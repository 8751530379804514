"""Draws Grad-CAM pictures of several models side by side into a folder, where the report finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from feature_gan_kd.analysis.gradcam import GradCamHeatmaps, grad_cam, overlay, to_rgb
from feature_gan_kd.data import ImageSource
from feature_gan_kd.models.find_taps import find_taps, layers_of
from feature_gan_kd.models.in_place import check_in_place
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.files import atomic_folder


def draw_grad_cam(
    models: Sequence[TappedModel],
    source: ImageSource,
    numbers: Sequence[int],
    folder: Path,
    *,
    normalisation: Normalisation | None,
    class_names: Sequence[str] | None,
    device: torch.device,
) -> None:
    """Draws where each model sees the right class of some images; the pictures replace those that the folder holds.

    Args:
        models: with at least one tap each.
        source: of the images.
        numbers: of the images, from 0 in the order of evaluation.
        folder: of the pictures and of `grad-cam.json`, which describes them.
        normalisation: of the images that the source gives; None, where it is not known, shows them as if it were mean 0
            and std 1.
        class_names: by class index; None writes the indices.
        device: of the models.

    Raises:
        UserError: where the source does not have these images, or the pictures cannot be drawn or written.
    """
    numbers = list(dict.fromkeys(numbers))
    images, labels = _select_images(source, numbers, device)
    heatmaps = [grad_cam(model, images, labels) for model in models]
    known = normalisation or Normalisation((0.0,), (1.0,))
    mean, std = (images.new_tensor(one)[:, None, None] for one in (known.mean, known.std))
    try:
        _write_pictures(folder, numbers, images * std + mean, labels, heatmaps, class_names)
    except OSError as error:
        raise UserError(f"grad_cam: {folder} cannot be written ({error.strerror}): make room") from None


def with_taps(
    models: Sequence[TappedModel], *, feature_layers: Any, images: Tensor, vectors: bool
) -> list[TappedModel]:
    """Gives a tap to each model that has none, since its method does not compare feature maps.

    Args:
        models: in order.
        feature_layers: in the user's notation, see `OnlineAdversarialDistiller`.
        images: (batch, channels, height, width), for a trial of each model.
        vectors: whether a vector may serve as a map of 1x1.

    Raises:
        UserError: where no map is found, or a later layer changes that of a named one in place.
    """
    tapped = []
    for k, model in enumerate(models):
        with torch.no_grad():
            adapted = model.adapter(images)
        layers = layers_of(feature_layers, k)
        taps = model.taps or find_taps(model.module, adapted, model.name, layers, vectors=vectors)
        tapped.append(TappedModel(model.module, taps, model.name, model.adapter))
        if not model.taps:
            check_in_place(tapped[-1], adapted, [one for one in layers if isinstance(one, str)], learns=False)
    return tapped


def _select_images(source: ImageSource, numbers: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (n, channels, height, width) and labels (n,) of these numbers."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    first = 0
    for images, labels in source.batches(batch_size=500, seed=0, epoch=0, device=device, train=False):
        found |= {n: (images[n - first], labels[n - first]) for n in numbers if first <= n < first + len(images)}
        first += len(images)
        if len(found) == len(numbers):
            break
    missing = next((number for number in numbers if number not in found), None)
    if missing is not None:
        raise UserError(
            f"grad_cam: there is no image {missing}, the evaluation images are 0 to {first - 1}: name one of these"
        )
    return torch.stack([found[number][0] for number in numbers]), torch.stack([found[number][1] for number in numbers])


def _write_pictures(
    folder: Path,
    numbers: Sequence[int],
    images: Tensor,
    labels: Tensor,
    heatmaps: Sequence[GradCamHeatmaps],
    class_names: Sequence[str] | None,
) -> None:
    """Writes one picture of each image (in [0, 1]) and one of each model's heat on it, and their description."""

    def name(index: int) -> str:
        return str(class_names[index]) if class_names else f"class {index}"

    described = []
    with atomic_folder(folder) as temporary:
        for i, number in enumerate(numbers):
            label = int(labels[i])
            Image.fromarray(to_rgb(images[i])).save(temporary / f"{number}.png")
            answers = []
            for k, of_model in enumerate(heatmaps):
                Image.fromarray(overlay(images[i], of_model.heat[i])).save(temporary / f"{number}-{k}.png")
                given = of_model.probabilities[i]
                answers.append({"prediction": name(int(given.argmax())), "probability": float(given[label])})
            described.append({"number": number, "label": name(label), "models": answers})
        layers = [{"layer": one.tap.layer, "grid": list(one.tap.shape[1:])} for one in heatmaps]
        (temporary / "grad-cam.json").write_text(json.dumps({"layers": layers, "images": described}, indent=1) + "\n")
