"""The shape of the images that a model was made for, where it states one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from feature_gan_kd.utils.errors import UserError


def check_square(module: nn.Module, where: str, image_size: int | None) -> None:
    """Checks that a model was not made for rectangles: the data give squares.

    Args:
        module: the model.
        where: names it, for the error line.
        image_size: side of the squares in pixels, where the user has named it: for a model that takes any size.

    Raises:
        UserError: for a model that takes rectangles alone, or was made for them where no other size is named.
    """
    patches: Any = getattr(module, "patch_embed", None)
    takes_any = getattr(patches, "strict_img_size", None) is False
    places = [patches, module, getattr(module, "config", None)]
    built = [getattr(place, name, None) for place in places for name in ("img_size", "image_size")]
    cfg: Any = getattr(module, "pretrained_cfg", None)
    trained = cfg.get("input_size") if isinstance(cfg, Mapping) else None
    for size in filter(_is_rectangle, [] if takes_any else built):
        raise UserError(
            f"{where} is built for images of {_in_words(size)}, but all are squares here: build it for a square"
        )
    for size in filter(_is_rectangle, [*built, trained[1:] if isinstance(trained, Sequence) else None]):
        if image_size is None:
            raise UserError(
                f"{where} is made for images of {_in_words(size)}, but all are squares here: name their side with "
                "image_size"
            )


def _in_words(size: Any) -> str:
    return f"{size[0]}x{size[1]} (height x width)"


def _is_rectangle(size: Any) -> bool:
    return isinstance(size, Sequence) and len(size) == 2 and size[0] != size[1]
