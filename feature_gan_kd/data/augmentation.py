"""Chooses how images are augmented, and refuses settings that cannot act on them."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from feature_gan_kd.config.augmentation import IMAGE_SETTINGS, active, check_crop_settings
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.recipes import RECIPES
from feature_gan_kd.data.batch_transforms import CropFlip, Erasing
from feature_gan_kd.data.image_transforms import (
    RESIZED_CROP_PCT,
    ImageChanges,
    ImageTransform,
    OwnTransform,
    timm_changes,
)
from feature_gan_kd.data.rng import seeded
from feature_gan_kd.utils.errors import UserError, closest, reason

# Images with a larger side, in pixels, are cropped at random sizes, as is usual for ImageNet.
MAX_CROP_FLIP_SIZE = 96

# timm's policies, and the letters of their numbers. timm itself passes over a section that it does not know.
_NUMBERS = {
    "rand": ("m", "n", "p", "mstd", "mmax", "inc"),
    "augmix": ("m", "w", "d", "a", "b", "mstd"),
    **dict.fromkeys(("v0", "v0r", "original", "originalr", "3a"), ("mstd",)),
}


@dataclass(frozen=True)
class ImageOptions:
    """How labelled images become batches.

    Attributes:
        transform: per image.
        augment: per batch of pixels, in training; None for none.
        erase: per batch of normalised images, in training; None for none.
        num_workers: processes that decode images which are not held in memory; None: as many as the machine has cores.
        skip: leave out images that cannot be decoded.
    """

    transform: ImageTransform
    augment: CropFlip | None
    erase: Erasing | None
    num_workers: int | None
    skip: bool


def image_options(
    config: DistillConfig, size: int, channels: int, *, flip: bool, own: OwnTransform | None = None
) -> ImageOptions:
    """Chooses transforms and augmentation.

    Args:
        config: says which.
        size: side of the images in pixels.
        channels: 1 or 3.
        flip: allow `auto` to mirror small images.
        own: a transform of the user's own for training images; it takes the place of the settings.

    Raises:
        UserError: for an automatic augmentation that timm does not know.
    """
    check_auto_augment(config.aa)
    kind = chosen_augmentation(config, size, flip=flip)
    crops = kind in ("crop", "crop-flip") and own is None
    transform = ImageTransform(
        size,
        channels,
        resized_crop=kind == "resized-crop",
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        changes=ImageChanges(
            config.aa, config.color_jitter, config.vflip, config.scale, config.ratio, config.source_view == "plain"
        ),
        own=own,
    )
    return ImageOptions(
        transform,
        augment=CropFlip(size // 8, flip=kind == "crop-flip", vflip=config.vflip) if crops else None,
        erase=Erasing(config.reprob, config.remode, config.recount, channels) if config.reprob else None,
        num_workers=config.num_workers,
        skip=config.skip_bad_images,
    )


def chosen_augmentation(config: DistillConfig, size: int, *, flip: bool = True) -> str:
    """Returns the augmentation in force for images of a size; `flip` allows `auto` to mirror small ones."""
    if config.augmentation != "auto":
        return config.augmentation
    return "resized-crop" if size > MAX_CROP_FLIP_SIZE else "crop-flip" if flip else "crop"


def evaluation_crop_pct(config: DistillConfig, size: int) -> float:
    """Returns the share of each side that evaluation keeps of images of a size in pixels; published models state it."""
    resized = chosen_augmentation(config, size) == "resized-crop"
    return config.crop_pct or (RESIZED_CROP_PCT if resized else 1.0)


def check_training(config: DistillConfig, size: int, *, own: OwnTransform | None, given_as: str | None) -> None:
    """Checks that the augmentation which the user asked for acts on the training images.

    Args:
        config: of the run.
        size: side of the images in pixels.
        own: the user's own transform, if there is one.
        given_as: what no image of can be changed here, in words: `a DataLoader`; None for images.

    Raises:
        UserError: for a setting that would be without effect.
    """
    asked = [name for name in ("augmentation", *IMAGE_SETTINGS) if _is_asked(config, name)]
    if own is not None:
        if not callable(own):
            raise UserError(f"train_transform: {type(own).__name__} cannot be called: give a function of one image")
        if given_as is not None:
            raise UserError(f"train_transform: {given_as} is used as it is: transform the images in its data set")
        if asked or config.source_view == "plain":
            named = (*asked, "source_view")[0]
            raise UserError(f"train_transform: it takes the place of {named}, which is given too: leave one out")
    if given_as == "a DataLoader" and _is_asked(config, "reprob"):
        asked.append("reprob")
    asked += ["source_view"] * (config.source_view == "plain")
    if given_as is not None and asked:
        raise UserError(f"{asked[0]}: {given_as} is used as it is: augment the images in its data set")
    check_crop_settings(config, chosen_augmentation(config, size))


def note_idle_preset(config: DistillConfig, *, own: OwnTransform | None, given_as: str | None) -> list[str]:
    """Returns a line where the recipe's automatic augmentation does not act on the training images, see above."""
    if config.aa is None or (own is None and given_as is None):
        return []
    instead = "train_transform takes its place" if given_as is None else f"{given_as} is used as it is"
    return [f"the recipe's {config.aa} does not act: {instead}"]


def idle_settings(config: DistillConfig, *, own: OwnTransform | None, given_as: str | None) -> list[str]:
    """Returns the settings of the augmentation that do not act on the training images, see above."""
    idle = [] if own is None and given_as is None else ["augmentation", *IMAGE_SETTINGS]
    if given_as == "a DataLoader":
        idle.append("reprob")
    return idle + ["remode", "recount"] * (not config.reprob)


def _is_asked(config: DistillConfig, name: str) -> bool:
    """Whether the user, and not the recipe, asks for a change of images by this setting."""
    if name == "augmentation":
        return config.augmentation not in ("auto", "none")
    preset = getattr(config, name) == RECIPES[config.recipe].get(name)
    return config.is_given(name) and not preset and active(config, (name,)) is not None


@functools.lru_cache(maxsize=8)
def check_auto_augment(notation: str | None) -> None:
    """Asks timm whether it knows an automatic augmentation, and tries it on one image.

    Raises:
        UserError: for one that it does not know.
    """
    if notation is None:
        return
    policy, *sections = notation.split("-")
    if policy not in _NUMBERS:
        near = closest(policy, list(_NUMBERS)) or ", ".join(_NUMBERS)
        raise UserError(f"aa: timm knows no {notation!r}, the closest are {near}: give one such as rand-m9-mstd0.5")
    for section in sections:
        letters = re.match("[a-z]*", section)
        known = _NUMBERS[policy]
        if letters is None or letters[0] not in known or letters[0] == section:
            if policy == "rand" and _is_known_choice(section):
                continue
            expected = " ".join(f"{one}NUMBER" for one in known) + " tweights" * (policy == "rand")
            raise UserError(f"aa: {section!r} in {notation!r} is not allowed, expected {expected}")
    from PIL import Image

    try:
        with seeded(0):
            timm_changes(16, 3, "bicubic", ImageChanges(aa=notation))[1](Image.new("RGB", (16, 16)))
    except Exception as error:  # timm asserts, and numpy refuses more layers than there are operations
        raise UserError(f"aa: timm cannot use {notation!r} ({reason(error)}): correct it") from None


def _is_known_choice(section: str) -> bool:
    """Whether timm has a set of operations for RandAugment of this name; it takes its default for others."""
    from timm.data.auto_augment import rand_augment_choices

    return section.startswith("t") and rand_augment_choices(section[1:]) is not rand_augment_choices("")
