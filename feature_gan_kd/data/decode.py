"""Encoded images of any kind to pixels of one size."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from feature_gan_kd.data.convert import HEADER_BYTES, ImageError, convert_channels, read_header
from feature_gan_kd.utils.errors import reason

if TYPE_CHECKING:
    from PIL.Image import Image

# A thread decodes this many images at a time: handing over a single small image costs as much as decoding it.
_IMAGES_PER_TASK = 100
# Ratio of the sides up to which an image is resized whole, as timm does, before its centre is cut out.
_LONGEST = 100
_REMEDY = "repair or remove it, or skip such images with --skip-bad-images"


Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def center_crop_resize(image: Image, size: int, crop_pct: float = 1.0, interpolation: str = "bicubic") -> Image:
    """Resizes an image and cuts out its centre, to the pixel as timm's transform of evaluation does.

    Args:
        image: of any size.
        size: side of the result in pixels.
        crop_pct: share of the shorter side that is kept; 1 keeps the largest centred square.
        interpolation: as in the settings.
    """
    import PIL.Image

    image = _cut_extreme(image)
    short, side = min(image.size), math.floor(size / crop_pct)
    width, height = (side if length == short else int(side * length / short) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), PIL.Image.Resampling[interpolation.upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    if (width, height) == (size, size):
        return image
    return image.crop((left, top, left + size, top + size))


def _cut_extreme(image: Image) -> Image:
    """Cuts the ends off an image more than `_LONGEST` times as long as wide: resized whole, it would be huge."""
    width, height = image.size
    most = _LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = max(width - most, 0) // 2, max(height - most, 0) // 2
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def to_pixels(image: Image, channels: int) -> Pixels:
    """Returns an RGB or L image as uint8 `(H, W, channels)`."""
    return np.array(image).reshape(image.height, image.width, channels)


def decode_image(value: Any, channels: int, where: str, mode: str | None = None) -> Image:
    """Decodes one image of a `datasets` image column, to RGB or L.

    Args:
        value: `{"bytes": ..., "path": ...}`, the bytes of a file, or an image of PIL, as a stream gives them that was
            filtered or mapped.
        channels: 3 or 1, see `convert_channels`.
        where: names the image in an error.
        mode: of PIL, which the column states for its images.

    Raises:
        ImageError: where the image is missing or cannot be decoded, or its values are not understood.
    """
    from datasets import Image as ImageFeature
    from PIL.Image import Image as PILImage

    if isinstance(value, PILImage):
        return convert_channels(value, channels, where, stated=mode)
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ImageError(f"images: {where} is missing: {_REMEDY}")
    if value["path"] is not None:
        where = f"{where} ({value['path']})"
    if value["bytes"] == b"":
        raise ImageError(f"images: {where} is empty (0 bytes): {_REMEDY}")
    try:
        image = ImageFeature().decode_example(value)
        header = read_header(value["path"]) if value["bytes"] is None else value["bytes"][:HEADER_BYTES]
        return convert_channels(image, channels, where, header, mode)
    except ImageError:
        raise
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... for broken files
        raise decode_error(where, error) from error


def decode_error(where: str, error: Exception) -> ImageError:
    """Makes the error for the image `where`, which PIL cannot read because of `error`."""
    return ImageError(f"images: {where} cannot be decoded ({reason(error)}): {_REMEDY}")


def skipped_images_note(count: int, action: str, first: str) -> str:
    """Tells the user about images that cannot be decoded.

    Args:
        count: number of such images.
        action: what was done about them.
        first: names the first.
    """
    return f"images that cannot be decoded: {count}, {action}; the first is {first}"


def decode_images(
    values: Iterable[list[Any]],
    names: Sequence[str],
    size: int,
    channels: int,
    *,
    skip: bool = False,
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
    modes: Sequence[str | None] | None = None,
) -> tuple[Tensor, list[int], int]:
    """Decodes images into one tensor.

    Args:
        values: undecoded images, in lists of any length, N in all.
        names: N names for errors.
        size: side in pixels, see `center_crop_resize`.
        channels: 1 or 3.
        skip: leave out images that cannot be decoded.
        crop_pct: see `center_crop_resize`.
        interpolation: see there.
        modes: N modes, see `decode_image`; None for none.

    Returns:
        The pixels, uint8 `(n, size, size, channels)`, the positions of the N - n images that are left out, and how
        many images had another size.

    Raises:
        ImageError: naming the first image that cannot be decoded, unless `skip`.
    """
    pixels = np.empty((len(names), size, size, channels), dtype=np.uint8)
    bad: list[int] = []

    def fill(begin: int, part: list[Any]) -> int:
        resized = 0
        for index, value in enumerate(part, begin):
            try:
                image = decode_image(value, channels, names[index], None if modes is None else modes[index])
            except ImageError:
                if not skip:
                    raise
                bad.append(index)
                continue
            resized += image.size != (size, size)
            pixels[index] = to_pixels(center_crop_resize(image, size, crop_pct, interpolation), channels)
        return resized

    begin = resized = 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for part in values:  # one list at a time, so that only one is in memory beside the result
            starts = range(0, len(part), _IMAGES_PER_TASK)
            begins, tasks = [begin + at for at in starts], [part[at : at + _IMAGES_PER_TASK] for at in starts]
            resized += sum(threads.map(fill, begins, tasks))
            begin += len(part)
    bad.sort()
    return torch.from_numpy(np.delete(pixels, bad, axis=0) if bad else pixels), bad, resized


def count_values(pixels: Tensor) -> Tensor:
    """Counts how often each value occurs in each channel of uint8 `(N, H, W, C)`: float64 `(C, 256)`."""
    counts = torch.zeros(pixels.shape[-1], 256, dtype=torch.float64)
    for channel, own in enumerate(counts):
        for part in torch.split(pixels[..., channel], 4096):
            own += torch.bincount(part.reshape(-1), minlength=256)
    return counts


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes mean and standard deviation per channel of uint8 `(N, H, W, C)`, see `statistics_of_counts`."""
    return statistics_of_counts(count_values(pixels))


def statistics_of_counts(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes mean and standard deviation per channel of pixel values scaled to [0, 1].

    The deviation is at least 1/255, so that a constant channel can be normalised. The counts make it exact, without a
    float copy of the images.

    Args:
        counts: float64 (channels, 256), of `count_values`, or their sum over several batches.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for own in counts:
        frequency = own / own.sum()
        centre = float((frequency * values).sum())
        mean.append(centre)
        std.append(max(float((frequency * (values - centre) ** 2).sum()) ** 0.5, 1 / 255))
    return tuple(mean), tuple(std)


def hash_images(images: Tensor, labels: Tensor) -> str:
    """Returns the SHA-256 of shape and values of images and labels, as hexadecimal digits."""
    digest = hashlib.sha256(f"{tuple(images.shape)} {images.dtype}".encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()
