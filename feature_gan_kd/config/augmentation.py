"""Which settings of the augmentation may be combined: one without an effect is refused, never ignored in silence."""

from __future__ import annotations

from feature_gan_kd.config.settings import AugmentationSettings
from feature_gan_kd.config.validation import show
from feature_gan_kd.utils.errors import UserError

CROP_SETTINGS = ("scale", "ratio")
"""Settings of resized-crop alone."""

IMAGE_SETTINGS = (*CROP_SETTINGS, "vflip", "color_jitter", "aa")
"""Settings that change training images before they are normalised."""


def active(config: AugmentationSettings, names: tuple[str, ...]) -> str | None:
    """The first of these settings of the augmentation that is on; None where all are off."""
    return next((name for name in names if getattr(config, name)), None)


def check_augmentation(config: AugmentationSettings) -> None:
    """Checks what depends on several settings of the augmentation, or on several numbers of one.

    Args:
        config: of a run.

    Raises:
        UserError: for the first that cannot be.
    """
    for name in CROP_SETTINGS:
        value = getattr(config, name)
        if value is not None and (len(value) != 2 or value[0] > value[1]):
            raise UserError(f"{name}: {show(value)} is not allowed, expected 2 numbers, the smaller first")
    without_effect = active(config, (*IMAGE_SETTINGS, "reprob"))
    if config.augmentation == "none" and without_effect:
        raise UserError(
            f"{without_effect}: has no effect with augmentation none, which leaves the images as they are: leave one "
            "of them out"
        )
    check_crop_settings(config, config.augmentation)
    if config.aa and config.color_jitter and "3a" not in config.aa:
        raise UserError("color_jitter: aa replaces it, as in timm (3a alone has both): leave one of them out")
    if config.source_view == "plain" and not active(config, ("aa", "color_jitter")):
        raise UserError("source_view: plain leaves out aa and color_jitter, and neither is on: give one of them")
    if not config.reprob and (config.remode, config.recount) != ("pixel", 1):
        name = "recount" if config.remode == "pixel" else "remode"
        raise UserError(f"{name}: has no effect without random erasing: give its probability, reprob")


def check_crop_settings(config: AugmentationSettings, kind: str) -> None:
    """Raises UserError for settings of resized-crop with another augmentation; auto is still open."""
    name = active(config, CROP_SETTINGS)
    if name is not None and kind not in ("auto", "resized-crop"):
        raise UserError(
            f"{name}: acts with augmentation resized-crop alone, and this is {kind}: choose it, or leave {name} out"
        )
