"""Image classifiers of transformers: every class that takes images alone, small and with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from torch import nn

PREFIX = "transformers:"

# One transformer of two blocks on 16 patches.
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_CONVNEXT = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [2, 2, 4]}
_PVT = {
    "image_size": 64,
    "hidden_sizes": [8, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 4, 4],
}
_LEVIT = {
    "image_size": 128,
    "hidden_sizes": [16, 32, 32],
    "num_attention_heads": [2, 2, 4],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
_RESNET = {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 2]}


def _vision(kind: str, **more: Any) -> dict[str, Any]:
    """The settings of a model of images and texts, whose tower of images is small."""
    return {"vision_config": {**_VIT, "model_type": kind, **more}}


# Class, settings of its config, and the side in pixels of its images.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "beit": ("Beit", _VIT, 32),
    "beit-cls": ("Beit", {**_VIT, "use_mean_pooling": False}, 32),
    "bit": (
        "Bit",
        {"hidden_sizes": [64, 64, 64, 64], "depths": [1, 1, 1, 1], "embedding_size": 32, "num_groups": 8},
        64,
    ),
    "clip": ("CLIP", _vision("clip_vision_model"), 32),
    "convnext": ("ConvNext", _CONVNEXT, 64),
    "convnextv2": ("ConvNextV2", _CONVNEXT, 64),
    "cvt": ("Cvt", {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, 64),
    "data2vec-vision": ("Data2VecVision", _VIT, 32),
    "deit": ("DeiT", _VIT, 32),
    "deit-eager": ("DeiT", {**_VIT, "attn_implementation": "eager"}, 32),
    "deit-distilled": ("DeiTForImageClassificationWithTeacher", _VIT, 32),
    "dinov2": ("Dinov2", _VIT, 32),
    "dinov2-eager": ("Dinov2", {**_VIT, "attn_implementation": "eager"}, 32),
    "dinov2-registers": ("Dinov2WithRegisters", {**_VIT, "num_register_tokens": 4}, 32),
    "dinov2-registers-eager": (
        "Dinov2WithRegisters",
        {**_VIT, "num_register_tokens": 4, "attn_implementation": "eager"},
        32,
    ),
    "donut-swin": ("DonutSwin", {**_SWIN, "window_size": 4}, 32),
    "efficientnet": ("EfficientNet", {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, 64),
    "focalnet": ("FocalNet", {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 2, 1]}, 64),
    "hgnet-v2": (
        "HGNetV2",
        {
            "embedding_size": 16,
            "hidden_sizes": [32, 32, 32, 32],
            "depths": [1, 1, 1, 1],
            "stem_channels": [3, 8, 16],
            "stage_in_channels": [16, 32, 32, 32],
            "stage_mid_channels": [8, 8, 16, 16],
            "stage_out_channels": [32, 32, 32, 32],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_downsample": [False, True, True, True],
            "stage_light_block": [False, False, True, True],
            "stage_kernel_size": [3, 3, 5, 5],
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
        64,
    ),
    "hiera": (
        "Hiera",
        {
            "embed_dim": 16,
            "image_size": [64, 64],
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 4, 4],
        },
        64,
    ),
    "ijepa": ("IJepa", _VIT, 32),
    "levit": ("Levit", _LEVIT, 128),
    "levit-distilled": ("LevitForImageClassificationWithTeacher", _LEVIT, 128),
    "metaclip-2": ("MetaClip2", _vision("metaclip_2_vision_model"), 32),
    "mobilenet-v1": ("MobileNetV1", {"depth_multiplier": 0.25}, 64),
    "mobilenet-v2": ("MobileNetV2", {"depth_multiplier": 0.35}, 64),
    "mobilevit": ("MobileViT", {"hidden_sizes": [16, 24, 32], "image_size": 64}, 64),
    "mobilevitv2": ("MobileViTV2", {"width_multiplier": 0.25, "image_size": 64}, 64),
    "poolformer": ("PoolFormer", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 64),
    "pvt": ("Pvt", _PVT, 64),
    "pvt-v2": ("PvtV2", _PVT, 64),
    "regnet": ("RegNet", {**_RESNET, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "groups_width": 8}, 64),
    "resnet": ("ResNet", _RESNET, 64),
    "segformer": ("Segformer", {"hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1]}, 64),
    "siglip": ("Siglip", _vision("siglip_vision_model"), 32),
    "siglip-head": ("Siglip", _vision("siglip_vision_model", vision_use_head=True), 32),
    "swiftformer": ("SwiftFormer", {"image_size": 64, "embed_dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}, 64),
    "swin": ("Swin", {**_SWIN, "window_size": 4}, 32),
    "swinv2": ("Swinv2", {**_SWIN, "window_size": 4}, 32),
    "textnet": (
        "TextNet",
        {
            "image_size": [64, 64],
            "stem_num_channels": 3,
            "stem_out_channels": 16,
            "hidden_sizes": [16, 16, 32, 32, 32],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3]], [[3, 1]]],
            "conv_layer_strides": [[2], [2], [2], [1]],
        },
        64,
    ),
    "timm-wrapper": ("TimmWrapper", {"architecture": "test_vit", "model_args": {"img_size": 64}}, 64),
    "vit": ("ViT", _VIT, 32),
    "vit-eager": ("ViT", {**_VIT, "attn_implementation": "eager"}, 32),
    "vit-msn": ("ViTMSN", _VIT, 32),
}


def side_of(name: str) -> int:
    """Returns the side in pixels of the images of a model."""
    return MODELS[name.removeprefix(PREFIX)][2]


def build(name: str, classes: int) -> nn.Module:
    """Builds a model by its name, with random weights; nothing is downloaded."""
    kind, settings, _ = MODELS[name.removeprefix(PREFIX)]
    owner = kind.removesuffix("WithTeacher").removesuffix("ForImageClassification")
    config: Any = getattr(transformers, f"{owner}Config")
    whole = kind if kind.endswith("WithTeacher") else f"{kind}ForImageClassification"
    model: Callable[..., nn.Module] = getattr(transformers, whole)
    return model(config(**settings, num_labels=classes))
