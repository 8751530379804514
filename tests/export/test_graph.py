"""ONNX and torch.export: the same logits as the model on real images, with labels and preprocessing beside them."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import feature_gan_kd
from feature_gan_kd.cli import main
from feature_gan_kd.export import GRAPH_FILES, ModelCardInfo, publish_graph
from feature_gan_kd.utils.errors import UserError

Describe = Callable[..., ModelCardInfo]
Shelf = Callable[[str, str], Path]
DIGITS = Path(feature_gan_kd.__file__).parent / "data" / "bundled" / "digits.parquet"


class Own(nn.Module):
    """No model of timm's, for grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.GELU())
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Forgetful(Own):
    """Computes something else each time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits that grow."""
        self.calls += 1
        return super().forward(x) * self.calls


class Undecided(Own):
    """Asks its input which way to go, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        return super().forward(x if float(x.sum()) > 0 else -x)


def digits(count: int, size: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Real images, normalised: read here without the package."""
    column = pyarrow.parquet.read_table(DIGITS)["image"].to_pylist()[100 : 100 + count]
    pictures = [Image.open(io.BytesIO(one["bytes"])).convert("RGB" if channels == 3 else "L") for one in column]
    pixels = np.stack([np.asarray(one.resize((size, size))).reshape(size, size, channels) for one in pictures])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def models() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", num_classes=10, img_size=32)
    grey = {"in_chans": 1, "mean": (0.4,), "std": (0.3,), "image_size": 20}
    return {"test_vit": (vit.to(memory_format=torch.channels_last), {}), "Own": (Own(), grey)}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, describe: Describe) -> Shelf:
    """The folder of a model in a format, made when it is first asked for."""
    root = tmp_path_factory.mktemp("graphs")

    def published(name: str, format: str) -> Path:
        folder = root / f"{name}-{format}"
        if not folder.exists():
            model, changes = models()[name]
            publish_graph(model, folder, describe(name, **changes), format)
        return folder

    return published


@pytest.mark.parametrize("name", ["Own", pytest.param("test_vit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [1, 2, 17])
def test_logits_are_those_of_the_model(name: str, count: int, shelf: Shelf, describe: Describe) -> None:
    """For batches of any size, read with each format's own runtime."""
    model, changes = models()[name]
    about = describe(name, **changes)
    images = digits(count, about.image_size, about.in_chans, about.mean, about.std)
    with torch.no_grad():
        expected = model.eval()(images)
        program = torch.export.load(shelf(name, "torch-export") / "model.pt2").module()(images)
    session = onnxruntime.InferenceSession(shelf(name, "onnx") / "model.onnx", providers=["CPUExecutionProvider"])
    (onnx,) = session.run(["logits"], {"images": images.numpy()})
    for found in (torch.from_numpy(onnx), program):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected.argmax(1).unique().numel() > 1) or count < 17


@pytest.mark.parametrize("format", GRAPH_FILES)
def test_labels_and_preprocessing_travel_along(format: str, shelf: Shelf, describe: Describe) -> None:
    folder, about = shelf("Own", format), describe("Own", **models()["Own"][1])
    names = {"onnx": "model.onnx", "torch-export": "model.pt2"}
    assert {path.name for path in folder.iterdir()} == {names[format], "config.json", "README.md"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("Own", 10)
    assert config["label_names"] == [f"class {k}" for k in range(10)]
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], cfg["mean"], cfg["std"], cfg["crop_pct"]) == ([1, 20, 20], [0.4], [0.3], 1.0)
    card = (folder / "README.md").read_text()
    assert names[format] in card
    assert "library_name: timm" not in card
    if format == "onnx":
        inside = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).get_modelmeta()
        assert json.loads(inside.custom_metadata_map["config"]) == config
    else:
        extra = {"config.json": ""}
        torch.export.load(folder / "model.pt2", extra_files=extra)
        assert json.loads(extra["config.json"]) == config
    assert about.class_names is not None


@pytest.mark.parametrize(
    ("model", "words"), [(Forgetful(), "the graph gives other logits"), (Undecided(), "cannot be traced")]
)
def test_what_is_no_graph_is_not_written(model: nn.Module, words: str, tmp_path: Path, describe: Describe) -> None:
    with pytest.raises(UserError, match=words) as caught:
        publish_graph(model, tmp_path / "a", describe("Own", **models()["Own"][1]), "torch-export")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class InPlace(Own):
    """Takes four channels, and changes its images."""

    def __init__(self) -> None:
        super().__init__()
        self.features[0] = nn.Conv2d(4, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        return super().forward(x.sub_(2))


def test_images_of_four_channels_that_the_model_changes(tmp_path: Path, describe: Describe) -> None:
    """Compared on noise, of which the model and its graph get the same."""
    torch.manual_seed(0)
    model = InPlace()
    about = describe("Own", in_chans=4, mean=(0.5,) * 4, std=(0.2,) * 4, image_size=20)
    publish_graph(model, tmp_path / "a", about, "torch-export")
    images = torch.randn(3, 4, 20, 20)
    with torch.no_grad():
        expected = model.eval()(images.clone())
        found = torch.export.load(tmp_path / "a" / "model.pt2").module()(images.clone())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_folder_of_another_format_is_left_alone(tmp_path: Path, describe: Describe) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"holds 'model.safetensors', which this export does not write"):
        publish_graph(Own(), folder, describe("Own", **models()["Own"][1]), "torch-export")
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_the_extra_is_named_where_it_is_missing(
    shelf: Shelf,
    tmp_path: Path,
    describe: Describe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In writing and in reading."""
    folder, about = shelf("Own", "onnx"), describe("Own", **models()["Own"][1])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = "onnxruntime is not installed: pip install 'feature-gan-kd[onnx]'"
    with pytest.raises(UserError, match=f"^{re.escape(f'export: {line}')}$"):
        publish_graph(Own(), tmp_path / "out", about, "onnx")
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(folder), str(folder / "config.json")])
    assert capsys.readouterr() == ("", f"feature-gan-kd: error: onnx: {line}\n")
