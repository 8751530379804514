"""A decoded image of any kind to upright 8-bit pixels: what its numbers mean is known, or it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feature_gan_kd.utils.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Tags of TIFF: the bits of a sample, whether 0 means white (its value is 0) or black, and the largest sample.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 258, 262, 281, 341
# How a PNG file begins: what all do, the length and the name of the first chunk, width and height, and the bits.
_PNG, _PNG_BITS = b"\x89PNG\r\n\x1a\n", 24
HEADER_BYTES = _PNG_BITS + 1
# Images of 16 or 32 bits of which no value is larger were most likely made of 12-bit or 8-bit values.
_LARGEST_OF_12_BITS = 4095
_WHITE_OF_16_BITS = 65535
_REMEDY = "scale the values to 0 to 65535, state MaxSampleValue (TIFF), or convert the files to 8 bits"


class ImageError(UserError):
    """One image that is missing, cannot be decoded or is not understood: what `skip_bad_images` skips."""


def convert_channels(
    image: Image, channels: int, where: str, header: bytes | None = None, stated: str | None = None
) -> Image:
    """Converts an image of any PIL mode to RGB (3 channels) or L (1 channel), turned as its EXIF orientation says.

    Drops alpha, as timm does. Takes the first frame of an animation. Grey values of more than 8 bits are scaled so that
    white is what the file states (TIFF's MaxSampleValue, or BitsPerSample below 16), else 65535; where it states that 0
    is white, they are inverted. Floats are scaled from what the file states, else from [0, 1].

    Args:
        image: decoded.
        channels: 3 or 1.
        where: names the image in an error.
        header: the first `HEADER_BYTES` of its file; None reads them where PIL names the file.
        stated: a mode that the data set states for its images, which are converted to it first.

    Raises:
        ImageError: for values whose range is not known: all of at most 12 bits in a file of 16 or more, outside their
            range, or not finite; also for a mode that PIL cannot convert.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image, where)
    elif _lost_its_values(image, header):
        raise ImageError(f"images: {where} has 16-bit values that are all below {16 * 256}: {_REMEDY}")
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # PIL warns about a direct conversion of such palettes
    elif image.mode == "La":
        image = image.convert("LA")  # the only mode that PIL converts it to
    image = upright(image)
    wanted = "RGB" if channels == 3 else "L"
    for mode in (wanted,) if stated is None else (stated, wanted):
        try:
            image = image.convert(mode)
        except ValueError as error:
            raise ImageError(
                f"images: {where} has the mode {image.mode!r}, which PIL cannot convert to {mode!r}: make it RGB first"
            ) from error
    return image


def upright(image: Image) -> Image:
    """Turns an image as its EXIF orientation says; the result states none, so that it is turned only once."""
    import PIL.ExifTags
    import PIL.ImageOps

    stated = image.getexif().get(PIL.ExifTags.Base.Orientation)
    return image if stated in (None, 1) else PIL.ImageOps.exif_transpose(image)


def _to_eight_bits(image: Image, where: str) -> Image:
    """Scales grey values of more than 8 bits to 0 to 255; PIL's own conversion clips them there."""
    import PIL.Image

    values = np.asarray(image).astype(np.float64)
    floats = image.mode == "F"
    smallest, largest = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    white = _stated_white(image)
    if white is None and not floats and 0 < largest <= _LARGEST_OF_12_BITS:
        raise ImageError(
            f"images: {where} has values of 16 or more bits of which none is above {largest:g}, so it is not known "
            f"which is white: {_REMEDY}"
        )
    top = white or (1.0 if floats else float(_WHITE_OF_16_BITS))
    if not (smallest >= 0 and largest <= top):  # also for NaN
        kind = "floats" if floats else "values"
        raise ImageError(
            f"images: {where} has {kind} from {smallest:g} to {largest:g}, expected 0 to {top:g}: scale them, or "
            "convert the files to 8 bits"
        )
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # PIL inverts up to 8 bits alone
        values = top - values
    # As many integers for each of the 256 results; floats are rounded, as 8-bit images became floats.
    scaled = np.rint(values * (255 / top)) if floats else np.floor(values * (256 / (top + 1)))
    result = PIL.Image.fromarray(scaled.astype(np.uint8))
    result.info = image.info.copy()
    return result


def _stated_white(image: Image) -> float | None:
    """Returns the value that a TIFF file states to be white; None where it states none."""
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    stated = tags.get(_MAX_SAMPLE_VALUE) or tags.get(_S_MAX_SAMPLE_VALUE)
    stated = stated[0] if isinstance(stated, tuple) else stated
    if stated:
        return float(stated)
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    return float(2**bits - 1) if image.mode != "F" and bits < 16 else None


def _lost_its_values(image: Image, header: bytes | None) -> bool:
    """Whether PIL kept the upper 8 of 16 bits of colours, or greys with alpha, that use the lower 12 alone."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    tags: Any = getattr(image, "tag_v2", None)
    bits = _png_bits(image, header) if tags is None else max(tags.get(_BITS_PER_SAMPLE, (8,)))
    if bits <= 8:
        return False
    largest = int(np.asarray(image.convert("RGB")).max())
    return 0 < largest < 16


def _png_bits(image: Image, header: bytes | None) -> int:
    """Returns the bits of a sample of a PNG file, which PIL does not tell; 0 for another or an unknown file."""
    if header is None:
        header = read_header(getattr(image, "filename", None)) if image.format == "PNG" else b""
    return header[_PNG_BITS] if header.startswith(_PNG) and len(header) > _PNG_BITS else 0


def read_header(path: Any) -> bytes:
    """Returns the first `HEADER_BYTES` of a file; empty where there is none of this name on this machine."""
    try:
        with open(path, "rb") as file:
            return file.read(HEADER_BYTES)
    except (OSError, TypeError, ValueError):
        return b""
