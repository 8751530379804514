"""Maps are found in models of every form."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import feature_gan_kd.models  # noqa: F401  (registers the CIFAR models with timm)
from feature_gan_kd import UserError
from feature_gan_kd.models.find_taps import dry_run, find_taps, layers_of
from feature_gan_kd.models.tapped_model import Layout, Tap, TapKind, TappedModel


def model_of(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=7, **kwargs)
    return model.eval()


def map_of(model: nn.Module, tap: Tap, images: Tensor) -> Tensor:
    with torch.no_grad():
        feature_map: Tensor = TappedModel(model, [tap], "model")(images)[1][0]
    assert tuple(feature_map.shape[1:]) == tap.shape
    return feature_map


# name, side, tapped at, layout, prefix tokens, map: from the architectures' own publications
FORMS = [
    ("test_resnet", 64, "layer4", Layout.NCHW, 0, (96, 2, 2)),
    ("test_vit", 160, "norm", Layout.NLC, 1, (64, 10, 10)),
    ("test_convnext", 64, "norm_pre", Layout.NCHW, 0, (64, 2, 2)),
    ("swin_tiny_patch4_window7_224", 224, "norm", Layout.NHWC, 0, (768, 7, 7)),
    ("vit_small_patch14_reg4_dinov2", 518, "norm", Layout.NLC, 5, (384, 37, 37)),
    ("crossvit_tiny_240", 240, "norm.1", Layout.NLC, 1, (192, 14, 14)),
    ("coat_tiny", 224, "norm4", Layout.NLC, 1, (152, 7, 7)),
    ("pit_ti_224", 224, "transformers", Layout.NCHW, 0, (256, 7, 7)),
    ("efficientvim_m1", 224, "forward_features", Layout.NCL, 0, (320, 4, 4)),
    ("nest_tiny", 224, "forward_features", Layout.NCHW, 0, (384, 14, 14)),
    ("volo_d1_224", 224, "norm", Layout.NLC, 1, (384, 14, 14)),
    ("tf_efficientnetv2_b0", 192, "bn2", Layout.NCHW, 0, (1280, 6, 6)),
]


@pytest.mark.parametrize(("name", "side", "title", "layout", "prefix", "shape"), FORMS, ids=[form[0] for form in FORMS])
def test_the_last_map(
    name: str, side: int, title: str, layout: Layout, prefix: int, shape: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        model = model_of(name)
        images = torch.zeros(2, 3, side, side)
    (tap,) = find_taps(model, images, name)
    assert (tap.title, tap.layout, tap.prefix_tokens, tap.shape) == (title, layout, prefix, shape)
    trial = dry_run(TappedModel(model, [tap], name), images)
    assert trial.classes == 7
    head = (
        {id(parameter) for parameter in model.get_classifier().parameters()} if name != "crossvit_tiny_240" else set()
    )  # type: ignore[operator]
    assert trial.extractor
    assert not head & {id(parameter) for parameter in trial.extractor}


@pytest.mark.parametrize(
    ("name", "side"), [("test_vit", 160), ("pit_ti_224", 224), ("efficientvim_m1", 224), ("test_convnext", 64)]
)
def test_the_map_is_timms_own(name: str, side: int) -> None:
    """Equal to what `forward_intermediates` gives for the last stage, where both are the same tensor."""
    model = model_of(name)
    images = torch.randn(2, 3, side, side)
    (tap,) = find_taps(model, images, name)
    kwargs = {"norm": True} if name == "test_vit" else {}
    with torch.no_grad():
        expected = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True, **kwargs)[-1]  # type: ignore[operator]
    torch.testing.assert_close(map_of(model, tap, images), expected)


def test_tokens_go_back_to_their_grid_row_by_row() -> None:
    model = model_of("vit_tiny_patch16_224", img_size=(32, 64))
    images = torch.randn(1, 3, 32, 64)
    (tap,) = find_taps(model, images, "vit")
    assert tap.shape == (192, 2, 4)
    with torch.no_grad():
        tokens = model.forward_features(images)  # type: ignore[operator]
    feature_map = map_of(model, tap, images)
    assert torch.equal(feature_map[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("stage", [-1, -2, 0])
def test_any_stage_by_its_number(name: str, stage: int) -> None:
    model, images = model_of(name), torch.randn(2, 3, 160, 160)
    (tap,) = find_taps(model, images, name, [stage])
    with torch.no_grad():
        expected = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)[stage]  # type: ignore[operator]
        logits, (feature_map,) = TappedModel(model, [tap], name)(images)
        assert torch.equal(logits, model(images))
    assert torch.equal(feature_map, expected)


def test_a_stage_is_tapped_at_its_module_where_one_gives_it() -> None:
    for name, layer in (("test_resnet", "layer3"), ("cifar_resnet20", "layer2")):
        (tap,) = find_taps(model_of(name), torch.randn(2, 3, 32, 32), "it", [-2])
        assert (tap.kind, tap.layer) == (TapKind.MODULE, layer)


def test_a_stage_of_a_model_that_pools_after_its_stages() -> None:
    with torch.device("meta"):
        (tap,) = find_taps(model_of("gemma4_vit_167m"), torch.zeros(2, 3, 224, 224), "it", [-2])
    assert (tap.kind, tap.layer) == (TapKind.MODULE, "encoder.blocks.14")


def test_an_early_stage_of_a_model_that_would_stop_there() -> None:
    with torch.device("meta"):
        model, images = model_of("hiera_tiny_224"), torch.zeros(2, 3, 224, 224)
        (tap,) = find_taps(model, images, "hiera", [-2])
        assert dry_run(TappedModel(model, [tap], "hiera"), images).classes == 7
    assert tap.shape == (384, 14, 14)


def test_several_layers_keep_the_order_they_were_named_in() -> None:
    model, images = model_of("test_resnet"), torch.randn(2, 3, 64, 64)
    taps = find_taps(model, images, "model", ["layer4", 1, "layer2", 0])
    with torch.no_grad():
        _, maps = TappedModel(model, taps, "model")(images)
    assert [tuple(one.shape[1:]) for one in maps] == [tap.shape for tap in taps]
    assert torch.equal(maps[1], maps[1])
    assert [tap.shape[1] for tap in taps] == [2, 16, 8, 32]


@pytest.mark.parametrize(
    ("build", "side", "layer", "shape"),
    [
        (torchvision.models.resnet18, 64, "layer4", (512, 2, 2)),
        (torchvision.models.mobilenet_v3_small, 64, "features", (576, 2, 2)),
        (torchvision.models.vgg11, 64, "features", (512, 2, 2)),
        (torchvision.models.densenet121, 64, "features", (1024, 2, 2)),
        (torchvision.models.vit_b_32, 224, "encoder", (768, 7, 7)),
        (torchvision.models.swin_t, 224, "permute", (768, 7, 7)),
        (torchvision.models.convnext_tiny, 64, "features", (768, 2, 2)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_torchvisions_own(build: Any, side: int, layer: str, shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model, images = build(num_classes=7), torch.zeros(2, 3, side, side)
    (tap,) = find_taps(model, images, "model")
    assert (tap.layer, tap.shape) == (layer, shape)


class Shared(nn.Module):
    """One module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.block(self.block(self.stem(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["block"], "layer 'block' was called 2 times"),
        (["unused"], "layer 'unused' was called 0 times"),
        (["blok"], "no layer 'blok', the nearest are block"),
        (["head"], r"layer 'head' outputs \(2, 7\), which has no grid"),
        ([1], "names stage 1, it has 0 stages"),
    ],
)
def test_layers_that_cannot_be_tapped(layers: list[str | int], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        find_taps(Shared(), torch.randn(2, 3, 8, 8), "model", layers)
    assert "\n" not in str(error.value)


def test_a_model_whose_last_map_is_a_shared_modules() -> None:
    with pytest.raises(UserError, match="that of 'stem', but most layers follow it: name a layer"):
        find_taps(Shared(), torch.randn(2, 3, 8, 8), "model")


def test_a_model_without_maps() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 7))
    with pytest.raises(UserError, match="no module outputs a map"):
        find_taps(model, torch.randn(2, 3, 8, 8), "model")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_gradient_checkpointing_before_and_after(name: str) -> None:
    """The same map and gradient as without, or an error that names the layer."""
    model, images = model_of(name), torch.randn(2, 3, 160, 160)
    (tap,) = find_taps(model, images, name)

    def gradients(one: Tap) -> list[Tensor | None]:
        _, (feature_map,) = TappedModel(model, [one], name)(images)
        return list(torch.autograd.grad(feature_map.square().sum(), list(model.parameters()), allow_unused=True))

    expected = gradients(tap)
    model.set_grad_checkpointing(True)  # type: ignore[operator]
    (found,) = find_taps(model, images, name)
    for one, other in zip(expected, gradients(found), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one)
    if found != tap:
        with pytest.raises(UserError, match=f"layer '{tap.layer}' was called 0 times"):
            TappedModel(model, [tap], name)(images)


def test_layers_in_the_users_notation() -> None:
    assert layers_of(None, 0) == []
    assert layers_of("layer3", 1) == ["layer3"]
    assert layers_of(-2, 1) == [-2]
    assert layers_of(["layer3", "layer4"], 0) == ["layer3", "layer4"]
    assert layers_of({1: "norm", 2: [0, 1]}, 0) == []
    assert layers_of({1: "norm", 2: [0, 1]}, 1) == ["norm"]
    assert layers_of({1: "norm", 2: [0, 1]}, 2) == [0, 1]
