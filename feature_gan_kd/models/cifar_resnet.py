"""ResNets for 32x32 images, and the base class that makes the models of this package timm models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from feature_gan_kd.utils.errors import UserError

_Entrypoint = TypeVar("_Entrypoint", bound=Callable[..., nn.Module])


def register(entrypoint: _Entrypoint) -> _Entrypoint:
    """Registers a function with timm, under its own name; timm's `register_model` with type annotations."""
    register_model(entrypoint)
    return entrypoint


def cifar_cfg(paper: str) -> dict[str, Any]:
    """Returns timm's configuration of an untrained model for CIFAR-100; `paper` is an arXiv number."""
    return {
        "input_size": (3, 32, 32),
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "num_classes": 100,
        "pool_size": (8, 8),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "paper_ids": f"arXiv:{paper}",
    }


def conv3x3(in_chs: int, out_chs: int, stride: int = 1) -> nn.Conv2d:
    """Builds a 3x3 convolution that keeps the grid at stride 1 and halves it at stride 2."""
    return nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False)


class Stage(nn.Sequential):
    """Residual blocks in order; with `grad_checkpointing` the backward pass recomputes each of them.

    The switch is in the stage, not in the model: so the stage itself is called in both cases, and its forward hooks
    run once.
    """

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride)."""
        if self.grad_checkpointing:
            x = checkpoint_seq(self, x)
        else:
            for block in self:
                x = block(x)
        return x


def make_stage(
    block: Callable[[int, int, int], nn.Module], blocks: int, in_chs: int, out_chs: int, stride: int
) -> Stage:
    """Builds a stage of `blocks` residual blocks, of which the first changes the width and the grid."""
    return Stage(block(in_chs, out_chs, stride), *(block(out_chs, out_chs, 1) for _ in range(blocks - 1)))


class CifarModel(nn.Module):
    """Stem, three stages and a linear classifier, with the methods that timm expects of a model.

    A subclass builds `conv1`, `layer1`, `layer2` and `layer3`, defines `_stem` before and `_last_map` after `layer2`,
    and ends its constructor with `_add_head`. No operation works in place, so that what a forward hook recorded stays
    valid.
    """

    conv1: nn.Conv2d
    layer1: Stage
    layer2: Stage
    layer3: Stage
    global_pool: SelectAdaptivePool2d
    fc: nn.Module

    def _stem(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> the input of `layer1`."""
        raise NotImplementedError

    def _last_map(self, x: Tensor) -> Tensor:
        """The output of `layer2` -> the feature map."""
        raise NotImplementedError

    def _add_head(
        self, widths: tuple[int, ...], map_name: str, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        """Adds the head, names the maps (the last is the output of module `map_name`), and initialises the weights."""
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": name}
            for width, reduction, name in zip(widths, (1, 2, 4), ("layer1", "layer2", map_name), strict=True)
        ]
        self.num_features = widths[-1]
        self.drop_rate = drop_rate
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015; BatchNorm (1, 0) and fc as PyTorch makes them
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's patterns that order the parameters by depth: by stage if `coarse`, else by block."""
        block = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^(?:conv1|bn1)", "blocks": [(block, None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks in the backward pass: less memory, one more forward pass.

        As in timm's own models, each backward pass then updates the blocks' BatchNorm statistics again.
        """
        for stage in (self.layer1, self.layer2, self.layer3):
            stage.grad_checkpointing = enable

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Returns the classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier (0 classes: by none) and the pooling (by one of timm's; None keeps it)."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, fc = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.fc = fc.to(self.conv1.weight)  # same device and dtype
        self.head_hidden_size: int = self.num_features * self.global_pool.feat_mult()
        self.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the outputs of the modules that `feature_info` names, from one forward pass.

        Args:
            x: images (N, in_chans, H, W).
            indices: which maps: the last n, a list of positions, or None for all three.
            norm: part of timm's signature; changes nothing, the last map is normalised already.
            stop_early: skip the stages after the last requested map.
            output_fmt: only "NCHW".
            intermediates_only: return the maps without the final output.

        Raises:
            UserError: for another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt: {output_fmt!r} given, these models have only 'NCHW' maps")
        take, last = feature_take_indices(len(self.feature_info), indices)
        stages: list[Callable[[Tensor], Tensor]] = [self.layer1, self.layer2, self._last_map]
        maps = []
        x = self._stem(x)
        for index, stage in enumerate(stages):
            if stop_early and index > last:
                break
            x = stage(x)
            if index in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> the last feature map (N, num_features, H / 4, W / 4)."""
        return self._last_map(self.layer2(self.layer1(self._stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The feature map -> logits (N, num_classes), or the pooled features if `pre_logits`."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2), projected where the shape changes."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chs, out_chs, stride)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(out_chs, out_chs)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_chs != out_chs:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False), nn.BatchNorm2d(out_chs)
            )
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(residual + self.downsample(x))
        return out


class CifarResNet(CifarModel):
    """ResNet of depth 6 * blocks + 2 for small images (He et al. 2016, section 4.2).

    Shortcuts are 1x1 convolutions with BatchNorm where the width changes (the paper's option B), as in the
    distillation literature; the paper's own CIFAR models pad with zeros (option A). Parameters are named
    as in RepDistiller (github.com/HobbitLong/RepDistiller), whose checkpoints load unchanged.

    Args:
        blocks: residual blocks per stage.
        num_classes: size of the classifier, 0 for none.
        in_chans: channels of the images.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chans, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU()
        self.layer1 = make_stage(BasicBlock, blocks, 16, 16, stride=1)
        self.layer2 = make_stage(BasicBlock, blocks, 16, 32, stride=2)
        self.layer3 = make_stage(BasicBlock, blocks, 32, 64, stride=2)
        self._add_head((16, 32, 64), "layer3", num_classes, global_pool, drop_rate)

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.act1(self.bn1(self.conv1(x)))
        return out

    def _last_map(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer3(x)
        return out


_NAMES = (
    "cifar_resnet8",
    "cifar_resnet14",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet56",
    "cifar_resnet110",
)
default_cfgs = generate_default_cfgs({name: cifar_cfg("1512.03385") for name in _NAMES})


def _create_resnet(variant: str, pretrained: bool, **kwargs: Any) -> CifarResNet:
    model: CifarResNet = build_model_with_cfg(
        CifarResNet, variant, pretrained, feature_cfg={"out_indices": (0, 1, 2)}, **kwargs
    )
    return model


@register
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8, 0.08M parameters for 100 classes."""
    return _create_resnet("cifar_resnet8", pretrained, blocks=1, **kwargs)


@register
def cifar_resnet14(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-14, 0.18M parameters for 100 classes."""
    return _create_resnet("cifar_resnet14", pretrained, blocks=2, **kwargs)


@register
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20, 0.28M parameters for 100 classes."""
    return _create_resnet("cifar_resnet20", pretrained, blocks=3, **kwargs)


@register
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32, 0.47M parameters for 100 classes."""
    return _create_resnet("cifar_resnet32", pretrained, blocks=5, **kwargs)


@register
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56, 0.86M parameters for 100 classes."""
    return _create_resnet("cifar_resnet56", pretrained, blocks=9, **kwargs)


@register
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-110, 1.74M parameters for 100 classes."""
    return _create_resnet("cifar_resnet110", pretrained, blocks=18, **kwargs)
