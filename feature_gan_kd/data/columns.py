"""Which column of a table holds the images, and which the labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from feature_gan_kd.utils.errors import UserError

_TEXT = ("string", "large_string")
# Usual names of columns, the likeliest first.
_IMAGE_NAMES = ("image", "img", "images", "picture", "photo")
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "classes", "category", "y")
# These mean the label whatever the other columns are; the others may say something else beside a `ClassLabel`.
_SURE_LABEL_NAMES = ("label", "labels", "target", "class")
# A name that ends in one of these words, such as fine_label, may be a label's too; after it may stand how the class is
# given, such as class_id. Other words say something about the label: label_quality, class_weight, num_labels.
_LABEL_WORDS = re.compile(
    r".*(labels?|targets?|class(es)?|category|categories)([ _.-]*(id|idx|index|name|text|number))?"
)
_NO_LABELS = re.compile(r"(n|num|number|count|is|has)[ _.-].*")


def note_others(others: Sequence[str], option: str) -> str:
    """Returns what a note says about the other columns that could be meant; empty where there are none."""
    return f" (also there: {', '.join(others)}; choose with {option})" if others else ""


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, Mapping):  # parquet that was not written by `datasets`
        return set(feature) == {"bytes", "path"}
    return type(feature).__name__ == "Image" or _is_value(feature, ("binary", "large_binary"))


def _is_value(feature: Any, kinds: tuple[str, ...]) -> bool:
    """Whether a column holds plain values, of a type whose name starts with one of `kinds`."""
    return type(feature).__name__ == "Value" and str(feature.dtype).startswith(kinds)


def list_columns(features: Mapping[str, Any]) -> str:
    """Names the columns with their types, for errors.

    Args:
        features: of the columns; a text is the name of a type of Python that is no feature of `datasets`.
    """
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    return ", ".join(
        f"{name} ({feature if kind == 'str' else getattr(feature, 'dtype', 'struct') if kind == 'Value' else kind})"
        for (name, feature), kind in zip(features.items(), kinds.values(), strict=True)
    )


def find_image_column(features: Mapping[str, Any], named: str | None, split: str) -> tuple[str, list[str]]:
    """Finds the column of images, and lists the other columns that could be meant.

    Takes the named one; else, of the columns whose type is that of images, the one with the likeliest name, else the
    first.

    Raises:
        UserError: where there is none, or the named one does not exist or holds something else.
    """
    found = [name for name, feature in features.items() if _holds_images(feature)]
    if named is None and found:
        chosen = min(found, key=lambda name: _rank(name, _IMAGE_NAMES))
        return chosen, [name for name in found if name != chosen]
    listed = list_columns(features)
    if named is None:
        raise UserError(f"image_column: split {split!r} has no column of images; its columns are {listed}")
    if named not in features:
        raise UserError(f"image_column: split {split!r} has no column {named!r}; its columns are {listed}")
    if named not in found and not _is_value(features[named], _TEXT):
        raise UserError(f"image_column: column {named!r} of split {split!r} holds no images; columns: {listed}")
    return named, []


def find_label_column(
    features: Mapping[str, Any], named: str | None, image: str, split: str, *, required: bool = True
) -> tuple[str | None, list[str]]:
    """Finds the column of labels, and lists the other columns that could be meant.

    Takes the named one. Otherwise, of the columns of type `ClassLabel`, whole numbers or texts, takes the one that is
    called label, labels, target or class; else a `ClassLabel`, with a usual name of labels before others; else one
    with a usual name, the likeliest first; else one whose name ends like a label's. Of two that are equally likely,
    takes the first. Where there is none and none is `required`, returns None.

    Raises:
        UserError: where there is none and one is required, or the named one does not exist.
    """
    if named is not None:
        if named not in features:
            raise UserError(
                f"label_column: split {split!r} has no column {named!r}; its columns are {list_columns(features)}"
            )
        if named == image:
            raise UserError(f"label_column: column {named!r} of split {split!r} holds the images: name another")
        return named, []
    ranks: dict[str, tuple[int, ...]] = {}
    for name, feature in features.items():
        declared, usual = type(feature).__name__ == "ClassLabel", _rank(name, _LABEL_NAMES)
        like_a_label = bool(_LABEL_WORDS.fullmatch(name.lower())) and not _NO_LABELS.fullmatch(name.lower())
        if name == image or not (declared or _is_value(feature, ("int", "uint", "bool", *_TEXT))):
            continue
        if declared or usual < len(_LABEL_NAMES) or like_a_label:
            sure = usual if name.lower() in _SURE_LABEL_NAMES else len(_LABEL_NAMES)
            ranks[name] = (sure, not declared, usual, not like_a_label)
    if not ranks and not required:
        return None, []
    if not ranks and len(features) == 1:
        raise UserError(
            f"label_column: split {split!r} has images alone ({image}): give data with labels (in an image folder each "
            "class has a folder of its own), or set labels=False (--no-labels)"
        )
    if not ranks:
        raise UserError(
            f"label_column: split {split!r} has no column of whole numbers or texts that looks like labels; its "
            f"columns are {list_columns(features)}: name one, change its type, or set labels=False (--no-labels)"
        )
    chosen = min(ranks, key=ranks.__getitem__)
    return chosen, [name for name in ranks if name != chosen]


def _rank(name: str, usual: Sequence[str]) -> int:
    """Returns the position of a column's name among the usual ones; their number if it is not among them."""
    lower = name.lower()
    return usual.index(lower) if lower in usual else len(usual)
