"""What is particular to the wide models; their timm contract is tested in test_cifar_resnet.py."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import feature_gan_kd.models  # noqa: F401  registers the names

SHAPES = {  # name: (blocks per stage, widening factor)
    "cifar_wrn_16_2": (2, 2),
    "cifar_wrn_28_2": (4, 2),
    "cifar_wrn_28_4": (4, 4),
    "cifar_wrn_40_2": (6, 2),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name)


def closed_form(blocks: int, widen: int, classes: int) -> int:
    """Parameters of a WRN summed by hand: stages of c, 2c and 4c channels, c = 16 * widen."""
    c, inner = 16 * widen, 2 * blocks - 1
    convolutions = 9 * 3 * 16 + 9 * (16 * c + 10 * c**2) + 9 * inner * 21 * c**2
    shortcuts = 16 * c + 10 * c**2
    norms = 2 * (16 + 3 * c) + 2 * inner * 7 * c + 2 * 4 * c
    return convolutions + shortcuts + norms + 4 * c * classes + classes


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts(name: str) -> None:
    # RepDistiller's models.wrn has these exactly; the literature rounds WRN-28-2 to 1.5M, WRN-28-4 to 5.9M.
    published = {"cifar_wrn_16_2": 703_284, "cifar_wrn_40_2": 2_255_156}
    rounded = {"cifar_wrn_28_2": 1.5, "cifar_wrn_28_4": 5.9}
    count = sum(p.numel() for p in build(name).parameters())
    assert count == closed_form(*SHAPES[name], classes=100)
    assert count == published.get(name, count)
    assert round(count / 1e6, 1) == rounded.get(name, round(count / 1e6, 1))


@pytest.mark.parametrize("name", SHAPES)
def test_map_shape_and_depth(name: str) -> None:
    model = build(name).eval()
    blocks, widen = SHAPES[name]
    features = model.forward_features(torch.zeros(1, 3, 32, 32))
    assert features.shape == (1, 64 * widen, 8, 8)
    # The depth in the name counts the 3x3 convolutions, the three shortcuts, and not the classifier.
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 6 * blocks + 4 == int(name.split("_")[2])


def test_wrn_equals_a_functional_reference() -> None:
    model = build("cifar_wrn_16_2").double()
    state = model.state_dict()
    for value in state.values():  # BatchNorm's weights away from 1 and 0, so that each of them matters
        if value.ndim == 1:
            value.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def active(x: Tensor, bn: str) -> Tensor:
        return F.batch_norm(x, None, None, state[f"{bn}.weight"], state[f"{bn}.bias"], training=True).relu()

    x = F.conv2d(images, state["conv1.weight"], padding=1)
    for stage, block in ((s, b) for s in (1, 2, 3) for b in range(2)):
        path, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        a = active(x, f"{path}.bn1")
        if block == 0:
            x = F.conv2d(a, state[f"{path}.downsample.weight"], stride=stride)
        y = active(F.conv2d(a, state[f"{path}.conv1.weight"], stride=stride, padding=1), f"{path}.bn2")
        x = x + F.conv2d(y, state[f"{path}.conv2.weight"], padding=1)
    features = active(x, "norm")
    expected = F.linear(features.mean((2, 3)), state["fc.weight"], state["fc.bias"])

    torch.testing.assert_close(model.forward_features(images), features, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)
