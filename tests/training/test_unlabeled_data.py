"""Runs with images without labels beside labelled ones: resumed to the same weights, recorded, and evaluated again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.cli import main
from tests.helpers.runs import AtStep, assert_same_run, build

SHARE: dict[str, Any] = {"labeled_fraction": 0.25, "mixup": 0.0, "cutmix": 0.0, "max_train_samples": None, "epochs": 2}


class PowerCutError(Exception):
    pass


def cut() -> None:
    raise PowerCutError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images without classes."""
    for k in range(40):
        path = tmp_path / "photos" / ("" if k % 2 else "deep/er") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("augmentation", ["crop", "resized-crop"])
def test_a_stopped_run_ends_with_the_same_weights(augmentation: str, photos: Path, tmp_path: Path) -> None:
    """Stopped within an epoch, in which images come again."""
    settings = {**SHARE, "augmentation": augmentation, "max_train_samples": 70}
    build(**settings).fit(unlabeled_data=photos, output_dir=tmp_path / "whole")
    stop = AtStep(4, cut)
    with pytest.raises(PowerCutError):
        build(**settings).fit(unlabeled_data=photos, output_dir=tmp_path / "run", callbacks=[stop])
    build(**settings).fit(unlabeled_data=photos, output_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    (photos / "1.png").unlink()
    with pytest.raises(UserError, match=r"was written with data .*, this run has "):
        build(**settings).fit(unlabeled_data=photos, output_dir=tmp_path / "run", resume=True)


def test_a_run_records_its_unlabelled_data(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--image-size 32 --batch-size 64 --epochs 1 --max-train-samples 200 --max-eval-samples 20 --lr 0.01"
    main(f"train --models cifar_resnet8 cifar_resnet8 {options} --unlabeled photos --output-dir first --quiet".split())
    about = json.loads(Path("first/config.json").read_text())
    assert (about["train_data"], about["eval_data"], about["unlabeled_data"]) == (None, None, "photos")
    assert about["data"]["name"] == "bundled digits, and photos without labels"
    assert about["data"]["unlabeled_images"] == 5  # 40 of 1478 images, of 200
    card = next(Path("first/networks").glob("*/README.md")).read_text()
    assert "bundled digits, and photos without labels" in card
    main(["train", "--config", "first/config.json", "--output-dir", "again", "--quiet"])
    again = json.loads(Path("again/config.json").read_text())
    assert again["data"] == about["data"]
    found = OnlineAdversarialDistiller.from_checkpoint(max(Path("first/checkpoints").iterdir())).evaluate()
    last = json.loads(Path("first/metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    assert found["accuracy"] == [pytest.approx(last[f"eval/accuracy/{k}"]) for k in range(2)]
