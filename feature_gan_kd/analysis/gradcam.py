"""Grad-CAM: where in an image a model sees a class (Selvaraju et al. 2017), computed by pytorch-grad-cam."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from feature_gan_kd.models.outputs import logits_of
from feature_gan_kd.models.tapped_model import Layout, Tap, TapKind, TappedModel, evaluating
from feature_gan_kd.utils.errors import UserError, not_installed

RGBImage = NDArray[np.uint8]
"""Pixels (side, side, 3) in [0, 255]."""

# Pixels of a picture's side, at least: smaller images are enlarged.
MIN_SIDE = 160


@dataclass(frozen=True)
class GradCamHeatmaps:
    """Where one model sees the class of each of some images.

    Attributes:
        tap: of the feature map that the heat maps are of.
        heat: (images, side, side), from 0 at the coldest place of an image to about 1 at its hottest; 0 everywhere
            where nothing in the image is evidence for the class.
        probabilities: (images, classes) that the model gives.
    """

    tap: Tap
    heat: Tensor
    probabilities: Tensor


def grad_cam(model: TappedModel, images: Tensor, classes: Tensor) -> GradCamHeatmaps:
    """Computes where a model sees the class of each image.

    The heat is of the model's last tap. Where the logits do not depend on that map, as on the patches behind the last
    block of a vision transformer that reads its class token, it is of the last map before on which they do.

    Args:
        model: with at least one tap.
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
        tap = last_effective_tap(model, adapted)
        layer = model.module.get_submodule(tap.layer)
        logits_only = _LogitsOnly(model.module, model.name)
        with GradCAM(logits_only, [layer], tap.to_map) as cam:
            # The images need a gradient: a model whose parameters are all fixed would have none at its maps otherwise.
            cam.compute_input_gradient = True
            heat = torch.from_numpy(cam(adapted, [ClassifierOutputTarget(int(one)) for one in classes]))
            probabilities = cam.outputs.detach().float().softmax(1).cpu()
    logits_only.zero_grad()  # pytorch-grad-cam leaves gradients in the user's parameters
    side = max(MIN_SIDE, *images.shape[2:])
    heat = F.interpolate(heat[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return GradCamHeatmaps(tap, heat, probabilities)


def last_effective_tap(model: TappedModel, images: Tensor) -> Tap:
    """Finds the model's last tap, or the last map of its form before it on which the logits depend.

    Args:
        model: in evaluation mode.
        images: (batch, channels, height, width) in the size and normalisation of this model.

    Raises:
        UserError: where there is none.
    """
    tap = model.taps[-1]
    for candidate, gradient in reversed(_logit_gradients(model.module, tap, images)):
        if bool((candidate.to_map(gradient) != 0).any()):
            return candidate
    raise UserError(
        f"{model.name}: Grad-CAM finds no module whose output has the form of {tap.title} and changes the logits: name "
        "another layer with feature_layers when training"
    )


def to_rgb(image: Tensor) -> RGBImage:
    """Converts an image to pixels (side, side, 3), enlarged to at least `MIN_SIDE`.

    Args:
        image: (channels, height, width) in [0, 1], of 1 or 3 channels.
    """
    side = max(MIN_SIDE, *image.shape[1:])
    large = F.interpolate(image[None].float(), size=(side, side), mode="bilinear", align_corners=False)[0]
    pixels: RGBImage = (large.clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    return pixels


def overlay(image: Tensor, heat: Tensor) -> RGBImage:
    """Overlays a heat map on its image.

    Args:
        image: (channels, height, width) in [0, 1], of 1 or 3 channels.
        heat: (side, side) in [0, 1].
    """
    from pytorch_grad_cam.utils.image import show_cam_on_image

    pixels: RGBImage = show_cam_on_image(to_rgb(image).astype(np.float32) / 255, heat.numpy(), use_rgb=True)
    return pixels


class _LogitsOnly(nn.Module):
    """A model whose output is its logits, whatever else it returns."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images.clone()), self.name)  # a model may change its images in place


def _logit_gradients(model: nn.Module, tap: Tap, images: Tensor) -> list[tuple[Tap, Tensor]]:
    """The gradients of each image's largest logit by all outputs that have the form of a tap's map.

    In the order of computation, up to the tap's own layer; without modules that are called more than once, whose
    output would not be one map.

    Returns:
        For each of these outputs a tap that reads it, and the gradient.
    """
    candidates = {_output_shape(one): one for one in _candidate_taps(model, tap)}
    outputs: dict[str, list[Any]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if tap.layer not in outputs:
                outputs.setdefault(name, []).append(output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        with torch.enable_grad():
            logits = logits_of(model(images.detach().requires_grad_().clone()), tap.title)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: calls[0] for name, calls in outputs.items() if len(calls) == 1}
    found = {name: one for name, one in once.items() if isinstance(one, Tensor) and tuple(one.shape[1:]) in candidates}
    if not found:
        return []
    gradients = torch.autograd.grad(logits.amax(1).sum(), list(found.values()), allow_unused=True)
    taps = [dataclasses.replace(candidates[tuple(one.shape[1:])], layer=name) for name, one in found.items()]
    return [(one, gradient) for one, gradient in zip(taps, gradients, strict=True) if gradient is not None]


def _candidate_taps(model: nn.Module, tap: Tap) -> list[Tap]:
    """The taps that read the same map from a module's output.

    A stage's map is channels first whatever its modules return, since timm converts it: each layout is possible.
    """
    alone = dataclasses.replace(tap, element=0, kind=TapKind.MODULE)
    if tap.kind is not TapKind.STAGE:
        return [alone]
    prefixes = {0, int(getattr(model, "num_prefix_tokens", 0))}
    tokens = [dataclasses.replace(alone, layout=Layout.NLC, prefix_tokens=prefix) for prefix in prefixes]
    return [*tokens, dataclasses.replace(alone, layout=Layout.NHWC), alone]


def _output_shape(tap: Tap) -> tuple[int, ...]:
    """The shape, without the batch, of the output that a tap reads."""
    channels, height, width = tap.shape
    shapes = {
        Layout.NCHW: (channels, height, width),
        Layout.NHWC: (height, width, channels),
        Layout.NLC: (tap.prefix_tokens + height * width, channels),
        Layout.NCL: (channels, height * width),
        Layout.NC: (channels,),
    }
    return shapes[tap.layout]
