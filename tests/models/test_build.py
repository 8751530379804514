from __future__ import annotations

import copy
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from feature_gan_kd import OnlineAdversarialDistiller, Peer, UserError
from feature_gan_kd.models.build import build_architecture, build_models, safe_memory_format
from feature_gan_kd.models.peer import PeerModel


def build(models: Any, **settings: Any) -> list[PeerModel]:
    defaults: dict[str, Any] = {
        "num_classes": 3,
        "in_chans": 3,
        "pretrained": [False] * len(models) if isinstance(models, (list, tuple)) else [],
        "image_size": None,
        "seed": 0,
    }
    return build_models(models, **{**defaults, **settings})


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def refused(models: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        build(models, **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_weights_are_a_function_of_seed_and_position() -> None:
    first, again = (build(["test_resnet", "test_vit"], image_size=32) for _ in range(2))
    assert all(equal(a.module, b.module) for a, b in zip(first, again, strict=True))
    others = build(["test_resnet", "test_resnet"])
    assert equal(others[0].module, first[0].module)  # whatever stands beside it
    assert not equal(others[0].module, others[1].module)
    assert not equal(build(["test_resnet", "test_vit"], seed=1)[0].module, first[0].module)


def test_the_users_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build(["test_resnet", "test_vit"])
    assert torch.equal(torch.get_rng_state(), before)


def test_classes_channels_and_names() -> None:
    resnet, vit = build(["test_resnet", "test_vit.r160_in1k"], num_classes=7, in_chans=1, image_size=32)
    assert (resnet.name, resnet.architecture, resnet.pretrained) == ("test_resnet", "test_resnet", False)
    assert (vit.name, vit.architecture) == ("test_vit", "test_vit")
    images = torch.zeros(2, 1, 32, 32)
    assert resnet.module.eval()(images).shape == vit.module.eval()(images).shape == (2, 7)


def test_each_keeps_its_own_classes_without_a_number() -> None:
    assert [model.module.num_classes for model in build(["test_resnet", "cifar_resnet20"], num_classes=None)] == [
        1000,
        100,
    ]


def test_a_vit_is_built_for_the_size_a_cnn_takes_any() -> None:
    resnet, vit = build(["test_resnet", "test_vit"], image_size=32)
    assert (resnet.model_args, vit.model_args) == ({}, {"img_size": 32})
    assert vit.module.patch_embed.grid_size == (2, 2)
    again = build_architecture("test_vit", num_classes=3, **vit.model_args)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in vit.module.state_dict().items()
    }
    assert build(["test_resnet", "test_vit"], image_size=160)[1].model_args == {}  # its own size


@pytest.mark.parametrize(
    ("models", "asked", "sizes"),
    [
        (["cifar_resnet20", "test_resnet"], None, [32, 32]),  # a model that takes any size follows the first
        (["test_resnet", "cifar_resnet20"], None, [160, 160]),
        (["cifar_resnet20", "test_vit"], None, [32, 160]),  # a ViT has a size of its own
        (["test_resnet", "test_vit"], 48, [48, 48]),
    ],
)
def test_sizes_of_the_images(models: list[str], asked: int | None, sizes: list[int]) -> None:
    models = build(models, image_size=asked)
    assert [model.image_size for model in models] == sizes
    for model, size in zip(models, sizes, strict=True):
        assert model.module.eval()(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_modules_are_taken_as_they_are() -> None:
    own, timms = nn.Linear(2, 2), timm.create_model("test_resnet", num_classes=3)
    linear, resnet = build([own, timms], num_classes=9)
    assert linear.module is own
    assert resnet.module is timms
    assert (linear.name, linear.architecture) == ("Linear", "Linear")
    assert (resnet.name, resnet.architecture) == ("test_resnet", "test_resnet")
    assert (linear.timm_cfg, resnet.timm_cfg["input_size"]) == ({}, (3, 160, 160))
    assert timms.num_classes == 3


def test_a_local_folder_comes_with_its_weights(tmp_path: Path) -> None:
    trained = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(trained, str(tmp_path), safe_serialization=True)
    one, other = build([f"local-dir:{tmp_path}", "test_resnet"], num_classes=None)
    assert equal(one.module, trained)
    assert (one.name, one.pretrained, other.pretrained) == ("test_resnet", True, False)
    wider = build([f"local-dir:{tmp_path}", "test_resnet"], num_classes=6)[0]
    assert wider.module.num_classes == 6
    assert torch.equal(wider.module.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)


@pytest.mark.parametrize(("trained", "asked"), [(3, 1), (1, 3)])
def test_trained_on_other_channels(trained: int, asked: int, tmp_path: Path) -> None:
    """timm adapts the weights; the normalisation is that of the channels' average."""
    model: Any = timm.create_model("test_resnet", num_classes=4, in_chans=trained)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.2, 0.3, 0.4)[:trained], "std": (0.5,) * trained}
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    one, _ = build([f"local-dir:{tmp_path}", "test_resnet"], in_chans=asked)
    assert one.normalisation is not None
    assert one.normalisation.mean == pytest.approx((0.3 if trained == 3 else 0.2,) * asked)
    assert one.normalisation.std == (0.5,) * asked
    assert one.module.eval()(torch.zeros(1, asked, 32, 32)).shape == (1, 3)


def test_where_weights_come_from_is_remembered(tmp_path: Path) -> None:
    """Built again without weights, timm would state its own for the architecture, and their licence."""
    trained: Any = timm.create_model("test_resnet", num_classes=4)
    trained.pretrained_cfg = {**trained.pretrained_cfg, "license": "cc-by-nc-4.0"}
    timm.models.save_for_hf(trained, str(tmp_path), safe_serialization=True)
    one, other = build([f"local-dir:{tmp_path}", "test_resnet"], num_classes=None)
    assert one.weights_origin == {"hf_hub_id": None, "license": "cc-by-nc-4.0"}
    assert other.weights_origin == {"hf_hub_id": None, "license": None}
    said = json.loads(json.dumps(one.description()))
    again = PeerModel.from_description(timm.create_model("test_resnet"), said)
    assert (again.weights_origin, json.loads(json.dumps(again.description()))) == (one.weights_origin, said)
    del said["origin"]  # of a checkpoint that does not say it yet
    assert PeerModel.from_description(timm.create_model("test_resnet"), said).weights_origin == other.weights_origin


@pytest.mark.parametrize("models", [["test_resnet"], [], [nn.Linear(2, 2)]])
def test_one_model_is_too_few(models: Any) -> None:
    assert "at least 2 are needed" in refused(models)


@pytest.mark.parametrize("models", ["test_resnet", nn.Linear(2, 2), Peer("test_resnet")])
def test_one_model_is_not_several(models: Any) -> None:
    with pytest.raises(UserError, match=r"^models: one model is given, at least 2 are needed"):
        OnlineAdversarialDistiller(models)


def test_one_module_cannot_stand_twice() -> None:
    module = nn.Linear(2, 2)
    assert "the same module is given twice" in refused([module, module])
    build([module, copy.deepcopy(module)])
    build(["test_resnet", "test_resnet"])  # two models of one architecture


def test_compiled_modules_are_refused() -> None:
    """Wholly, in place, or in part."""
    plain, in_place, in_part = (timm.create_model("test_resnet", num_classes=3) for _ in range(3))
    whole = torch.compile(timm.create_model("test_resnet", num_classes=3), backend="eager")
    in_place.compile(backend="eager")
    in_part.layer4 = torch.compile(in_part.layer4, backend="eager")
    for module in (whole, in_place, in_part):
        assert re.match(
            r"models: model 1 \(.*\) is compiled: give it uncompiled, and set comp", refused([plain, module])
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:Lazy modules")
def test_modules_that_hooks_or_optimisers_cannot_hold_are_refused() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    in_part = nn.Sequential(torch.jit.script(nn.Conv2d(3, 3, 1)), nn.Flatten(), nn.Linear(12, 3))
    traced = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(1, 3, 2, 2))
    for scripted in (torch.jit.script(copy.deepcopy(plain)), traced, in_part):
        assert re.match(
            r"models: model 1 \(.*\) is scripted \(torch.jit\), .*: give the module as it was before scripting$",
            refused([plain, scripted]),
        )
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    assert refused([plain, lazy]) == (
        "models: model 1 (Sequential) has an uninitialised lazy tensor '1.weight': run one batch of images through it "
        "first"
    )
    assert "lazy tensor '0.running_mean'" in refused([plain, nn.Sequential(nn.LazyBatchNorm2d(affine=False), plain[0])])
    lazy(torch.zeros(1, 3, 2, 2))
    build([plain, lazy])


def test_what_is_no_model() -> None:
    assert refused(["test_resnet", 3]) == "models: int at place 1, expected a timm name or a module"


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnt18", "resnet18"), ("cifar_resnet21", "cifar_resnet20"), ("vit_tiny_patch16", "vit_tiny_patch16_")],
)
def test_the_closest_names_are_suggested(name: str, near: str) -> None:
    message = refused(["test_resnet", name])
    assert re.match(rf"models: timm has no model '{name}', the closest are .*{near}", message)


def test_a_name_like_no_other() -> None:
    assert "the closest are listed by timm.list_models()" in refused(["test_resnet", "0123456789"])


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("resnet18.unheard_of", {}, "resnet18.unheard_of could not be built"),
        ("local-dir:/nowhere", {}, "local-dir:/nowhere could not be read"),
        ("cifar_resnet20", {"pretrained": [True, True]}, "No pretrained weights exist for cifar_resnet20"),
        ("test_resnet", {"num_classes": 1}, "num_classes: 1 is not allowed, expected a whole number of at least 2"),
        ("test_resnet", {"num_classes": 0}, "num_classes: 0 is not allowed"),
        ("test_resnet", {"num_classes": 0, "labels": False}, "num_classes: 0 is not allowed"),
        ("test_resnet", {"num_classes": -4}, "num_classes: -4 is not allowed"),
        ("test_resnet", {"num_classes": 2.0}, "num_classes: 2.0 is not allowed"),
    ],
)
def test_what_cannot_be_built(model: str, settings: dict[str, Any], message: str) -> None:
    assert message in refused([model, "cifar_resnet20"], **settings)


def test_weights_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and not after half a minute of retries."""

    def unknown(*args: Any, **_: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("test_resnet", "hf-hub:nobody/no-such-model"):
        message = refused([name, "test_vit"], pretrained=[True] * 2)
        assert message.startswith(f"models: the weights of {name} could not be fetched (there is no internet access")


@pytest.mark.parametrize(("classes", "remedy"), [(None, "give num_classes"), (5, "name another")])
def test_encoders_are_refused(classes: int | None, remedy: str) -> None:
    message = refused([timm.create_model("test_resnet", num_classes=0), "test_vit"], num_classes=classes)
    assert message.startswith("models: test_resnet has no classifier, it only encodes: ")
    assert remedy in message


@pytest.mark.slow
def test_a_memory_order_that_ends_the_process_is_not_used() -> None:
    """A strided 1x1 convolution of few channels, trained in channels-last on CPU, corrupts memory in torch 2.15."""
    code = """
import torch
from torch import nn
from feature_gan_kd import OnlineAdversarialDistiller

def model():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5)
    return nn.Sequential(nn.Conv2d(3, 48, 1, stride=2), nn.ReLU(), *head)

distiller = OnlineAdversarialDistiller([model(), model()], image_size=256)
for _ in range(3):
    distiller.training_step(torch.randn(2, 3, 256, 256), torch.tensor([1, 2]))
print("trained")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "trained\n", (result.returncode, result.stderr)


def test_convolutions_that_keep_their_memory_order() -> None:
    safe, unsafe = nn.Conv2d(16, 4, 1, stride=2), nn.Conv2d(3, 4, 1, stride=2)
    cpu = torch.device("cpu")
    assert safe_memory_format(safe, cpu, True) is torch.channels_last
    assert safe_memory_format(unsafe, cpu, True) is torch.contiguous_format
    assert safe_memory_format(unsafe, torch.device("cuda"), True) is torch.channels_last
    assert safe_memory_format(safe, cpu, False) is torch.contiguous_format
