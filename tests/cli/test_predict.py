"""`predict` on files and folders: which images, in which order, as lines or as a table; and what it imports."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models import save_for_hf

from feature_gan_kd.cli import main

NAMES = ["crow", "cat, a", "cow"]
# What a prediction has no use for, and what takes long to import.
NEEDLESS = (
    *("accelerate", "datasets", "fsspec", "jinja2", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pandas"),
    *("plotly", "pyarrow", "scipy", "sklearn", "tensorboard", "transformers"),
    *(
        "feature_gan_kd.distiller",
        "feature_gan_kd.training.run",
        "feature_gan_kd.training.trainer",
        "feature_gan_kd.method.step",
        "feature_gan_kd.analysis",
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published model of three classes."""
    folder = tmp_path_factory.mktemp("published") / "net"
    net = timm.create_model("test_resnet", num_classes=3)
    net.pretrained_cfg = {**net.pretrained_cfg, "input_size": (3, 32, 32)}
    save_for_hf(net, str(folder), model_config={"label_names": NAMES}, safe_serialization=True)
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with one image and a folder of four that has other files, too."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("one.png", "all/b.PNG", "all/a.jpg", "all/z/c.webp", "all/y.gif", "all/.hidden/d.png", "all/.e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 16, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "all" / "notes.txt").write_text("not an image")
    (tmp_path / "all" / "z" / "up").symlink_to("..")
    return tmp_path


def images_of(lines: str) -> list[str]:
    return [json.loads(line)["image"] for line in lines.splitlines()]


IN_ORDER = ["all/a.jpg", "all/b.PNG", "all/y.gif", "all/z/c.webp"]


def test_a_folder_is_walked_in_order(model: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", model, "one.png", "all", "all/a.jpg", "--json"])
    out, err = capsys.readouterr()
    assert images_of(out) == ["one.png", *IN_ORDER, "all/a.jpg"]
    assert err == "all: 1 file is left out, since the ending of the name is none of an image: notes.txt\n"


def test_the_table_holds_what_the_lines_say(model: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", model, "all", "--json", "--top", "2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (here / "out.csv").write_text("an older one")
    main(["predict", model, "all", "--csv", "out.csv", "--top", "2"])
    assert capsys.readouterr().out == "out.csv: 4 images\n"
    rows = list(csv.DictReader((here / "out.csv").read_text().splitlines()))
    assert list(rows[0]) == ["image", "rank", "label", "index", "probability"]
    said = [(one["image"], str(k), guess) for one in lines for k, guess in enumerate(one["classes"], 1)]
    assert len(said) == len(rows) == 8
    for row, (image, rank, guess) in zip(rows, said, strict=True):
        assert (row["image"], row["rank"]) == (image, rank)
        assert (row["label"], row["index"]) == (guess["label"], str(guess["index"]))
        assert float(row["probability"]) == pytest.approx(guess["probability"], rel=1e-5)
        assert row["label"] == NAMES[guess["index"]]


def test_nothing_is_written_where_an_image_is_broken(
    model: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with --skip-bad-images it is left out and counted."""
    (here / "all" / "b.PNG").write_bytes(b"no image")
    (here / "out.csv").write_text("an older one")
    with pytest.raises(SystemExit) as stop:
        main(["predict", model, "all", "--csv", "out.csv"])
    assert stop.value.code == 2
    assert "image: all/b.PNG is not an image" in capsys.readouterr().err
    assert (here / "out.csv").read_text() == "an older one"
    assert [path.name for path in here.iterdir() if "writing" in path.name] == []
    main(["predict", model, "all", "--json", "--skip-bad-images"])
    out, err = capsys.readouterr()
    assert images_of(out) == [name for name in IN_ORDER if name != "all/b.PNG"]
    assert err.splitlines()[-1] == "images that cannot be decoded: 1, left out; the first is all/b.PNG"


def test_batches_keep_the_order(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", model, "all", "--json"])
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr("feature_gan_kd.cli.predict.BATCH", 3)
    (here / "all" / "b.PNG").write_bytes(b"no image")
    main(["predict", model, "all", "--json", "--skip-bad-images"])
    parts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for part, one in zip(parts, [one for one in whole if one["image"] != "all/b.PNG"], strict=True):
        assert part["image"] == one["image"]
        assert [guess["index"] for guess in part["classes"]] == [guess["index"] for guess in one["classes"]]


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("command", ["predict", "embed"])
def test_files_for_a_model_of_other_channels(
    command: str, channels: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a file that has four: alpha is no channel of the image."""
    net = timm.create_model("test_resnet", num_classes=3, in_chans=channels)
    net.pretrained_cfg = {
        **net.pretrained_cfg,
        "input_size": (channels, 32, 32),
        "mean": (0.5,) * channels,
        "std": (0.2,) * channels,
    }
    save_for_hf(net, "net", safe_serialization=True)
    Image.new("RGBA", (32, 32)).save("four.png")
    with pytest.raises(SystemExit) as stop:
        main([command, "net", "four.png", *(["-o", "out.npy"] if command == "embed" else [])])
    assert stop.value.code == 2
    expected = f"net: takes images of {channels} channels, image files are decoded to 3 (RGB) or 1 (grey): load"
    assert expected in capsys.readouterr().err
    assert not Path("out.npy").exists()


def imported_by(model: str, image: str, here: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """`predict` in a process of its own, since this one has imported everything; and the modules that it imported."""
    code = (
        "import sys\nfrom feature_gan_kd.cli import main\n"
        f"try:\n    main(['predict', {model!r}, {image!r}])\n"
        "finally:\n    print('modules', *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=120)
    return done, set(done.stderr.partition("modules ")[2].split())


def test_it_imports_only_what_it_uses(model: str, here: Path) -> None:
    """Most of the time for one picture goes into imports."""
    done, imported = imported_by(model, "one.png", here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("one.png  ")
    assert {"torch", "timm"} <= imported
    assert [name for name in NEEDLESS if name in imported] == []


def test_a_mistyped_image_is_refused_before_anything_is_loaded(model: str, here: Path) -> None:
    done, imported = imported_by(model, "none.png", here)
    assert "image: none.png does not exist" in done.stderr
    assert "feature_gan_kd" in imported
    assert {"torch", "timm", "numpy"} & imported == set()
