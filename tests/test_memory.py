"""Where memory runs out: one line with the batch that failed and what to try."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.cli import main


class Hungry(nn.Module):
    """Asks for more memory than there is, as a network that is too large does."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.where = where

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 5)."""
        if len(images) > 4 and self.where == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if len(images) > 4:
            torch.empty(2**55)
        logits: Tensor = self.head(self.features(images).mean((2, 3)))
        return logits


@pytest.mark.parametrize(("where", "said"), [("cuda", "CUDA out of memory"), ("cpu", "can't allocate memory")])
def test_the_line_names_the_batch_and_what_to_try(where: str, said: str) -> None:
    distiller = OnlineAdversarialDistiller([Hungry(where), Hungry(where)], image_size=8, accumulation_steps=2)
    before = [parameter.detach().clone() for model in distiller.models for parameter in model.parameters()]
    with pytest.raises(UserError, match=said) as error:
        distiller.training_step(torch.randn(12, 3, 8, 8), torch.arange(12) % 5)
    assert str(error.value).startswith("memory: a batch of 12 images of 3x8x8 in 2 parts does not fit on cpu (")
    remedies = "try accumulation_steps=4, a smaller batch_size or mixed_precision=bf16"
    assert str(error.value).endswith(remedies)
    assert "\n" not in str(error.value)
    after = [parameter for model in distiller.models for parameter in model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    # What it says to try does fit.
    smaller = OnlineAdversarialDistiller([Hungry(where), Hungry(where)], image_size=8, accumulation_steps=4)
    assert smaller.training_step(torch.randn(12, 3, 8, 8), torch.arange(12) % 5)["skipped"] == 0


def test_other_errors_stay_what_they_are() -> None:
    class Broken(Hungry):
        def forward(self, images: Tensor) -> Tensor:
            """Fails in training."""
            if len(images) > 4:
                raise RuntimeError("a mistake of one's own")
            return super().forward(images)

    distiller = OnlineAdversarialDistiller([Broken("cpu"), Hungry("cpu")], image_size=8)
    with pytest.raises(RuntimeError, match="a mistake of one's own") as error:
        distiller.training_step(torch.randn(12, 3, 8, 8), torch.arange(12) % 5)
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize("options", ["--batch-size 1", "--batch-size 8 --accumulation-steps 8"])
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
