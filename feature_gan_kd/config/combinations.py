"""What settings may not be combined: options without an effect are refused, never ignored in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feature_gan_kd.config.validation import show
from feature_gan_kd.utils.errors import UserError

if TYPE_CHECKING:
    from feature_gan_kd.config.distill_config import DistillConfig

CROP_SETTINGS = ("scale", "ratio")
"""Settings of resized-crop alone."""

IMAGE_SETTINGS = (*CROP_SETTINGS, "vflip", "color_jitter", "aa")
"""Settings that change training images before they are normalised."""

MAX_WARMUP_FRACTION = 0.9


def active(config: DistillConfig, names: tuple[str, ...]) -> str | None:
    """The first of these settings of the augmentation that is on; None where all are off."""
    return next((name for name in names if getattr(config, name)), None)


def check_combinations(config: DistillConfig) -> None:
    """Checks what depends on several settings, or on several numbers of one.

    Raises:
        UserError: for the first that cannot be.
    """
    for name in ("milestones", "adversarial_milestones"):
        value = getattr(config, name)
        if list(value) != sorted(set(value)):
            raise UserError(f"{name}: {show(value)} is not allowed, expected rising fractions of the run")
    if config.grad_accum_steps > config.batch_size:
        raise UserError(
            f"grad_accum_steps: {config.grad_accum_steps} parts of a batch of {config.batch_size} images: "
            "at most one part per image"
        )
    if config.joint_backward and config.decay_only_update:
        raise UserError(
            "joint_backward: decay_only_update (of method zero-gradient) needs a second optimiser: leave one of them "
            "out"
        )
    if config.sync_batchnorm and config.compile:
        raise UserError("sync_batchnorm: cannot be combined with compile: leave one of them out")
    if config.class_weights and config.balanced_sampling:
        raise UserError("class_weights: balanced_sampling already balances the classes: leave one of them out")
    _check_augmentation(config)


def _check_augmentation(config: DistillConfig) -> None:
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
    if not config.reprob and (config.remode, config.recount) != ("pixel", 1):
        name = "recount" if config.remode == "pixel" else "remode"
        raise UserError(f"{name}: has no effect without random erasing: give its probability, reprob")


def check_crop_settings(config: DistillConfig, kind: str) -> None:
    """Raises UserError for settings of resized-crop with another augmentation; auto is still open."""
    name = active(config, CROP_SETTINGS)
    if name is not None and kind not in ("auto", "resized-crop"):
        raise UserError(
            f"{name}: acts with augmentation resized-crop alone, and this is {kind}: choose it, or leave {name} out"
        )


def warmup_as_fraction(epochs: float, of: int) -> float:
    """The warm-up in epochs as a fraction of the run.

    Args:
        epochs: of the warm-up.
        of: epochs of the run.

    Raises:
        UserError: for more than `MAX_WARMUP_FRACTION` of the run.
    """
    if epochs > MAX_WARMUP_FRACTION * of:
        raise UserError(
            f"warmup_epochs: {epochs:g} of {of} epochs is not allowed, expected at most {MAX_WARMUP_FRACTION * of:g}"
        )
    return epochs / of
