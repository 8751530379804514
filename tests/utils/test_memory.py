"""Memory: kept between two updates; where it runs out, one line with the batch that failed and what to try."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.cli import main
from feature_gan_kd.utils.memory import keep_freed_memory


class Hungry(nn.Module):
    """Asks for more memory than there is, as a model that is too large does."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.where = where

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 5)."""
        if self.training and torch.is_grad_enabled() and self.where == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if self.training and torch.is_grad_enabled():
            torch.empty(2**55)
        logits: Tensor = self.head(self.features(images).mean((2, 3)))
        return logits


@pytest.mark.parametrize(("where", "said"), [("cuda", "CUDA out of memory"), ("cpu", "can't allocate memory")])
def test_the_line_names_the_batch_and_what_to_try(where: str, said: str) -> None:
    distiller = OnlineAdversarialDistiller([Hungry(where), Hungry(where)], image_size=8, grad_accum_steps=12)
    before = [parameter.detach().clone() for model in distiller.models for parameter in model.parameters()]
    with pytest.raises(UserError, match=said) as error:
        distiller.training_step(torch.randn(12, 3, 8, 8), torch.arange(12) % 5)
    assert str(error.value).startswith("memory: a batch of 12 images of 3x8x8 in 12 parts does not fit on cpu (")
    remedies = "try a smaller image_size, mixed_precision=auto or grad_checkpointing"
    assert str(error.value).endswith(remedies)
    assert "\n" not in str(error.value)
    after = [parameter for model in distiller.models for parameter in model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_other_errors_stay_what_they_are() -> None:
    class Broken(Hungry):
        def forward(self, images: Tensor) -> Tensor:
            """Fails in training."""
            if self.training and torch.is_grad_enabled():
                raise RuntimeError("a mistake of one's own")
            return super().forward(images)

    distiller = OnlineAdversarialDistiller([Broken("cpu"), Hungry("cpu")], image_size=8)
    with pytest.raises(RuntimeError, match="a mistake of one's own") as error:
        distiller.training_step(torch.randn(12, 3, 8, 8), torch.arange(12) % 5)
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize("options", ["--batch-size 1", "--batch-size 8 --grad-accum-steps 8"])
def test_batch_normalisation_of_one_image_is_refused_before_training(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"train --models test_resnet test_resnet --image-size 32 {options} --output-dir {tmp_path / 'run'}"
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    err = capsys.readouterr().err
    assert "error: --batch-size: " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


FAULTS = """
import resource, sys, torch
from feature_gan_kd.utils.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(4):
    torch.ones(16 << 20)
found = []
for _ in range(5):  # the system may take a page away at any moment
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    def run(what: str) -> list[str]:
        command = [sys.executable, "-W", "ignore", "-c", FAULTS, what]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    kept, faults = run("keep")
    assert kept == "True"
    assert int(faults) < 100
    assert int(run("leave")[1]) > 1000  # without it the 64 MiB are fetched again: it is this that helps


def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False


def test_train_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("feature_gan_kd.utils.memory.keep_freed_memory", lambda: asked.append(True))
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--models", "test_resnet", "--output-dir", str(tmp_path / "run")])
    assert asked
