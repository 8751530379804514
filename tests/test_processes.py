"""Two gloo processes against one: every network, transfer and discriminator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.worker import build, tensors_of, train


def launch(processes: int, *command: str, timeout: int = 200) -> None:
    """Runs a module under `accelerate launch` on gloo."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), "--multi_gpu"),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *command,
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    launch(2, "-m", "tests.worker", str(tmp_path), "1")
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    alone = build()
    before = tensors_of(alone)
    expected = train(alone)
    assert len(expected) == 8 * 3 + 5 * 3 + 2 * 3  # networks, discriminators, two transfers
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-12, msg=name)
        assert not torch.equal(before[name], value), name


@pytest.mark.slow
def test_three_processes_with_accumulation_agree_with_each_other(tmp_path: Path) -> None:
    launch(3, "-m", "tests.worker", str(tmp_path), "2")
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(3)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert torch.equal(value, states[2][name]), name


def test_launched_training_with_batch_normalisation_is_equal_on_both(tmp_path: Path) -> None:
    """`train` under `accelerate launch`: one run folder, written once, that one process can go on from."""
    options = ["--models", "test_resnet", "test_vit", "--image-size", "32", "--max-train-samples", "150"]
    options += ["--epochs", "1", "--batch-size", "50", "--output-dir", str(tmp_path / "run")]
    launch(2, "-m", "feature_gan_kd", "train", *options)
    from feature_gan_kd.cli import main

    main(["train", *options, "--resume"])
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-3"]
