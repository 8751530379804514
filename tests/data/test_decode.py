from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import torch

from feature_gan_kd.data.decode import (
    center_crop_resize,
    channel_statistics,
    decode_image,
    decode_images,
    to_pixels,
)
from feature_gan_kd.utils.errors import UserError
from tests.data.image_samples import encoded, random_images

GREY = np.arange(0, 64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = random_images(1)[0]


def picture(mode: str) -> PIL.Image.Image:
    return PIL.Image.fromarray(COLOUR).convert(mode)


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("RGBA", "PNG"), ("CMYK", "TIFF"), ("RGB", "BMP")])
def test_colours_survive_encoding(mode: str, kind: str) -> None:
    image = decode_image(encoded(picture(mode), kind), 3, "it")
    assert np.abs(to_pixels(image, 3).astype(int) - COLOUR).max() == 0


def test_alpha_is_dropped_and_grey_is_repeated() -> None:
    image = picture("RGBA")
    image.putalpha(0)
    assert np.array_equal(to_pixels(decode_image(encoded(image), 3, "it"), 3), COLOUR)
    grey = to_pixels(decode_image(encoded(PIL.Image.fromarray(GREY).convert("LA")), 3, "it"), 3)
    assert np.array_equal(grey, np.repeat(GREY[..., None], 3, axis=2))


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = picture("P")
    expected = np.array(image.convert("RGB"))
    value = encoded(image, transparency=bytes(range(256)))
    assert np.array_equal(to_pixels(decode_image(value, 3, "it"), 3), expected)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [PIL.Image.new("L", (8, 8), value) for value in (200, 10)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert to_pixels(decode_image({"bytes": buffer.getvalue(), "path": None}, 1, "it"), 1).mean() == 200


@pytest.mark.parametrize(("width", "height"), [(64, 64), (20_000, 64), (64, 200), (8, 8), (1, 1)])
def test_the_largest_centred_square_is_resized(width: int, height: int) -> None:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[top : top + side, left : left + side] = 100, 200, 50
    pixels = to_pixels(center_crop_resize(PIL.Image.fromarray(array), 8), 3)
    assert pixels.shape == (8, 8, 3)
    assert (pixels[2:-2, 2:-2] == (100, 200, 50)).all()  # bicubic sees two pixels beyond the edge
    assert pixels[0].sum() > 0
    assert pixels[-1].sum() > 0


BROKEN = {
    "truncated": encoded(random_images(1, 64)[0], "JPEG")["bytes"][:900],
    "empty": b"",
    "text": b"not an image",
    "header only": encoded(COLOUR)["bytes"][:40],
    "flipped": encoded(COLOUR)["bytes"].replace(b"IDAT", b"IDAX"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_named_in_one_line(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^images: image 7 of split 'train' (cannot be|is empty).*repair or") as caught:
        decode_image({"bytes": data, "path": None}, 3, "image 7 of split 'train'")
    assert " at 0x" not in str(caught.value)


def test_the_file_is_named() -> None:
    with pytest.raises(UserError, match=r"^images: image 7 \(cats/3.png\) is empty"):
        decode_image({"bytes": b"", "path": "cats/3.png"}, 3, "image 7")


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}, {"bytes": None, "path": "/nowhere/a.png"}])
def test_a_missing_image_is_named(value: object) -> None:
    with pytest.raises(UserError, match=r"^images: image 7 "):
        decode_image(value, 3, "image 7")


def test_decode_all_keeps_the_order_and_counts_the_resized() -> None:
    images = [*random_images(230), *random_images(20, size=9)]
    values = [encoded(image) for image in images]
    names = [str(k) for k in range(250)]
    pixels, bad, resized = decode_images([values[:201], values[201:]], names, 8, 3)
    assert bad == []
    assert np.array_equal(pixels[:230], np.stack(images[:230]))
    assert resized == 20
    values[203] = {"bytes": b"x", "path": None}
    with pytest.raises(UserError, match="images: 203 cannot"):
        decode_images([values[:201], values[201:]], names, 8, 3)
    values[1] = None
    pixels, bad, resized = decode_images([values[:201], values[201:]], names, 8, 3, skip=True)
    assert bad == [1, 203]
    assert np.array_equal(pixels[:228], np.stack([image for k, image in enumerate(images[:230]) if k not in bad]))
    assert (len(pixels), resized) == (248, 20)


def test_statistics_are_those_of_all_pixels() -> None:
    pixels = np.stack(random_images(50))
    pixels[..., 1] = 77
    mean, std = channel_statistics(torch.from_numpy(pixels))
    assert mean == pytest.approx((pixels / 255).mean((0, 1, 2)), rel=1e-12)
    assert std[::2] == pytest.approx((pixels / 255).std((0, 1, 2))[::2], rel=1e-12)
    assert std[1] == pytest.approx(1 / 255)
