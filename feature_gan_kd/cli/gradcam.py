"""Grad-CAM pictures of a run's models, into its folder, where the report finds them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feature_gan_kd.cli.options import restored
from feature_gan_kd.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from feature_gan_kd.analysis.gradcam import GradCamHeatmaps
    from feature_gan_kd.data import ImageSource
    from feature_gan_kd.distiller import OnlineAdversarialDistiller
    from feature_gan_kd.models.taps import TappedModel


def draw_pictures(run: Path, numbers: Sequence[int], data: str | None) -> None:
    """Draws where the models of a run, each as its best epoch left it, see the right class of some images.

    Args:
        run: its folder; it may still be going on.
        numbers: of evaluation images, from 0.
        data: images in place of those that the run was evaluated on.

    Raises:
        UserError: where no model is published yet, the images are not there, or the pictures cannot be drawn or
            written.
    """
    published = run / "networks"
    if not list(published.glob("*-best")):
        raise UserError(f"grad_cam: there is no model in {published} yet: wait for the run's first evaluation")
    distiller = restored(run)
    distiller.load_best(run)
    from feature_gan_kd.training.run import open_evaluation_images

    numbers = list(dict.fromkeys(numbers))
    images, labels = _chosen(open_evaluation_images(distiller.group, data), numbers, distiller)
    from feature_gan_kd.analysis.gradcam import see

    sights = [see(model, images, labels) for model in _tapped(distiller)]
    try:
        _write(run / "grad-cam", distiller, numbers, images, labels, sights)
    except OSError as error:
        raise UserError(f"grad_cam: {run / 'grad-cam'} cannot be written ({error.strerror}): make room") from None


def _chosen(
    source: ImageSource, numbers: Sequence[int], distiller: OnlineAdversarialDistiller
) -> tuple[Tensor, Tensor]:
    """Images (n, channels, height, width) and labels (n,) of these numbers."""
    import torch

    found: dict[int, tuple[Tensor, Tensor]] = {}
    first = 0
    for images, labels in source.batches(
        batch_size=500, seed=0, epoch=0, device=distiller.accelerator.device, train=False
    ):
        found |= {n: (images[n - first], labels[n - first]) for n in numbers if first <= n < first + len(images)}
        first += len(images)
        if len(found) == len(numbers):
            break
    wrong = next((number for number in numbers if number not in found), None)
    if wrong is not None:
        raise UserError(f"grad_cam: there is no image {wrong}: the evaluation images are 0 to {first - 1}")
    return torch.stack([found[number][0] for number in numbers]), torch.stack([found[number][1] for number in numbers])


def _tapped(distiller: OnlineAdversarialDistiller) -> list[TappedModel]:
    """The models with a tap each, also where the run's method did not look at maps."""
    import torch

    from feature_gan_kd.models.discovery import find_taps, layers_of
    from feature_gan_kd.models.taps import TappedModel

    size, found = distiller.image_size, []
    for k, model in enumerate(distiller.group.tapped):
        with torch.no_grad():
            trial = model.adapter(
                torch.zeros(2, distiller.group.in_chans, size, size, device=distiller.accelerator.device)
            )
        layers = layers_of(distiller.group.feature_layers, k)
        taps = model.taps or find_taps(
            model.module, trial, model.name, layers, vectors=distiller.config.vectors_as_maps
        )
        found.append(TappedModel(model.module, taps, model.name, model.adapter))
    return found


def _write(
    folder: Path,
    distiller: OnlineAdversarialDistiller,
    numbers: Sequence[int],
    images: Tensor,
    labels: Tensor,
    sights: Sequence[GradCamHeatmaps],
) -> None:
    """Writes the pictures and what is to be said of them, in the place of those that are there."""
    from PIL import Image

    from feature_gan_kd.analysis.gradcam import overlay, picture
    from feature_gan_kd.utils.files import move_into_place, writing

    temporary = writing(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    own = distiller.group.normalisation()
    mean, std = (images.new_tensor(one)[:, None, None] for one in (own.mean, own.std))
    described = []
    for i, number in enumerate(numbers):
        shown, label = images[i] * std + mean, int(labels[i])
        Image.fromarray(picture(shown)).save(temporary / f"{number}.png")
        answers = []
        for k, sight in enumerate(sights):
            Image.fromarray(overlay(shown, sight.heat[i])).save(temporary / f"{number}-{k}.png")
            given = sight.probabilities[i]
            answers.append({"answer": _name(distiller, int(given.argmax())), "probability": float(given[label])})
        described.append({"number": number, "label": _name(distiller, label), "networks": answers})
    layers = [{"layer": sight.tap.layer, "grid": list(sight.tap.shape[1:])} for sight in sights]
    (temporary / "grad-cam.json").write_text(json.dumps({"layers": layers, "images": described}, indent=1) + "\n")
    move_into_place(temporary, folder)


def _name(distiller: OnlineAdversarialDistiller, index: int) -> str:
    names = distiller.group.provenance.class_names if distiller.group.provenance else None
    return str(names[index]) if names else f"class {index}"
