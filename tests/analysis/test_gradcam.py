"""Grad-CAM against its formula, and at the maps of models of several kinds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.analysis.gradcam import MIN_SIDE, GradCamHeatmaps, grad_cam, last_effective_tap, overlay, to_rgb
from feature_gan_kd.models.tapped_model import Layout, Tap, TapKind, TappedModel
from tests.method.test_build import wired

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
CLASSES = torch.tensor([0, 3, 1])


class Bright(nn.Module):
    """Two classes, for which light places speak, and dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, kernel_size=1, bias=False)
        self.features.weight = nn.Parameter(torch.stack([torch.ones(3, 1, 1), -torch.ones(3, 1, 1)]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.features(images).relu().mean((2, 3))
        return logits


def tapped(model: nn.Module, layer: Any = None, size: int = 32) -> TappedModel:
    return wired([model, model], layer, size=size, method="vanilla", similarity_images=4).tapped[0]


def built(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(name, num_classes=5, **options)
    return model


def by_the_formula(
    module: nn.Module,
    layer: str,
    images: Tensor,
    classes: Tensor,
    to_map: Callable[[Tensor], Tensor] = lambda output: output,
) -> Tensor:
    """Channels weighted by the mean gradient of the class's logit, what speaks against it left out; enlarged.

    The library scales to [0, 1] before and after it enlarges to the size of the images.
    """
    outputs: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda module, args, output: outputs.append(output))
    logits = module.eval()(images)
    handle.remove()
    gradient = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), outputs[0])[0]
    heat = (to_map(gradient).mean((2, 3), keepdim=True) * to_map(outputs[0])).sum(1).relu().detach()
    for side in (images.shape[2], MIN_SIDE):
        low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
        heat = (heat - low) / (high - low).clamp(min=1e-7)
        heat = F.interpolate(heat[:, None], size=(side, side), mode="bilinear")[:, 0]
    return heat


class TestHeat:
    @pytest.mark.parametrize(
        ("name", "layer", "module"),
        [("cifar_resnet20", None, "layer3"), ("cifar_resnet20", 1, "layer2"), ("test_resnet", 2, "layer2")],
    )
    def test_equals_the_formula(self, name: str, layer: int | None, module: str) -> None:
        model = tapped(built(name), layer)
        heatmaps = grad_cam(model, IMAGES, CLASSES)
        assert heatmaps.tap.layer == module
        expected = by_the_formula(model.module, module, IMAGES, CLASSES)
        torch.testing.assert_close(heatmaps.heat, expected, atol=2e-3, rtol=0)
        assert heatmaps.heat.flatten(1).std(1).max() > 0.1
        with torch.no_grad():
            torch.testing.assert_close(heatmaps.probabilities, model.eval()(IMAGES)[0].softmax(1))

    def test_the_hot_place_is_where_the_class_is(self) -> None:
        images = torch.full((2, 3, 32, 32), -1.0)
        images[0, :, 4:8, 20:24] = 2.0
        images[1] = -images[0]
        heatmaps = grad_cam(tapped(Bright(), "features"), images, torch.tensor([0, 1]))
        for heat in heatmaps.heat:
            row, column = divmod(int(heat.argmax()), MIN_SIDE)
            assert (4 <= row * 32 / MIN_SIDE < 8, 20 <= column * 32 / MIN_SIDE < 24) == (True, True)
            assert heat[MIN_SIDE // 2 :].max() == 0

    def test_tokens_are_put_back_on_their_grid(self) -> None:
        model = tapped(built("test_vit", img_size=64, global_pool="avg"), "blocks.5", 64)
        images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        heatmaps = grad_cam(model, images, CLASSES)
        assert (heatmaps.tap.layer, heatmaps.tap.shape[1:], heatmaps.tap.prefix_tokens) == ("blocks.5", (4, 4), 1)
        expected = by_the_formula(
            model.module, "blocks.5", images, CLASSES, lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        )
        torch.testing.assert_close(heatmaps.heat, expected, atol=2e-3, rtol=0)
        assert heatmaps.heat.flatten(1).std(1).max() > 0.1

    def test_behind_the_last_block_the_patches_are_not_read_any_more(self) -> None:
        """A transformer that reads its class token: the last place where patches count is before its last attention."""
        model = tapped(built("test_vit", img_size=32))
        assert model.taps[0].layer == "norm"
        heatmaps = grad_cam(model, IMAGES, CLASSES)
        assert heatmaps.tap.layer == "blocks.5.norm1"
        expected = by_the_formula(
            model.module, "blocks.5.norm1", IMAGES, CLASSES, lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
        )
        torch.testing.assert_close(heatmaps.heat, expected, atol=2e-3, rtol=0)
        assert heatmaps.heat.flatten(1).std(1).max() > 0.1

    @pytest.mark.parametrize(("layer", "kind"), [("layers.1", TapKind.MODULE), (1, TapKind.STAGE)])
    def test_channels_last(self, layer: str | int, kind: TapKind) -> None:
        """Of a module that is named, and of a stage, which timm brings to channels first."""
        module = built("swin_tiny_patch4_window7_224", img_size=64, embed_dim=8, num_heads=(1, 2, 2, 2))
        model = tapped(module, layer, 64)
        assert model.taps[0].kind is kind
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        heatmaps = grad_cam(model, images, CLASSES[:2])
        assert (heatmaps.tap.layer, heatmaps.tap.layout) == ("layers.1", Layout.NHWC)
        expected = by_the_formula(module, "layers.1", images, CLASSES[:2], lambda x: x.permute(0, 3, 1, 2))
        torch.testing.assert_close(heatmaps.heat, expected, atol=2e-3, rtol=0)

    def test_a_model_of_fixed_parameters(self) -> None:
        module = built("test_resnet")
        expected = grad_cam(tapped(module), IMAGES, CLASSES).heat
        model = tapped(module)
        model.requires_grad_(False)
        torch.testing.assert_close(grad_cam(model, IMAGES, CLASSES).heat, expected)

    def test_nothing_is_left_behind(self) -> None:
        module = built("test_resnet")
        model = tapped(module)
        model.train()
        before = {key: value.clone() for key, value in module.state_dict().items()}
        grad_cam(model, IMAGES, CLASSES)
        assert module.training
        assert all(parameter.grad is None for parameter in module.parameters())
        assert not any(one._forward_hooks for one in module.modules())
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())

    def test_a_map_that_no_module_gives(self) -> None:
        class Pair(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                return x.relu(), x

        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.pair = Pair()

            def forward(self, images: Tensor) -> Tensor:
                logits: Tensor = self.pair(images)[0].mean((2, 3))
                return logits

        model = TappedModel(Holder(), [Tap("pair", Layout.NCHW, 0, (3, 32, 32))], "model 0 (Holder)")
        with pytest.raises(UserError, match=r"^model 0 \(Holder\): Grad-CAM finds no module whose output has "):
            grad_cam(model, IMAGES, CLASSES)

    def test_the_last_of_several_layers(self) -> None:
        model = tapped(built("test_resnet"), [0, 1])
        assert last_effective_tap(model, IMAGES).layer == model.taps[1].layer

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
        with pytest.raises(
            UserError, match=r"^grad_cam: pytorch_grad_cam is not installed: pip install 'feature-gan-kd"
        ):
            grad_cam(tapped(built("test_resnet")), IMAGES, CLASSES)


class TestPictures:
    @pytest.mark.parametrize(("channels", "side", "expected"), [(3, 32, MIN_SIDE), (1, 8, MIN_SIDE), (3, 200, 200)])
    def test_sizes_and_channels(self, channels: int, side: int, expected: int) -> None:
        pixels = to_rgb(torch.rand(channels, side, side))
        assert (pixels.shape, pixels.dtype) == ((expected, expected, 3), np.uint8)

    def test_an_image_is_shown_as_it_is(self) -> None:
        image = torch.rand(3, MIN_SIDE, MIN_SIDE)
        assert np.array_equal(to_rgb(image), (image * 255).round().byte().permute(1, 2, 0).numpy())
        assert to_rgb(torch.full((3, MIN_SIDE, MIN_SIDE), 1.7)).max() == 255

    def test_heat_is_red_and_cold_is_blue(self) -> None:
        heat = torch.zeros(MIN_SIDE, MIN_SIDE)
        heat[: MIN_SIDE // 2] = 1.0
        shown = overlay(torch.full((3, 8, 8), 0.5), heat).astype(int)
        hot, cold = shown[5, 5], shown[-5, -5]
        assert hot[0] > hot[2] + 100
        assert cold[2] > cold[0] + 100


def test_heatmaps_name_the_map_that_they_are_of() -> None:
    heatmaps = grad_cam(tapped(built("cifar_resnet20")), IMAGES, CLASSES)
    assert isinstance(heatmaps, GradCamHeatmaps)
    assert (heatmaps.tap.layer, heatmaps.tap.shape) == ("layer3", (64, 8, 8))
    assert heatmaps.heat.shape == (3, MIN_SIDE, MIN_SIDE)
