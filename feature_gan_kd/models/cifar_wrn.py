"""Wide residual models for 32x32 images (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from feature_gan_kd.models.cifar_resnet import CifarModel, cifar_cfg, conv3x3, make_stage, register


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, twice, and a shortcut (the paper's B(3,3), without its dropout).

    Where the shape changes, the shortcut is a 1x1 convolution of the block's first activation.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.act1 = nn.ReLU()
        self.conv1 = conv3x3(in_chs, out_chs, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.act2 = nn.ReLU()
        self.conv2 = conv3x3(out_chs, out_chs)
        same = stride == 1 and in_chs == out_chs
        self.downsample = None if same else nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride)."""
        active = self.act1(self.bn1(x))
        residual: Tensor = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return residual + (x if self.downsample is None else self.downsample(active))


class CifarWideResNet(CifarModel):
    """WRN-d-k: depth d = 6 * blocks + 4, stages of 16k, 32k and 64k channels (paper, table 1).

    The stages end in a sum, so the feature map is the output of the last BatchNorm and ReLU (`act`).

    Args:
        blocks: residual blocks per stage.
        widen: the factor k.
        num_classes: size of the classifier, 0 for none.
        in_chans: channels of the images.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        blocks: int,
        widen: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        widths = (16 * widen, 32 * widen, 64 * widen)
        self.conv1 = conv3x3(in_chans, 16)
        self.layer1 = make_stage(PreActBlock, blocks, 16, widths[0], stride=1)
        self.layer2 = make_stage(PreActBlock, blocks, widths[0], widths[1], stride=2)
        self.layer3 = make_stage(PreActBlock, blocks, widths[1], widths[2], stride=2)
        self.norm = nn.BatchNorm2d(widths[2])
        self.act = nn.ReLU()
        self._add_head(widths, "act", num_classes, global_pool, drop_rate)

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1(x)
        return out

    def _last_map(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.layer3(x)))
        return out


_NAMES = ("cifar_wrn_16_2", "cifar_wrn_28_2", "cifar_wrn_28_4", "cifar_wrn_40_2")
default_cfgs = generate_default_cfgs({name: cifar_cfg("1605.07146") for name in _NAMES})


def _create_wrn(variant: str, pretrained: bool, **kwargs: Any) -> CifarWideResNet:
    model: CifarWideResNet = build_model_with_cfg(
        CifarWideResNet, variant, pretrained, feature_cfg={"out_indices": (0, 1, 2)}, **kwargs
    )
    return model


@register
def cifar_wrn_16_2(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-16-2, 0.70M parameters for 100 classes."""
    return _create_wrn("cifar_wrn_16_2", pretrained, blocks=2, widen=2, **kwargs)


@register
def cifar_wrn_28_2(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-28-2, 1.48M parameters for 100 classes."""
    return _create_wrn("cifar_wrn_28_2", pretrained, blocks=4, widen=2, **kwargs)


@register
def cifar_wrn_28_4(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-28-4, 5.87M parameters for 100 classes."""
    return _create_wrn("cifar_wrn_28_4", pretrained, blocks=4, widen=4, **kwargs)


@register
def cifar_wrn_40_2(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-40-2, 2.26M parameters for 100 classes."""
    return _create_wrn("cifar_wrn_40_2", pretrained, blocks=6, widen=2, **kwargs)
