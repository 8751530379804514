"""Encoded images of any kind to pixels of one size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from feature_gan_kd.utils.errors import UserError, reason

if TYPE_CHECKING:
    from PIL.Image import Image

# Images that a thread decodes at once: handing over each small image costs as much as decoding it.
_TASK = 100
REMEDY = "mend or remove it, or pass over such images with --skip-bad-images"


class ImageError(UserError):
    """One image that is missing or cannot be decoded: what `skip_bad_images` passes over."""


Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def with_channels(image: Image, channels: int) -> Image:
    """An image of any PIL mode as RGB (3 channels) or L (1 channel).

    Alpha is dropped, as timm does; 16-bit grey values are divided by 256; of an animation the first frame counts.
    """
    import PIL.Image

    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        image = PIL.Image.fromarray(grey.astype(np.uint8))
    elif image.mode == "F":
        image = image.convert("L")
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def center_crop_resize(image: Image, size: int) -> Image:
    """The largest centred square of the image, resized (bicubic) to `size` pixels where it has another size."""
    import PIL.Image
    import PIL.ImageOps

    if image.size == (size, size):
        return image
    return PIL.ImageOps.fit(image, (size, size), method=PIL.Image.Resampling.BICUBIC)


def as_pixels(image: Image, channels: int) -> Pixels:
    """uint8 `(H, W, channels)` of an RGB or L image."""
    return np.array(image).reshape(image.height, image.width, channels)


def decode(value: Any, channels: int, where: str) -> Image:
    """Opens one image of an undecoded `datasets` image column, as RGB or L.

    Args:
        value: `{"bytes": ..., "path": ...}` as the column holds it.
        channels: 3 or 1, see `with_channels`.
        where: names the image in an error.

    Raises:
        ImageError: where the image is missing or cannot be decoded.
    """
    from datasets import Image as ImageFeature

    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ImageError(f"images: {where} is missing: {REMEDY}")
    if value["path"] is not None:
        where = f"{where} ({value['path']})"
    if value["bytes"] == b"":
        raise ImageError(f"images: {where} is empty (0 bytes): {REMEDY}")
    try:
        return with_channels(ImageFeature().decode_example(value), channels)
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... for broken files
        raise undecodable(where, error) from error


def undecodable(where: str, error: Exception) -> ImageError:
    """What is said of the image `where` that PIL cannot read."""
    return ImageError(f"images: {where} cannot be decoded ({reason(error)}): {REMEDY}")


def passed_over(count: int, instead: str, first: str) -> str:
    """The note on images that cannot be decoded.

    Args:
        count: of them.
        instead: what was done.
        first: names the first.
    """
    return f"images that cannot be decoded: {count}, {instead}; the first is {first}"


def decode_all(
    values: Iterable[list[Any]], names: Sequence[str], size: int, channels: int, *, skip: bool = False
) -> tuple[Tensor, list[int], int]:
    """Decodes images into one tensor.

    Args:
        values: undecoded images, in lists of any length, N in all.
        names: N names for errors.
        size: side in pixels, see `center_crop_resize`.
        channels: 1 or 3.
        skip: leave out images that cannot be decoded.

    Returns:
        The pixels, uint8 `(n, size, size, channels)`, the positions of the N - n images that are left out, and how
        many images had another size.

    Raises:
        ImageError: naming the first image that cannot be decoded, unless it is to be left out.
    """
    pixels = np.empty((len(names), size, size, channels), dtype=np.uint8)
    bad: list[int] = []

    def fill(begin: int, part: list[Any]) -> int:
        others = 0
        for index, value in enumerate(part, begin):
            try:
                image = decode(value, channels, names[index])
            except ImageError:
                if not skip:
                    raise
                bad.append(index)
                continue
            others += image.size != (size, size)
            pixels[index] = as_pixels(center_crop_resize(image, size), channels)
        return others

    begin = resized = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for part in values:  # a list at a time, so that no more than one is held beside the result
            starts = range(0, len(part), _TASK)
            places, tasks = [begin + at for at in starts], [part[at : at + _TASK] for at in starts]
            resized += sum(threads.map(fill, places, tasks))
            begin += len(part)
    bad.sort()
    return torch.from_numpy(np.delete(pixels, bad, axis=0) if bad else pixels), bad, resized


def statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 `(N, H, W, C)`, of pixel values scaled to [0, 1].

    The deviation is at least 1/255, so that a channel of one value can be normalised.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(pixels.shape[-1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for part in torch.split(pixels[..., channel], 4096):
            counts += torch.bincount(part.reshape(-1), minlength=256)
        share = counts / counts.sum()
        centre = float((share * values).sum())
        mean.append(centre)
        std.append(max(float((share * (values - centre) ** 2).sum()) ** 0.5, 1 / 255))
    return tuple(mean), tuple(std)


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of the shape and the values of images and labels, as hexadecimal digits."""
    digest = hashlib.sha256(f"{tuple(images.shape)} {images.dtype}".encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()
