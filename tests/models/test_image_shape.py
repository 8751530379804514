"""Networks for rectangles are not trained on squares in silence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
from torch import nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.models.image_shape import check_square


def vit(**settings: Any) -> nn.Module:
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=2, **small, **settings)
    return model


def resnet(*size: int) -> nn.Module:
    model = timm.create_model("test_resnet", num_classes=2)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, *size)}
    return model  # type: ignore[no-any-return]


def stating(**attributes: Any) -> nn.Module:
    model = nn.Linear(2, 2)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize("image_size", [None, 64])
@pytest.mark.parametrize("frozen", [(), (0,)])
def test_a_transformer_for_rectangles_is_refused(image_size: int | None, frozen: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as error:
        OnlineAdversarialDistiller(
            [vit(img_size=(32, 64)), resnet(64, 64)], image_size=image_size, frozen=frozen, topology="star"
        )
    assert str(error.value) == (
        "models: model 0 (vit_tiny_patch16_224) is built for images of 32x64 (height x width), but all are squares "
        "here: build it for a square"
    )


def test_a_model_made_for_rectangles_needs_a_size() -> None:
    with pytest.raises(UserError, match=r"model 1 \(test_resnet\) is made for images of 256x128 .* with image_size$"):
        OnlineAdversarialDistiller([resnet(64, 64), resnet(256, 128)])
    assert OnlineAdversarialDistiller([resnet(64, 64), resnet(256, 128)], image_size=64).image_size == 64


@pytest.mark.parametrize(
    "model",
    [
        stating(img_size=[64, 32]),
        stating(image_size=(64, 32)),
        stating(config=SimpleNamespace(image_size=[64, 32])),
    ],
)
def test_other_modules_that_state_a_rectangle(model: nn.Module) -> None:
    with pytest.raises(UserError, match="is built for images of 64x32"):
        check_square(model, "models: model 0 (it)", 64)


@pytest.mark.parametrize("model", [stating(img_size=64), stating(image_size=(32, 32)), resnet(32, 32), vit()])
def test_squares_pass(model: nn.Module) -> None:
    check_square(model, "models: model 0 (it)", None)


def test_a_rectangle_that_is_only_a_default_may_be_a_square() -> None:
    model = vit(img_size=(32, 64), dynamic_img_size=True)
    check_square(model, "models: model 0 (it)", 64)
    with pytest.raises(UserError, match="name their side with image_size"):
        check_square(model, "models: model 0 (it)", None)
