"""`embed`: what the file holds, in every format and from several processes."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open

from feature_gan_kd.cli import main
from feature_gan_kd.export.feature_file import write_features
from feature_gan_kd.export.open_model import open_model
from feature_gan_kd.export.preprocessing import Preprocessing, read_image
from feature_gan_kd.utils.errors import UserError
from tests.helpers.launching import launch

NAMES = ["all/a.png", "all/b.png", "all/c/1.png", "all/c/2.png", "all/d.png", "one.png", "one.png"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with images and a headless model, `net`, which timm wrote."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in NAMES[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(tmp_path / name)
    model: Any = timm.create_model("test_resnet", num_classes=0)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32), "num_classes": 0}
    timm.models.save_for_hf(model, "net", safe_serialization=True)
    return tmp_path


def read(file: str) -> tuple[list[str], np.ndarray]:
    """The names and the features in a file."""
    if file.endswith(".npy"):
        table = np.load(file)
        return table["file"].tolist(), table["features"]
    if file.endswith(".parquet"):
        columns = parquet.read_table(file).to_pydict()
        return columns["file"], np.array(columns["features"], np.float32)
    with safe_open(file, "np") as content:
        return json.loads(content.metadata()["about"])["files"], content.get_tensor("features")


@pytest.mark.parametrize("ending", ["safetensors", "npy", "parquet"])
def test_a_row_for_each_image(ending: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = f"out.{ending}"
    main(["embed", "net", "all", "one.png", "one.png", "-o", file, "--batch-size", "2"])
    assert capsys.readouterr().out == f"{file}: 7 images, 96 features each\n"
    names, features = read(file)
    assert names == NAMES
    found = open_model("net")
    with torch.no_grad():
        expected = found.model(Preprocessing(found)([read_image(Path(name)) for name in NAMES]))
    assert np.allclose(features, expected.numpy(), atol=1e-5)
    assert features.dtype == np.float32
    (here / "plain").touch()
    assert stat.S_IMODE(os.stat(file).st_mode) == stat.S_IMODE(os.stat("plain").st_mode)
    before = Path(file).read_bytes()
    main(
        ["embed", "local-dir:net" if ending == "npy" else "net", "all", *NAMES[5:], "--output", file, "--batch-size=2"]
    )
    assert Path(file).read_bytes() == before


def test_a_named_layer(here: Path) -> None:
    main(["embed", "net", "one.png", "-o", "out.npy", "--layer", "layer1"])
    assert read("out.npy")[1].shape == (1, 32)
    main(["embed", "net", "one.png", "-o", "stage.npy", "--layer", "1"])
    assert np.array_equal(read("stage.npy")[1], read("out.npy")[1])


def test_bad_images_are_left_out_and_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "all" / "b.png").write_bytes(b"no image")
    (here / "out.npy").write_bytes(b"an older one")
    with pytest.raises(SystemExit):
        main(["embed", "net", "all", "-o", "out.npy"])
    assert (here / "out.npy").read_bytes() == b"an older one"
    main(["embed", "net", "all", "-o", "out.npy", "--skip-bad-images"])
    assert "images that cannot be decoded: 1, left out; the first is all/b.png" in capsys.readouterr().err
    assert read("out.npy")[0] == [name for name in NAMES[:5] if name != "all/b.png"]
    with pytest.raises(SystemExit):
        main(["embed", "net", "all/b.png", "-o", "out.npy", "--skip-bad-images"])
    assert "image: none of the 1 images can be decoded" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_write_the_same_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three processes for four batches, of which the last has one image; and one line where an image is bad."""
    words = ("embed", "net", "all", "one.png", "one.png", "--batch-size", "2", "-o")
    main([*words, "one.safetensors"])
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    out, _ = launch(3, "-m", "feature_gan_kd", *words, "three.safetensors", env=path, at=here)
    assert out == "three.safetensors: 7 images, 96 features each\n"
    assert (here / "three.safetensors").read_bytes() == (here / "one.safetensors").read_bytes()
    (here / "one.png").write_bytes(b"no image")
    _, err = launch(3, "-m", "feature_gan_kd", *words, "none.safetensors", env=path, at=here, status=1)
    assert err.count("feature-gan-kd: error: image: one.png is not an image") == 1
    assert not (here / "none.safetensors").exists()


def test_names_that_are_no_text(here: Path) -> None:
    """A file's name may hold any bytes."""
    odd = os.fsdecode(b"caf\xe9.png")
    features = np.zeros((1, 2), np.float32)
    for ending in ("npy", "safetensors"):
        write_features(here / f"out.{ending}", [odd], features, {})
        assert read(f"out.{ending}")[0] == [odd]
    with pytest.raises(UserError, match=r"the name of caf\?.png holds bytes that are no text"):
        write_features(here / "out.parquet", [odd], features, {})
    assert not (here / "out.parquet").exists()
