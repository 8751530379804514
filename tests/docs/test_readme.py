"""The README's Python blocks run as they stand, on a hub cache that the test fills."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from feature_gan_kd.cli import main
from tests.helpers.pages import blocks, commands
from tests.helpers.stand_ins import cifar100

PAGE = Path(__file__).parents[2] / "README.md"
README = PAGE.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# The frozen teacher as it was published, and as the student's run publishes it again.
TEACHER = ("distilled/1-resnet34", "student/0-resnet34")


def run(code: str, folder: Path, **environment: str) -> str:
    """The output of a fresh interpreter that runs `code` in `folder`, without internet access."""
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the hub's names are found: weights in a cache, images under the data set's own name."""
    for name in ("resnet18.a1_in1k", "resnet34.a1_in1k"):
        repository = tmp_path / "hub" / f"models--timm--{name}"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        save_file(timm.create_model(name).state_dict(), snapshot / "model.safetensors")
    cifar100(tmp_path)
    return tmp_path


def short(code: str) -> str:
    """The code with a training of one epoch."""
    changed = code.replace("epochs=300", "epochs=1, batch_size=3")
    assert changed != code
    return changed


@pytest.mark.slow
def test_three_lines_then_plain_timm_then_a_frozen_teacher(folder: Path) -> None:
    three, load, frozen = BLOCKS[:3]
    assert len(three.strip().splitlines()) == 5  # an import, an empty line, and the three
    output = run(short(three), folder, HF_HUB_CACHE=str(folder / "hub"))
    assert "'fine_label'" in output
    assert "coarse_label" in output
    check = "import sys; assert 'feature_gan_kd' not in sys.modules; print(model.num_classes, model.training)"
    assert run(load + check, folder).startswith("100")
    names = sorted(path.name for path in (folder / "distilled").iterdir())
    assert names == ["0-resnet18", "1-resnet34"]
    files = {path.name for path in (folder / "distilled" / "1-resnet34").iterdir()}
    assert files == {"model.safetensors", "config.json", "README.md"}
    run(short(frozen), folder)
    teacher, student = (load_file(folder / path / "model.safetensors") for path in TEACHER)
    assert teacher.keys() == student.keys()
    assert all(torch.equal(teacher[key], student[key]) for key in teacher)
    assert (folder / "student" / "1-resnet18" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other; the training is shortened."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    Image.new("RGB", (40, 30), "red").save(folder / "photo.png")
    (lines,) = [commands(block) for block in blocks(PAGE) if block.code.startswith("feature-gan-kd train --models")]
    assert len(lines) >= 4
    for line in lines:
        main(shlex.split(line.replace("--epochs 15", "--epochs 1"))[1:])
    assert "cifar_resnet20" in capsys.readouterr().out
    assert (folder / "distilled" / "1-cifar_resnet32" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_training_loop(tmp_path: Path) -> None:
    output = run(BLOCKS[3], tmp_path)
    assert "layer4" in output
    assert "adversarial/0" in output


def test_there_is_no_other_block() -> None:
    assert len(BLOCKS) == 4
