"""Grad-CAM: where in an image a model sees a class (Selvaraju et al. 2017), by pytorch-grad-cam."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from feature_gan_kd.models.taps import Layout, Tap, TapKind, TappedModel, evaluating, logits_of
from feature_gan_kd.utils.errors import UserError, not_installed

Pixels = NDArray[np.uint8]

# Pixels of a picture's side, at least: smaller images are enlarged.
SIDE = 160


@dataclass(frozen=True)
class GradCamHeatmaps:
    """Where one model sees a class in each of some images.

    Attributes:
        tap: the map that was asked.
        heat: (images, side, side) from 0 at the coldest place of an image to about 1 at its hottest; all 0 where
            nothing speaks for the class.
        probabilities: (images, classes) that it gives.
    """

    tap: Tap
    heat: Tensor
    probabilities: Tensor


def see(model: TappedModel, images: Tensor, classes: Tensor) -> GradCamHeatmaps:
    """Where a model sees the class of each image.

    At the map that is taught; where the logits do not depend on it, as on the patches behind the last block of a
    vision transformer that reads its class token, at the last map before it on which they do.

    Args:
        model: with at least one tap, of which the last is taken.
        images: (batch, channels, height, width), in the size and normalisation that all models share.
        classes: (batch,) indices.

    Raises:
        UserError: where `grad-cam` is not installed, or no module's output is such a map.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise not_installed("grad_cam", error, "analysis") from None
    adapted = model.adapter(images)
    with evaluating(model):
        tap = visible(model, adapted)
        layer = model.module.get_submodule(tap.layer)
        logits_only = _Logits(model.module, model.name)
        with GradCAM(logits_only, [layer], tap.to_map) as cam:
            # Gradient of the images, too: else there is none in a model whose parameters are all fixed.
            cam.compute_input_gradient = True
            heat = torch.from_numpy(cam(adapted, [ClassifierOutputTarget(int(one)) for one in classes]))
            probabilities = cam.outputs.detach().float().softmax(1).cpu()
    logits_only.zero_grad()
    side = max(SIDE, *images.shape[2:])
    large = F.interpolate(heat[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return GradCamHeatmaps(tap, large, probabilities)


def visible(model: TappedModel, images: Tensor) -> Tap:
    """The model's last tap, or the last map of its form before it on which the logits depend.

    Args:
        model: in evaluation mode.
        images: (batch, channels, height, width) in the size and normalisation of this model.

    Raises:
        UserError: where there is none.
    """
    tap = model.taps[-1]
    for here, gradient in reversed(_gradients(model.module, tap, images)):
        if bool((here.to_map(gradient) != 0).any()):
            return here
    raise UserError(
        f"{model.name}: Grad-CAM finds no module whose output is the map of {tap.title} and moves the logits: name "
        "another layer with feature_layers when training"
    )


def picture(image: Tensor) -> Pixels:
    """An image as pixels (side, side, 3).

    Args:
        image: (1 or 3, height, width) in [0, 1].
    """
    side = max(SIDE, *image.shape[1:])
    large = F.interpolate(image[None].float(), size=(side, side), mode="bilinear", align_corners=False)[0]
    shown: Pixels = (large.clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    return shown


def overlay(image: Tensor, heat: Tensor) -> Pixels:
    """A heat map laid over its image, as pixels (side, side, 3).

    Args:
        image: (1 or 3, height, width) in [0, 1].
        heat: (side, side) in [0, 1].
    """
    from pytorch_grad_cam.utils.image import show_cam_on_image

    shown: Pixels = show_cam_on_image(picture(image).astype(np.float32) / 255, heat.numpy(), use_rgb=True)
    return shown


class _Logits(nn.Module):
    """A model that gives its logits alone."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images), self.name)


def _gradients(model: nn.Module, tap: Tap, images: Tensor) -> list[tuple[Tap, Tensor]]:
    """The gradient of the largest logits by every output of the map's form, with a tap there.

    In the order of computation, up to the tap's own layer; without modules that are called more than once.
    """
    forms = {_shape(form): form for form in _forms(model, tap)}
    fired: dict[str, list[Any]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if tap.layer not in fired:
                fired.setdefault(name, []).append(output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        with torch.enable_grad():
            logits = logits_of(model(images.detach().requires_grad_()), tap.title)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: outputs[0] for name, outputs in fired.items() if len(outputs) == 1}
    found = {name: one for name, one in once.items() if isinstance(one, Tensor) and tuple(one.shape[1:]) in forms}
    if not found:
        return []
    gradients = torch.autograd.grad(logits.amax(1).sum(), list(found.values()), allow_unused=True)
    taps = [dataclasses.replace(forms[tuple(one.shape[1:])], layer=name) for name, one in found.items()]
    return [(here, one) for here, one in zip(taps, gradients, strict=True) if one is not None]


def _forms(model: nn.Module, tap: Tap) -> list[Tap]:
    """The forms in which a module may give the map of a tap; a stage's is brought to one form by timm."""
    alone = dataclasses.replace(tap, element=0, kind=TapKind.MODULE)
    if tap.kind is not TapKind.STAGE:
        return [alone]
    prefixes = {0, int(getattr(model, "num_prefix_tokens", 0))}
    tokens = [dataclasses.replace(alone, layout=Layout.NLC, prefix_tokens=prefix) for prefix in prefixes]
    return [*tokens, dataclasses.replace(alone, layout=Layout.NHWC), alone]


def _shape(tap: Tap) -> tuple[int, ...]:
    """The shape of one image's part in the output that a tap reads."""
    channels, height, width = tap.shape
    shapes = {
        Layout.NCHW: (channels, height, width),
        Layout.NHWC: (height, width, channels),
        Layout.NLC: (tap.prefix_tokens + height * width, channels),
        Layout.NCL: (channels, height * width),
        Layout.NC: (channels,),
    }
    return shapes[tap.layout]
