"""`predict` on files: the classes that the evaluation counted, from every format alike."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import feature_gan_kd
from feature_gan_kd.cli import main
from feature_gan_kd.export.predictor import Predictor
from feature_gan_kd.export.preprocessing import read_image

DIGITS = Path(feature_gan_kd.__file__).parent / "data" / "bundled" / "digits.parquet"
FORMATS = ("safetensors", "onnx", "torch-export")
COUNT = 40


def output_of(*args: object) -> str:
    """What a command prints on stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        main([str(arg) for arg in args])
    return out.getvalue()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, its models in every format, and the images that it was evaluated on as files."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        digits = datasets.load_dataset("parquet", data_files=str(DIGITS), split="train")
        digits.select(range(COUNT, 400)).to_parquet(folder / "train.parquet")
        digits.select(range(COUNT)).to_parquet(folder / "test.parquet")
        for k in range(COUNT):
            digits[k]["image"].save(folder / f"{k:02}.png")
        sources = ("--data", folder / "train.parquet", "--eval-data", folder / "test.parquet")
        pair = ("--models", "test_resnet", "test_resnet", "--image-size", "32", "--batch-size", "32", "--epochs", "3")
        output_of("train", *pair, *sources, "--lr", "0.02", "--method", "logit", "--output-dir", folder / "run")
        for each in FORMATS:
            output_of("export", folder / "run", folder / each, "--format", each)
    return folder


def predicted(here: Path, format: str, *options: object) -> list[dict[str, Any]]:
    trusted = ("--trust-code",) if format == "torch-export" else ()
    images = sorted(here.glob("*.png"))
    lines = output_of("predict", here / format / "0-test_resnet", *images, "--json", *trusted, *options).splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("format", FORMATS)
def test_as_many_are_right_as_the_evaluation_counted(format: str, here: Path) -> None:
    truth = datasets.load_dataset("parquet", data_files=str(here / "test.parquet"), split="train")["label"][:]
    found = [one["classes"][0]["index"] for one in predicted(here, format)]
    right = 100 * sum(index == label for index, label in zip(found, truth, strict=True)) / COUNT
    record = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert right == pytest.approx(record["metrics"]["eval/accuracy/0"])
    assert right > 25  # chance is 10


def test_all_formats_say_the_same(here: Path) -> None:
    safetensors, onnx, program = (predicted(here, each, "--top", "10") for each in FORMATS)
    for one, other, third in zip(safetensors, onnx, program, strict=True):
        mine = {guess["label"]: guess["probability"] for guess in one["classes"]}
        assert sorted(mine) == [str(k) for k in range(10)]
        assert sum(mine.values()) == pytest.approx(1, abs=1e-5)
        for another in (other, third):
            assert another["image"] == one["image"]
            theirs = {guess["label"]: guess["probability"] for guess in another["classes"]}
            assert theirs == pytest.approx(mine, abs=1e-5)


def test_lines_for_people(here: Path) -> None:
    lines = output_of("predict", here / "onnx" / "0-test_resnet", here / "00.png", here / "01.png", "--top", "2")
    first, second = lines.splitlines()
    (guesses,) = [one["classes"] for one in predicted(here, "onnx", "--top", "2") if one["image"].endswith("00.png")]
    words = "; ".join(f"{guess['label']} {guess['probability']:.1%}" for guess in guesses)
    assert first == f"{here / '00.png'}  {words}"
    assert second.startswith(f"{here / '01.png'}  ")


def test_images_of_any_kind(here: Path, tmp_path: Path) -> None:
    """Of other sizes, grey, with transparency and of 16 bits: the same digit."""
    digit = Image.open(here / "00.png").convert("L")
    digit.save(tmp_path / "grey.png")
    digit.convert("RGBA").save(tmp_path / "transparent.png")
    Image.fromarray(np.asarray(digit).astype(np.uint16) * 256).save(tmp_path / "deep.png")
    classifier = Predictor(str(here / "safetensors" / "0-test_resnet"))
    (plain, *others) = classifier([read_image(path) for path in (here / "00.png", *sorted(tmp_path.glob("*.png")))])
    assert len(others) == 3
    for other in others:
        assert [guess.index for guess in other] == [guess.index for guess in plain]
        assert other[0].probability == pytest.approx(plain[0].probability, abs=1e-4)
    wide = classifier([digit.resize((64, 48))])[0]
    assert len(wide) == 5


def test_a_photograph_is_turned_upright(here: Path, tmp_path: Path) -> None:
    """As `datasets` does it for training: a camera writes how it was held beside the pixels."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees, clockwise
    upright = Image.open(here / "00.png").convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    classifier = Predictor(str(here / "safetensors" / "0-test_resnet"))
    with Image.open(tmp_path / "lying.png") as opened:
        assert classifier([read_image(tmp_path / "lying.png"), opened]) == classifier([upright, upright])
    feature = datasets.Image().decode_example({"path": str(tmp_path / "lying.png"), "bytes": None})
    assert feature.convert("RGB").tobytes() == upright.tobytes()


def test_a_folder_may_be_named_as_for_timm(here: Path) -> None:
    folder, image = here / "safetensors" / "0-test_resnet", here / "00.png"
    assert output_of("predict", f"local-dir:{folder}", image) == output_of("predict", folder, image)


def test_a_model_with_few_classes_and_without_names(here: Path) -> None:
    folder = here / "safetensors" / "1-test_resnet"
    config = json.loads((folder / "config.json").read_text())
    del config["label_names"]
    (folder / "config.json").write_text(json.dumps(config))
    (guesses,) = Predictor(str(folder))([read_image(here / "00.png")], top=99)
    assert [guess.label for guess in guesses] == [str(guess.index) for guess in guesses]
    assert len(guesses) == 10
    assert torch.tensor([guess.probability for guess in guesses]).diff().le(0).all()
