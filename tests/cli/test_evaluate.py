"""`evaluate` of a single model, against plain timm on the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.cli import main

NAMES = ["dark", "bright"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that are no squares, of two classes, in folders."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for k, name in enumerate(NAMES):
        for split, count in (("train", 8), ("test", 7)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(90 * k, 90 * k + 160, (40, 56, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def published(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    distiller = OnlineAdversarialDistiller(
        ["test_resnet", "cifar_resnet14"],
        num_classes=2,
        image_size=32,
        epochs=1,
        batch_size=8,
        lr=0.01,
        augmentation="resized-crop",
    )
    distiller.fit(str(data), output_dir=run, progress=False)
    return run / "networks" / "0-test_resnet"


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    main(["evaluate", *map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_is_what_plain_timm_gives(published: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With timm's own loading and transform, image by image."""
    model = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    losses, right = [], []
    for k, name in enumerate(sorted(NAMES)):  # torchvision's order of folders is the published one
        for file in sorted((data / "test" / name).iterdir()):
            with torch.no_grad():
                logits = model(transform(Image.open(file))[None])
            losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor([k]))))
            right.append(int(logits.argmax()) == k)
    found = evaluated(capsys, published, "--data", data)
    assert found["images"] == 14
    assert found["accuracy"] == [pytest.approx(100 * sum(right) / 14)]
    assert found["cross_entropy"] == [pytest.approx(sum(losses) / 14, rel=1e-3)]
    recorded = json.loads((published.parents[1] / "metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    assert found["accuracy"][0] == pytest.approx(recorded["eval/accuracy/0"])


def test_one_model_has_no_ensemble(published: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(published), "--data", str(data)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["test_resnet", "on"]
    assert "on 14 images; hardest for it: " in lines[1]


def test_best_of_a_run(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = published.parents[1]
    recorded = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    assert evaluated(capsys, run, "--which", "best")["accuracy"][0] == pytest.approx(recorded["eval/accuracy/0"])


@pytest.mark.parametrize("whole_run", [False, True])
def test_a_folder_without_one_of_the_classes(
    published: Path, data: Path, whole_run: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its one class is "dark", class 1 of the models; a folder of another name is refused."""
    shutil.copytree(data / "test" / "dark", tmp_path / "dark")
    of = published.parents[1] if whole_run else published
    both, one = evaluated(capsys, of, "--data", data), evaluated(capsys, of, "--data", tmp_path)
    assert one["images"] == 7
    assert [own[0] for own in one["class_accuracy"]] == [None] * len(one["class_accuracy"])
    assert [own[1] for own in one["class_accuracy"]] == [own[1] for own in both["class_accuracy"]]
    main(["evaluate", str(of), "--data", str(tmp_path)])
    assert "1 of the 2 classes of the models, matched by name; it has no 'bright'" in capsys.readouterr().err
    (tmp_path / "dark").rename(tmp_path / "dim")
    with pytest.raises(SystemExit):
        main(["evaluate", str(of), "--data", str(tmp_path)])
    assert "labels: class 'dim' of split 'train' is not among the 2 classes of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "data: {} is a single model: give the images to evaluate it on"),
        (("--data", "x", "--which", "ema"), "which: {} is a single model, which has one set of weights: leave"),
    ],
)
def test_refused(published: Path, words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(published), *words])
    assert caught.value.code == 2
    assert line.format(published) in capsys.readouterr().err
