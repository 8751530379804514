"""`probe`: what it prints, and that several processes print the same once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from feature_gan_kd.cli import main
from feature_gan_kd.data.sources import BUNDLED_DIGITS
from tests.helpers.launching import launch

DATA = str(BUNDLED_DIGITS)
LIMITS = ("--data", DATA, "--max-train-samples", "150", "--max-eval-samples", "50", "--k", "5")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with a headless model of random weights, `net`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=0)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 16, 16), "crop_pct": 1.0, "num_classes": 0}
    timm.models.save_for_hf(model, "net", safe_serialization=True)
    return tmp_path


def test_features_of_the_digits(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random features tell many digits apart: far above chance."""
    main(["probe", "net", "--json", *LIMITS])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["data"] == DATA
    assert (found["train_images"], found["eval_images"], found["classes"]) == (150, 50, 10)
    assert (found["k"], found["temperature"], found["chance"]) == (5, 0.07, 10.0)
    assert found["knn_accuracy"] > 40
    assert found["linear_accuracy"] > 40
    main(["probe", "net", *LIMITS])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"k-NN          top-1 {found['knn_accuracy']:6.2f} %  (k 5, temperature 0.07)"
    assert f"{found['linear_accuracy']:.2f} %" in lines[1]
    assert lines[3] == "96 features; 150 training and 50 evaluation images of 10 classes"
    assert list(here.iterdir()) == [here / "net"]


def test_a_named_layer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["probe", "net", "--json", "--layer", "layer1", *LIMITS])
    found = json.loads(capsys.readouterr().out)
    assert (found["layer"], found["features"]) == ("layer1", 32)


@pytest.mark.slow
def test_two_processes_measure_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["probe", "net", "--json", *LIMITS])
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    out, _ = launch(2, "-m", "feature_gan_kd", "probe", "net", "--json", *LIMITS, env=path, at=here)
    assert json.loads(out) == json.loads(capsys.readouterr().out)
