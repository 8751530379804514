"""Published folders: what plain timm makes of them, what is refused, and what stays untouched."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import feature_gan_kd.models  # registers cifar_resnet20
from feature_gan_kd.export import ModelCardInfo, RebuildError, load_published, publish, publish_bare, rebuild_obstacle
from feature_gan_kd.utils.errors import UserError

Describe = Callable[..., ModelCardInfo]
ROOT = Path(feature_gan_kd.__file__).parent.parent
FILES = ["README.md", "config.json", "model.safetensors"]
NAMES = [f"class {index}" for index in range(10)]

# name -> (architecture, what it is created with)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("test_resnet", {}),
    "grey": ("test_efficientnet", {"in_chans": 1}),
    "four-channels": ("test_convnext", {"in_chans": 4}),
    "vit": ("test_vit", {"img_size": 32}),
    "pooled-vit": ("test_vit2", {"img_size": 32, "global_pool": "avg", "class_token": False}),
    "two-heads": ("deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 1}),
    "channels-last": ("resnet10t", {}),
    "tied": ("resnet10t", {}),
    "half": ("test_byobnet", {}),
    "ours": ("cifar_resnet20", {}),
}


def create(architecture: str, **arguments: Any) -> Any:
    """An untrained model with statistics and a classifier that are not the initial ones."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=10, **arguments)
    channels = arguments.get("in_chans", 3)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, channels, 32, 32))
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def logits(model: nn.Module, images: Tensor) -> Tensor:
    twin = copy.deepcopy(model).float().eval()
    with torch.no_grad():
        return twin(images)


def published(folder: Path) -> dict[str, Any]:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return json.loads((folder / "config.json").read_text())


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, describe: Describe) -> Path:
    """Every model of `MODELS` published, with an input and its logits beside it."""
    shelf = tmp_path_factory.mktemp("shelf")
    for name, (architecture, arguments) in MODELS.items():
        model = create(architecture, **arguments)
        if name == "half":
            model.bfloat16()
        if name == "tied":
            model.layer1[0].bn1.weight = model.layer1[0].bn2.weight
        channels = arguments.get("in_chans", 3)
        images = torch.randn(3, channels, 32, 32)
        expected = logits(model, images)
        if name == "channels-last":
            model.to(memory_format=torch.channels_last)
        keys = list(model.state_dict())
        moments = {"mean": (0.5,) * channels, "std": (0.2,) * channels}
        publish(model, shelf / name, describe(architecture, in_chans=channels, **moments))
        assert load_file(shelf / name / "model.safetensors").keys() == set(keys)
        save_file({"images": images, "logits": expected}, shelf / f"{name}.safetensors")
    return shelf


def test_plain_timm_in_a_fresh_process_gives_the_same_logits(shelf: Path) -> None:
    script = """
import socket, sys
def refuse(*args): raise AssertionError("the model is asked for")
socket.getaddrinfo = socket.socket.connect = refuse
import timm, torch
from safetensors.torch import load_file
torch.set_num_threads(int(sys.argv[1]))
for name in sys.argv[2:]:
    if name == "ours":
        assert not any(module.startswith("feature_gan_kd") for module in sys.modules)
        import feature_gan_kd.models
    model = timm.create_model(f"local-dir:{name}", pretrained=True).eval()
    known = load_file(f"{name}.safetensors")
    with torch.no_grad():
        logits = model(known["images"])
    assert torch.equal(logits, known["logits"]), (name, (logits - known["logits"]).abs().max())
    print(name)
"""
    assert list(MODELS)[-1] == "ours"  # those before it load without this package
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(torch.get_num_threads()), *MODELS],
        cwd=shelf,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == list(MODELS), done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("name", MODELS)
def test_load_published_gives_the_model_and_its_config(shelf: Path, name: str) -> None:
    model, config = load_published(shelf / name)
    known = load_file(shelf / f"{name}.safetensors")
    assert torch.equal(logits(model, known["images"]), known["logits"])
    assert not model.training
    assert config == published(shelf / name)


class TestConfig:
    def test_holds_the_truth_and_nothing_inherited(self, shelf: Path) -> None:
        config = published(shelf / "cnn")
        assert config == {
            "architecture": "test_resnet",
            "num_classes": 10,
            "num_features": 96,
            "global_pool": "avg",
            "label_names": NAMES,
            "model_args": config["model_args"],
            "pretrained_cfg": {
                "custom_load": False,
                "input_size": [3, 32, 32],
                "fixed_input_size": False,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.2, 0.2, 0.2],
                "num_classes": 10,
                "pool_size": None,
                "first_conv": "conv1.0",
                "classifier": "fc",
            },
        }

    def test_timm_reads_the_preprocessing_and_the_labels(self, shelf: Path) -> None:
        model, _ = load_published(shelf / "grey")
        data = timm.data.resolve_model_data_config(model)
        assert data["input_size"] == (1, 32, 32)
        assert list(data["mean"]) == [0.5]
        assert list(data["std"]) == [0.2]
        assert data["crop_pct"] == 1.0
        assert model.pretrained_cfg["label_names"] == NAMES

    def test_the_preprocessing_of_the_evaluation_and_the_pool_size(self, tmp_path: Path, describe: Describe) -> None:
        card_info = describe("test_resnet", image_size=160, crop_pct=0.9, interpolation="lanczos")
        publish(create("test_resnet"), tmp_path / "large", card_info)
        cfg = published(tmp_path / "large")["pretrained_cfg"]
        assert (cfg["crop_pct"], cfg["interpolation"], cfg["pool_size"]) == (0.9, "lanczos", [5, 5])

    def test_no_class_names(self, tmp_path: Path, describe: Describe) -> None:
        publish(create("test_resnet"), tmp_path / "unnamed", describe("test_resnet", class_names=None))
        assert "label_names" not in published(tmp_path / "unnamed")

    def test_a_pretrained_model_keeps_its_licence_alone(self, tmp_path: Path, describe: Describe) -> None:
        model = create("test_resnet")
        model.pretrained_cfg = {**model.pretrained_cfg, "license": "cc-by-nc-4.0", "label_offset": 1}
        publish(model, tmp_path / "tuned", describe("test_resnet", pretrained=True))
        cfg = published(tmp_path / "tuned")["pretrained_cfg"]
        assert cfg["license"] == "cc-by-nc-4.0"
        assert cfg.keys().isdisjoint({"tag", "url", "hf_hub_id", "label_offset", "origin_url", "test_input_size"})


class TestNothingElseChanges:
    def test_the_model(self, tmp_path: Path, describe: Describe) -> None:
        model = create("resnet10t").to(memory_format=torch.channels_last)
        model.layer1.eval()
        before = {key: (value.data_ptr(), value.stride(), value.clone()) for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        cfg = copy.deepcopy(model.pretrained_cfg)
        publish(model, tmp_path / "a", describe("resnet10t"))
        after = model.state_dict()
        assert list(before) == list(after)
        for key, (pointer, stride, value) in before.items():
            assert after[key].data_ptr() == pointer
            assert after[key].stride() == stride
            assert torch.equal(after[key], value)
        assert [module.training for module in model.modules()] == modes
        assert model.training
        assert model.pretrained_cfg == cfg

    def test_the_random_generator(self, tmp_path: Path, describe: Describe) -> None:
        model = create("test_resnet")
        before = torch.get_rng_state()
        publish(model, tmp_path / "a", describe("test_resnet"))
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_model_connection(self, tmp_path: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
        monkeypatch.setattr(socket.socket, "connect", lambda *args: asked.append(args))
        model = timm.create_model("test_resnet", num_classes=10)
        publish(model, tmp_path / "a", describe("test_resnet", pretrained=True))
        assert model.pretrained_cfg["hf_hub_id"]
        assert asked == []

    def test_two_folders_of_one_model_are_equal(self, tmp_path: Path, describe: Describe) -> None:
        model = create("test_vit", img_size=32)
        for name in "ab":
            publish(model, tmp_path / name, describe("test_vit"))
        for file in FILES:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def surgery(model: Any) -> None:
    model.maxpool = nn.Identity()


def new_keys(model: Any) -> None:
    model.fc = nn.Sequential(model.fc)


def wider(model: Any) -> None:
    model.fc = nn.Linear(model.num_features, 12)


def diverged(model: Any) -> None:
    model.fc.weight.data[0, 0] = float("nan")


def cached_graph(model: Any) -> None:
    model.kept = model.fc.weight * 2


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "kind", "message"),
        [
            (surgery, RebuildError, "other logits when timm rebuilds it: "),
            (new_keys, RebuildError, "timm does not rebuild resnet10t .*fc"),
            (cached_graph, RebuildError, "cannot be copied "),
            (wider, UserError, "gives 12 logits, expected 10 classes"),
            (diverged, UserError, "not finite"),
        ],
    )
    def test_a_changed_model_and_the_old_folder_stays(
        self,
        tmp_path: Path,
        describe: Describe,
        change: Callable[[Any], None],
        kind: type[UserError],
        message: str,
    ) -> None:
        folder = tmp_path / "a"
        model = create("resnet10t")
        publish(model, folder, describe("resnet10t"))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        change(model)
        with pytest.raises(UserError, match=message) as caught:
            publish(model, folder, describe("resnet10t"))
        assert caught.type is kind
        assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert hidden(tmp_path) == []

    def test_arguments_that_json_cannot_hold_until_they_are_named(self, tmp_path: Path, describe: Describe) -> None:
        model = create("resnet10t", act_layer=nn.SiLU)
        with pytest.raises(RebuildError, match=r"act_layer.*model_args lacks arguments"):
            publish(model, tmp_path / "a", describe("resnet10t"))
        with pytest.raises(RebuildError, match="other logits"):
            publish(model, tmp_path / "a", describe("resnet10t", model_args={"act_layer": "elu"}))
        publish(model, tmp_path / "a", describe("resnet10t", model_args={"act_layer": "silu"}))
        assert published(tmp_path / "a")["model_args"]["act_layer"] == "silu"

    def test_images_that_the_model_cannot_take(self, tmp_path: Path, describe: Describe) -> None:
        model = timm.create_model("deit_tiny_patch16_224", num_classes=10, img_size=32, depth=1)
        with pytest.raises(UserError, match=r"images of shape \(3, 48, 48\)"):
            publish(model, tmp_path / "a", describe("deit_tiny_patch16_224", image_size=48))

    def test_a_folder_with_other_files(self, tmp_path: Path, describe: Describe) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match=r"holds 'notes.txt'"):
            publish(create("test_resnet"), tmp_path, describe("test_resnet"))
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_place_that_is_a_file(self, tmp_path: Path, describe: Describe, place: str) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="cannot be written"):
            publish(create("test_resnet"), tmp_path / place, describe("test_resnet"))
        assert (tmp_path / "file").read_text() == "mine"
        assert hidden(tmp_path) == []


def test_publishing_again_replaces_the_folder(tmp_path: Path, describe: Describe) -> None:
    folder = tmp_path / "deep" / "a"
    publish_bare(nn.Linear(2, 2), folder, describe("mine"))
    model = create("test_resnet")
    publish(model, folder, describe("test_resnet"))
    with torch.no_grad():
        model.fc.bias += 1
    publish(model, folder, describe("test_resnet", scores={"accuracy": 12.5}))
    assert published(folder)["architecture"] == "test_resnet"
    assert torch.equal(load_file(folder / "model.safetensors")["fc.bias"], model.fc.bias)
    assert "12.50" in (folder / "README.md").read_text()
    assert hidden(folder.parent) == []


def test_weights_are_as_readable_as_the_card(shelf: Path) -> None:
    modes = {stat.S_IMODE((shelf / "cnn" / file).stat().st_mode) for file in FILES}
    assert len(modes) == 1


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight


class TestNotTimms:
    def test_reasons(self) -> None:
        assert rebuild_obstacle(create("test_resnet")) is None
        assert "Own: timm did not build it" in str(rebuild_obstacle(Own()))
        unknown = create("test_resnet")
        unknown.pretrained_cfg = {"architecture": "test_resent"}
        assert "no architecture 'test_resent'" in str(rebuild_obstacle(unknown))

    def test_a_forward_put_on_the_object(self) -> None:
        model = create("test_resnet")
        original = model.forward
        model.forward = lambda images: original(images)
        assert "forward of the model was replaced" in str(rebuild_obstacle(model))
        compiled = torch.compile(create("test_resnet"))
        assert "forward of the model was replaced" in str(rebuild_obstacle(compiled))

    def test_timm_itself_may_put_one_there(self) -> None:
        model = timm.create_model("fasternet_t0", num_classes=10)
        assert any("forward" in vars(module) for module in model.modules())
        assert rebuild_obstacle(model) is None

    def test_bare(self, tmp_path: Path, describe: Describe) -> None:
        model = Own()
        with pytest.raises(RebuildError, match=r"timm did not build it$"):
            publish(model, tmp_path / "own", describe("mine"))
        publish_bare(model, tmp_path / "own", describe("mine"))
        assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["README.md", "model.safetensors"]
        other = Own()
        other.load_state_dict(load_file(tmp_path / "own" / "model.safetensors"))
        assert torch.equal(other.one.weight, model.one.weight)
        assert torch.equal(other.two.bias, model.two.bias)
        with pytest.raises(UserError, match=r"has no config.json: load bare weights"):
            load_published(tmp_path / "own")

    def test_bare_after_surgery(self, tmp_path: Path, describe: Describe) -> None:
        model = create("resnet10t").to(memory_format=torch.channels_last)
        surgery(model)
        publish_bare(model, tmp_path / "a", describe("resnet10t"))
        saved = load_file(tmp_path / "a" / "model.safetensors")
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())

    def test_a_state_that_is_no_tensor(self, tmp_path: Path, describe: Describe) -> None:
        class Extra(Own):
            def get_extra_state(self) -> dict[str, int]:
                return {"steps": 3}

            def set_extra_state(self, state: dict[str, int]) -> None: ...

        with pytest.raises(UserError, match="_extra_state: is dict"):
            publish_bare(Extra(), tmp_path / "a", describe("mine"))
        assert list(tmp_path.iterdir()) == []


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class TestBadFolders:
    @pytest.fixture
    def folder(self, shelf: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(shelf / "cnn", tmp_path / "a"))

    @staticmethod
    def fails(folder: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load_published(folder)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600 + 2 * len(str(folder))

    @staticmethod
    def change(folder: Path, **values: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    def test_missing(self, folder: Path) -> None:
        self.fails(folder / "nowhere", "is not a folder")
        (folder / "config.json").unlink()
        self.fails(folder, r"has no config.json")
        (folder / "model.safetensors").unlink()
        self.fails(folder, r"has no model.safetensors: name a folder")

    def test_a_pickle_is_not_read(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with (folder / "pytorch_model.bin").open("wb") as file:
            pickle.dump(Trap(folder / "sprung"), file)
        self.fails(folder, r"pytorch_model.bin is a pickle")
        assert not (folder / "sprung").exists()

    @pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"architecture": 3}', b"\xff\xfe", b"[" * 100_000])
    def test_a_broken_config(self, folder: Path, content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        self.fails(folder, r"config.json: (cannot be read|names no architecture)")

    def test_an_unknown_architecture(self, folder: Path) -> None:
        self.change(folder, architecture="test_resent")
        self.fails(folder, r"'test_resent' \(nearest: test_resnet.*\): import the module")

    @pytest.mark.parametrize(
        "values",
        [
            {"pretrained_cfg": 3},
            {"pretrained_cfg": {"nonsense": 1}},
            {"model_args": {"nonsense": 1}},
            {"model_args": 3},
        ],
    )
    def test_a_config_that_timm_cannot_follow(self, folder: Path, values: dict[str, Any]) -> None:
        self.change(folder, **values)
        self.fails(folder, "timm cannot rebuild the model")

    @pytest.mark.parametrize("cut", [0, 4, 100, -100])
    def test_broken_weights(self, folder: Path, cut: int) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:cut])
        self.fails(folder, r"model.safetensors: is not a safetensors file")

    def test_a_header_of_absurd_length(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"\xff" * 64)
        self.fails(folder, "is not a safetensors file")

    def test_weights_of_another_shape(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        save_file({**tensors, "conv1.0.weight": torch.zeros(1, 2, 3, 4)}, path)
        self.fails(folder, r"timm cannot rebuild the model .*conv1.0.weight")

    def test_a_missing_tensor(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        del tensors["bn1.weight"]
        save_file(tensors, path)
        self.fails(folder, r"timm cannot rebuild the model .*bn1.weight")

    def test_a_classifier_that_timm_would_drop_in_silence(self, folder: Path) -> None:
        self.change(folder, model_args={"num_classes": 5})
        self.fails(folder, r"does not load 'fc\.\w+' as it was saved")
