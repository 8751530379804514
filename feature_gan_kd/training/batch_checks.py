"""What one update takes: images and labels of the right type, shape and values (ours)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.distributed.collectives import world_size
from feature_gan_kd.method.losses import NO_LABEL
from feature_gan_kd.utils.errors import UserError


def check_batch(
    images: Any, labels: Any, form: tuple[int, int], classes: int, loss: LossSettings
) -> tuple[Tensor, Tensor]:
    """Checks images and labels of the user's own loop, without waiting for a device.

    Args:
        images: as given: floats (batch, channels, height, width).
        labels: as given: (batch,) or (batch, classes); None where no model learns from labels.
        form: channels, and side in pixels, of the images that the models take.
        classes: size of the logits.
        loss: whether labels count, and what asks for class indices: smoothing, since the user's own probabilities say
            it all, and the decoupled logit loss.

    Returns:
        The images, and the labels as int64 class indices, -1 for an image without one, or as float probabilities.

    Raises:
        UserError: for anything else.
    """
    check_gradients("training_step")
    check_images(images, *form)
    if len(images) == 0 and world_size() == 1:
        raise UserError("images: the batch is empty: give at least 2 images")
    if not loss.labels:
        images = images.clone() if images.is_inference() else images
        return images, torch.full((len(images),), NO_LABEL, device=images.device)
    checked = check_labels(labels, len(images), classes).detach()  # labels teach, they do not learn
    if loss.smoothing and checked.is_floating_point():
        raise UserError(
            f"smoothing: {loss.smoothing:g} would smooth labels that are probabilities already: set it to 0, or give "
            "class indices"
        )
    if loss.logit_loss == "decoupled" and checked.is_floating_point():
        raise UserError(
            "logit_loss: decoupled asks for one class of each image, and the labels are probabilities: give class "
            "indices, or choose kl or standardised"
        )
    # Tensors made in inference mode cannot be kept for a backward pass; copies can.
    images, checked = (one.clone() if one.is_inference() else one for one in (images, checked))
    return (images, checked) if checked.device.type == "cpu" else mark_bad_labels(images, checked, classes)


def check_gradients(where: str) -> None:
    """Raises UserError where gradients are off, so that nothing can be trained.

    Args:
        where: what the user called.
    """
    if not torch.is_grad_enabled():
        raise UserError(f"{where}: gradients are off (no_grad or inference_mode): call it outside of that block")


def check_images(images: Any, channels: int, size: int) -> None:
    """Checks the images of one update; reads no values.

    Args:
        images: of the user.
        channels: that the models take.
        size: side in pixels that the models were built for.

    Raises:
        UserError: for anything but floats (batch, channels, size, size).
    """
    if not isinstance(images, Tensor):
        raise UserError(
            f"images: {type(images).__name__} is given, expected a tensor of floats (batch, {channels}, {size}, {size})"
        )
    if images.is_meta or images.layout is not torch.strided:
        raise UserError(f"images: a {'meta' if images.is_meta else 'sparse'} tensor is given, expected a dense one")
    if not images.is_floating_point():
        raise UserError(
            f"images: {images.dtype} is given, expected floats: divide pixels by 255, subtract mean and divide by std"
        )
    if images.dim() != 4 or images.shape[1] != channels:
        raise UserError(
            f"images: they have the shape {tuple(images.shape)}, expected (batch, {channels}, {size}, {size})"
        )
    if tuple(images.shape[-2:]) != (size, size):
        raise UserError(
            f"images: {images.shape[-2]}x{images.shape[-1]} pixels, the distiller was built for images of "
            f"{size}x{size}: give their size as image_size"
        )


def check_labels(labels: Any, count: int, classes: int) -> Tensor:
    """Checks the labels of one update, and returns them as int64 class indices or as float probabilities.

    Values are checked at once where they are on the host. On another device that would wait for it: there
    `mark_bad_labels` makes the loss of a wrong label NaN, so that the update is skipped and counted.

    Args:
        labels: of the user.
        count: number of images.
        classes: size of the logits.

    Raises:
        UserError: for anything but whole numbers (count,) from 0 to classes - 1, or -1 for no label, or probabilities
            (count, classes).
    """
    expected = f"expected class indices ({count},) from 0 to {classes - 1}, or probabilities ({count}, {classes})"
    if not isinstance(labels, Tensor):
        raise UserError(f"labels: {type(labels).__name__} is given, {expected}, as a tensor")
    soft = labels.is_floating_point()
    if labels.dtype == torch.bool or labels.is_complex() or labels.shape != ((count, classes) if soft else (count,)):
        raise UserError(f"labels: {labels.dtype} of shape {tuple(labels.shape)} is given, {expected} as floats")
    checked: Tensor = labels if soft else labels.long()
    if checked.device.type == "cpu" and count:
        bad = ~are_good_labels(checked, classes)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            if soft:
                total = float(labels[row].sum())
                raise UserError(
                    f"labels: row {row} is no distribution (its sum is {total:.4g}), expected probabilities of sum 1: "
                    "images of several classes cannot be learned"
                )
            raise UserError(
                f"labels: image {row} has the label {int(labels[row])}, expected 0 to {classes - 1}, or -1 for none"
            )
    return checked


def are_good_labels(labels: Tensor, classes: int) -> Tensor:
    """Which labels are class indices or -1, or rows of probabilities: bool (batch,), on the device of the labels."""
    if labels.is_floating_point():
        return torch.logical_and(labels.amin(1) >= 0, (labels.sum(1) - 1).abs() < 0.01)
    return torch.logical_and(labels >= NO_LABEL, labels < classes)


def mark_bad_labels(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Makes the images NaN where a label is wrong, without waiting for the device, and gives them label 0.

    The losses of that update are then NaN, so that it is skipped on every process and counted.

    Args:
        images: floats (batch, channels, height, width).
        labels: int64 (batch,) or float (batch, classes).
        classes: size of the logits.
    """
    good = are_good_labels(labels, classes).to(images.device)
    images = torch.where(good[:, None, None, None], images, torch.nan)
    return images, labels if labels.is_floating_point() else torch.where(good.to(labels.device), labels, 0)
