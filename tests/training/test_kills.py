"""`kill -9` at random moments of one training, each followed by `--resume`: it ends as the undisturbed one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feature_gan_kd.cli import main
from tests.helpers.runs import assert_same_run, steps_of

# So short a run with random weights leaves its discriminators undecided, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:discriminator .* teaches nothing:UserWarning")

ROOT = Path(__file__).parents[2]
OPTIONS = ("--models", "test_resnet", "test_vit", "--image-size", "16", "--max-train-samples", "100")
OPTIONS += ("--max-eval-samples", "50", "--batch-size", "32", "--checkpoint-every-steps", "1", "--log-every-steps", "1")
OPTIONS += ("--mixup", "0.4", "--cutmix", "1", "--lr", "0.01")


def start(folder: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """`train --resume`, as soon as it trains."""
    command = [sys.executable, "-m", "feature_gan_kd", "train", *OPTIONS, *options, "--output-dir", str(folder)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--resume"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    while not log.read_bytes():  # the first lines are printed when the training begins
        assert process.poll() is None
        time.sleep(0.002)
    return process


def half_written(folder: Path) -> bool:
    return any(folder.glob("*/.*.writing"))


def times_of_checkpoints(folder: Path) -> list[float]:
    """When a run's checkpoints were written."""
    return [path.stat().st_mtime for path in (folder / "checkpoints").iterdir()]


@pytest.mark.parametrize(
    ("kills", "epochs"), [(1, 3), pytest.param(20, 24, marks=pytest.mark.slow, id="20 kills")], ids=str
)
def test_killed_runs_end_as_the_undisturbed_one(kills: int, epochs: int, tmp_path: Path) -> None:
    """Moments are chosen by updates done, not by time, so that a busy machine changes nothing.

    Every second kill waits for a write, so that some cut one in two.
    """
    seed = random.randrange(2**32)
    print(f"seed of the moments: {seed}")
    moments = random.Random(seed)
    log, undisturbed, folder = tmp_path / "log", tmp_path / "undisturbed", tmp_path / "run"
    main(["train", *OPTIONS, "--epochs", str(epochs), "--output-dir", str(undisturbed)])
    seconds = max(times_of_checkpoints(undisturbed)) - (undisturbed / "config.json").stat().st_mtime
    total = max(steps_of(undisturbed))
    reached, killed, cut = [0], 0, 0
    for kill in range(kills):
        process = start(folder, log, "--epochs", str(epochs))
        last = max(reached[-1], total * (kill + 1) // (kills + 1))
        target = moments.randint(reached[-1], last)
        while process.poll() is None and max(steps_of(folder), default=0) < target:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, seconds / total))  # anywhere in an update
        while kill % 2 == 0 and process.poll() is None and not half_written(folder):
            pass
        process.kill()
        killed += process.wait() == -9  # else it was over before, which only a machine that hardly runs us sees
        cut += half_written(folder)
        reached.append(max(steps_of(folder), default=0))
    main(["train", *OPTIONS, "--epochs", str(epochs), "--output-dir", str(folder), "--resume"])
    print(f"killed at steps {reached[1:]} of {total}, {cut} times inside a write; undisturbed {seconds:.1f} s")
    assert reached == sorted(reached)
    assert killed > kills // 2
    assert cut > 0 or kills == 1  # on a busy machine a write may end before its kill
    assert steps_of(folder) == steps_of(undisturbed)
    assert_same_run(folder, undisturbed)
