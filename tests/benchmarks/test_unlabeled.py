from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image

from benchmarks import unlabeled
from feature_gan_kd import OnlineAdversarialDistiller


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a tiny source and a few images, in short runs."""
    monkeypatch.setitem(unlabeled.COMMON, "image_size", 32)
    monkeypatch.setitem(unlabeled.COMMON, "epochs", 1)
    monkeypatch.setitem(unlabeled.COMMON, "batch_size", 8)
    for split, count in (("train", 30), ("test", 10)):
        for k in range(count):
            for name, color in (("red", (200, k, 0)), ("blue", (0, k, 200))):
                (tmp_path / "data" / split / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), color).save(tmp_path / "data" / split / name / f"{k}.png")
    source, _ = OnlineAdversarialDistiller(["test_resnet", "test_vit"], num_classes=3, image_size=32).save_pretrained(
        tmp_path / "source", mean=[0.5] * 3, std=[0.5] * 3
    )
    words = ["--data", str(tmp_path / "data"), "--source", str(source), "--output-dir", str(tmp_path / "out")]
    return [*words, "--seeds", "0", "1", "--images", "24"]


def test_runs_are_measured_resumed_and_tabulated(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["source", "untrained", "supervised", "aligned", "pooled-l2"]
    assert unlabeled.main([*command, "--arms", *arms]) == 0
    first = capsys.readouterr().out
    assert first.count("k-NN") == 10
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert set(results) == {f"{arm}-{seed}" for arm in arms for seed in (0, 1)}
    assert results["aligned-0"]["settings"]["labels"] is False
    assert results["aligned-0"]["measured"]["features"] == 64
    assert "train/cross_entropy/1" in results["supervised-0"]["last"]
    assert timm.create_model(f"local-dir:{tmp_path}/out/runs/aligned-0/networks/1-cifar_resnet8", pretrained=True)
    assert unlabeled.main([*command, "--arms", *arms]) == 0
    assert capsys.readouterr().out == ""  # nothing is repeated
    assert unlabeled.main(["--tabulate", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0][2:] for line in lines[2:]] == arms


def test_the_table_says_what_came_out(tmp_path: Path) -> None:
    def result(arm: str, seed: int, value: float) -> dict[str, Any]:
        same = {"data": "d", "source": "s", "network": "n", "images": 1}
        return {**same, "arm": arm, "seed": seed, "measured": {"knn_accuracy": value, "linear_accuracy": value + 1}}

    found = [result("untrained", k, 20) for k in range(3)] + [result("aligned", k, 30 + k) for k in range(3)]
    assert unlabeled.table(found).splitlines()[2:] == [
        "| untrained | 3 | 20.0 | 21.0 |  | -11.0 [-13.5, -8.5] |",
        "| aligned | 3 | 31.0 | 32.0 | +11.0 [+8.5, +13.5] |  |",
    ]


def test_the_price_of_an_update(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unlabeled.main([*command, "--price"]) == 0
    figures = json.loads((tmp_path / "out" / "price" / "price.json").read_text())["milliseconds"]
    assert {"supervised", "aligned", "aligned, outputs kept", "forward pass of the source"} <= figures.keys()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unlabeled.main([]) == 2
    assert unlabeled.main(["--tabulate", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("benchmarks.unlabeled: error:") == 2
