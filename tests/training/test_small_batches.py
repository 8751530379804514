from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.method.microbatch import microbatch_slices
from feature_gan_kd.training.small_batches import microbatch_sizes


class Small(nn.Module):
    """Ends in a batch normalisation of maps of `side` x `side`."""

    def __init__(self, side: int, *, normalised: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.norm = nn.BatchNorm2d(4) if normalised else nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.pool(self.features(images))).mean((2, 3)))
        return logits


def images(count: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % 2)


def fit(model: nn.Module, data: Any, folder: Path | None = None, **settings: Any) -> int:
    options: dict[str, Any] = {"image_size": 8, "method": "logit", "batch_size": 4, "lr": 0.01, "epochs": 1, **settings}
    distiller = OnlineAdversarialDistiller([model, Small(2, normalised=False)], **options)
    distiller.fit(data, images(4), mean=(0,), std=(1,), output_dir=folder, progress=False)
    return 1


def test_a_part_of_one_image_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    for data in (images(10), DataLoader(images(10), batch_size=4)):
        with pytest.raises(
            UserError,
            match=r"^batch_size: a batch of an epoch has 2 images, which leaves one at a time, and a batch norm",
        ):
            fit(Small(1), data, tmp_path / "run", grad_accum_steps=2)
    assert not (tmp_path / "run").exists()


def test_a_part_of_one_image_is_no_problem_where_no_norm_sees_a_single_value() -> None:
    assert fit(Small(2), images(10), grad_accum_steps=2)
    assert fit(Small(1, normalised=False), images(10), grad_accum_steps=2)
    assert fit(Small(1), images(12), grad_accum_steps=2)


def test_a_discriminator_of_single_values_is_found() -> None:
    settings = {"method": "afd", "grad_accum_steps": 2, "feature_layers": "pool"}
    with pytest.raises(
        UserError, match=r"^batch_size: .* a batch normalisation in the connection .* cannot train on one"
    ):
        fit(Small(1, normalised=False), images(10), **settings)


def test_a_loader_of_single_images_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data: the DataLoader gives single images"):
        fit(Small(1), DataLoader(images(10), batch_size=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("count", "parts"), [(5, 2), (2, 4), (7, 3), (4, 1)])
def test_sizes_are_those_of_the_slices(count: int, parts: int) -> None:
    slices = microbatch_slices(count, parts, torch.device("cpu"))
    assert microbatch_sizes(count, parts, 1) == [[len(range(count)[one]) for one in slices]]


def test_processes_divide_each_batch_before_its_parts() -> None:
    assert microbatch_sizes(5, 1, 2) == [[2], [3]]
    assert microbatch_sizes(5, 2, 2) == [[1, 1], [2, 1]]
    assert microbatch_sizes(1, 1, 3) == [[0], [0], [1]]
