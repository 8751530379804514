"""Turns image files into the batches that a model takes, in the form that the model states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from feature_gan_kd.data.convert import ImageError, convert_channels
from feature_gan_kd.export.open_model import OpenedModel
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.utils.errors import UserError, reason

if TYPE_CHECKING:
    from PIL.Image import Image


@contextmanager
def stated_form(found: OpenedModel) -> Iterator[None]:
    """Turns what fails inside the block, which reads what a model states, into one line.

    Raises:
        UserError: where it fails.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{found.where}: does not state the form of the images ({reason(error)}): export it again"
        ) from None


@dataclass(frozen=True)
class DataForm:
    """How labelled images become what a model takes.

    Attributes:
        size: side of the square images in pixels.
        channels: of the images.
        normalisation: of the images.
        settings: of their crop and interpolation, for a `DistillConfig`.
    """

    size: int
    channels: int
    normalisation: Normalisation
    settings: dict[str, Any]


def data_form(found: OpenedModel) -> DataForm:
    """The form of the images that a model states, for labelled data, of which the largest centred square is taken.

    Args:
        found: the model.

    Raises:
        UserError: where it does not state that, or takes rectangles.
    """
    cfg = found.cfg
    with stated_form(found):
        channels, height, width = map(int, cfg["input_size"])
        normalisation = Normalisation(tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"])))
        # A few models of timm state more than 1: a border around the image.
        crop_pct = min(float(cfg.get("crop_pct") or 1), 1.0)
    if height != width:
        raise UserError(f"{found.name}: takes images of {height}x{width} pixels, only squares can be evaluated")
    settings = {"crop_pct": crop_pct, "interpolation": str(cfg.get("interpolation"))}
    return DataForm(width, channels, normalisation, settings)


class Preprocessing:
    """Resizes, crops and normalises images as timm does for a model in evaluation.

    Args:
        found: the model, which states how.

    Attributes:
        input_size: channels, height and width of the images that the model takes.

    Raises:
        UserError: where it does not state that, or takes images of other channels than image files have.
    """

    def __init__(self, found: OpenedModel) -> None:
        with stated_form(found):
            channels, height, width = map(int, found.cfg["input_size"])
            self.input_size = (channels, height, width)
        if channels not in (1, 3):
            raise UserError(
                f"{found.name}: takes images of {channels} channels, image files are decoded to 3 (RGB) or 1 (grey): "
                "load the model with timm and give it tensors"
            )
        with stated_form(found):
            self.transform: Any = create_transform(
                **resolve_data_config({}, pretrained_cfg=dict(found.cfg)), is_training=False
            )

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.input_size[0]

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Turns images of any size and mode into a batch, float32 (batch, channels, height, width).

        Args:
            images: each is turned upright and converted to the model's channels.

        Raises:
            UserError: for an image whose values are not understood, see `convert_channels`.
        """
        names = [getattr(image, "filename", None) or f"image {k}" for k, image in enumerate(images)]
        converted = (convert_channels(image, self.channels, name) for image, name in zip(images, names, strict=True))
        return torch.stack([self.transform(image) for image in converted])


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


def read_images(paths: Mapping[int, Path], channels: int, *, skip: bool) -> tuple[dict[int, Image], list[Path]]:
    """Decodes image files.

    Args:
        paths: the files, by any number.
        channels: 1 or 3, to which they are converted.
        skip: leave out files that cannot be decoded.

    Returns:
        The images by the same numbers, and the files that were left out.

    Raises:
        ImageError: for one that cannot be decoded or is not understood, unless `skip`.
    """
    read: dict[int, Image] = {}
    bad: list[Path] = []
    for k, path in paths.items():
        try:
            read[k] = convert_channels(read_image(path), channels, str(path))
        except ImageError:
            if not skip:
                raise
            bad.append(path)
    return read, bad


def skipped_note(bad: Sequence[Path]) -> str:
    """Tells the user of image files that were left out.

    Args:
        bad: the files, at least one.
    """
    return f"images that cannot be decoded: {len(bad)}, left out; the first is {bad[0]}"
