from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL import TiffImagePlugin

from feature_gan_kd.data.convert import ImageError, convert_channels
from feature_gan_kd.data.decode import decode_image, to_pixels
from tests.data.image_samples import encoded, random_images

GREY = np.arange(0, 64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = PIL.Image.fromarray(random_images(1)[0])
ORIENTATION, BITS, PHOTOMETRIC, MAX_SAMPLE_VALUE = 274, 258, 262, 281


def grey(image: PIL.Image.Image) -> np.ndarray:
    return to_pixels(convert_channels(image, 1, "it"), 1)[..., 0]


def stored(array: np.ndarray, kind: str = "TIFF", **tags: Any) -> np.ndarray:
    """The pixels of a file that was written and read again."""
    options = {}
    if tags:
        options["tiffinfo"] = TiffImagePlugin.ImageFileDirectory_v2()
        options["tiffinfo"][MAX_SAMPLE_VALUE] = tags["white"]
    return to_pixels(decode_image(encoded(PIL.Image.fromarray(array), kind, **options), 1, "it"), 1)[..., 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_eight_bit_pixels(mode: str, channels: int) -> None:
    image = PIL.Image.new("PA", (8, 8)) if mode == "PA" else COLOUR.convert(mode)
    pixels = to_pixels(convert_channels(image, channels, "it"), channels)
    assert pixels.shape == (8, 8, channels)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")])
def test_sixteen_bits_are_scaled_down(dtype: type, kind: str) -> None:
    assert np.array_equal(stored(GREY.astype(dtype) * 256 + 255, kind), GREY)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_the_value_that_a_file_states_to_be_white_is_white(dtype: type) -> None:
    assert np.array_equal(stored(GREY.astype(dtype) * 16 + 15, white=4095), GREY)
    assert np.array_equal(stored(GREY.astype(dtype), white=255), GREY)


def test_a_file_of_twelve_bits_says_so() -> None:
    image = PIL.Image.open(io.BytesIO(encoded(PIL.Image.fromarray(GREY.astype(np.uint16) * 16), "TIFF")["bytes"]))
    image.load()
    image.tag_v2[BITS] = (12,)  # type: ignore[attr-defined]
    assert np.array_equal(grey(image), GREY)


def test_floats_are_from_zero_to_one() -> None:
    floats = GREY.astype(np.float32) / 255
    assert np.array_equal(stored(floats), GREY)
    assert np.array_equal(grey(PIL.Image.fromarray(floats)), GREY)
    assert np.array_equal(stored(GREY.astype(np.float32), white=255), GREY)


def test_black_is_black_in_any_range() -> None:
    for dtype in (np.uint16, np.int32, np.float32):
        assert stored(np.zeros((8, 8), dtype)).max() == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            GREY.astype(np.uint16),
            "has values of 16 or more bits of which none is above 252, so it is not known which is",
        ),
        (GREY.astype(np.int32) * 16, "none is above 4032, .*: scale the values to 0 to 65535, state MaxSampleValue"),
        (GREY.astype(np.int32) * 1000, "has values from 0 to 252000, expected 0 to 65535: scale them, or convert"),
        (GREY.astype(np.int32) * 40 - 1, "has values from -1 to 10079, expected 0 to 65535"),
        (GREY.astype(np.float32), "has floats from 0 to 252, expected 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), "has floats from nan to nan, expected 0 to 1"),
    ],
)
def test_values_whose_range_is_not_known_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=f"^images: it .*{message}") as caught:
        stored(array)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "F"])
def test_an_image_is_turned_upright_once(mode: str) -> None:
    upright = np.zeros((8, 8), np.uint8)
    upright[:2] = 255
    array = {"I;16": upright.astype(np.uint16) * 257, "F": upright.astype(np.float32) / 255}.get(mode, upright)
    image = PIL.Image.fromarray(np.ascontiguousarray(np.rot90(array)))
    image = image.convert(mode) if mode == "RGB" else image
    image.getexif()[ORIENTATION] = 6  # to be turned by 90 degrees, clockwise
    image.info["exif"] = image.getexif().tobytes()
    once = convert_channels(image, 1, "it")
    assert np.array_equal(np.asarray(once), upright)
    assert np.array_equal(np.asarray(convert_channels(once, 1, "it")), upright)


def png_of_sixteen_bits(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG file of uint16 `(H, W, C)`, of a kind that PIL cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    start = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colours", "alpha", "colour_type"), [(3, 0, 2), (3, 1, 6), (1, 1, 4)])
def test_colours_or_alpha_of_twelve_bits_in_a_png_of_sixteen(
    colours: int, alpha: int, colour_type: int, tmp_path: Path
) -> None:
    opaque = [np.full((8, 8), 65535)] * alpha
    full = png_of_sixteen_bits(np.stack([GREY.astype(np.uint16) * 257] * colours + opaque, -1), colour_type)
    assert np.array_equal(to_pixels(decode_image({"bytes": full, "path": None}, 1, "it"), 1)[..., 0], GREY)
    black = png_of_sixteen_bits(np.stack([GREY * 0] * colours + opaque, -1), colour_type)
    assert to_pixels(decode_image({"bytes": black, "path": None}, 1, "it"), 1).max() == 0
    dark = png_of_sixteen_bits(np.stack([GREY.astype(np.uint16) * 16] * colours + opaque, -1), colour_type)
    (tmp_path / "dark.png").write_bytes(dark)
    message = "^images: it .*has 16-bit values that are all below 4096: scale the values to 0 to 65535"
    for value in ({"bytes": dark, "path": None}, {"bytes": None, "path": str(tmp_path / "dark.png")}):
        with pytest.raises(ImageError, match=message):
            decode_image(value, 3, "it")
    with PIL.Image.open(tmp_path / "dark.png") as image, pytest.raises(ImageError, match=message):
        convert_channels(image, 3, "it")


def test_a_dark_png_of_eight_bits_is_dark() -> None:
    dark = PIL.Image.fromarray(np.stack([GREY // 16] * 3, -1))
    assert np.array_equal(to_pixels(decode_image(encoded(dark), 1, "it"), 1)[..., 0], GREY // 16)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint16, 257), (np.float32, 1 / 255)])
def test_greys_of_which_zero_is_white_are_inverted(dtype: type, scale: float) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[PHOTOMETRIC] = 0
    array = (GREY * dtype(scale)).astype(dtype)
    file = encoded(PIL.Image.fromarray(array), "TIFF", tiffinfo=tags)
    with PIL.Image.open(io.BytesIO(file["bytes"])) as written:
        assert written.tag_v2[PHOTOMETRIC] == 0  # type: ignore[attr-defined]
    assert np.array_equal(to_pixels(decode_image(file, 1, "it"), 1)[..., 0], 255 - GREY)


def test_a_mode_that_cannot_be_converted_is_one_line() -> None:
    with pytest.raises(ImageError, match=r"^images: it has the mode 'LAB', which PIL cannot convert to 'L': make"):
        convert_channels(PIL.Image.new("LAB", (8, 8)), 1, "it")
    for mode, channels in (("La", 1), ("La", 3), ("RGBa", 3), ("RGBa", 1)):
        image = PIL.Image.fromarray(GREY).convert(mode.upper()).convert(mode)
        assert np.array_equal(to_pixels(convert_channels(image, channels, "it"), channels)[..., 0], GREY)
