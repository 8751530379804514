"""Batch normalisation of shares of a batch against torch's own of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.distributed.sync_batchnorm import with_dummy_batch
from tests.helpers.norm_worker import ask, norms

Found = dict[str, Tensor]


def check(name: str, folder: Path) -> None:
    """Answers and gradients of the images one after another, those of parameters summed, buffers the same."""
    files = [load_file(path) for path in sorted(folder.iterdir())]
    assert len(files) > 1
    rounding = {"rtol": 0.02, "atol": 0.02} if name == "in bfloat16" else {"rtol": 1e-11, "atol": 1e-12}
    for key, expected in ask(name).items():
        shares = [file[f"{name}: {key}"] for file in files]
        how: dict[str, Callable[[list[Tensor]], Tensor]] = {
            "parameter": lambda each: torch.stack(each).sum(0),
            "buffer": lambda each: each[0],
        }
        found = how.get(key.split()[0], torch.cat)(shares)
        torch.testing.assert_close(found, expected, **rounding, msg=lambda text, key=key: f"{key}: {text}")
        if key.startswith("buffer"):
            assert all(torch.equal(share, shares[0]) for share in shares), key


@pytest.mark.parametrize("name", list(norms()))
def test_two_processes_normalise_as_one(by_two: Path, name: str) -> None:
    check(name, by_two / "norms")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(norms()))
def test_three_processes_normalise_as_one(by_three: Path, name: str) -> None:
    check(name, by_three / "norms")


def test_images_are_shown_as_they_are() -> None:
    images, labels = torch.randn(3, 3, 4, 4), torch.arange(3)
    norm = nn.BatchNorm2d(3)
    with with_dummy_batch(images, labels, [norm], synchronised=True) as shown:
        assert shown[0] is images
        assert shown[1] is labels
        assert "forward" not in norm.__dict__  # one process: torch's own


@pytest.mark.parametrize("labels", [torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5)])
def test_no_images_are_stood_in_for_without_a_trace(labels: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with with_dummy_batch(torch.zeros(0, 3, 2, 2), labels, [model], synchronised=False) as (images, made_up):
        loss = nn.functional.cross_entropy(model(images), made_up) * 0
        loss.backward()
    assert loss.item() == 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_one_image_where_a_batch_norm_needs_two() -> None:
    norm = nn.BatchNorm1d(3)
    with (
        pytest.raises(UserError, match=r"^batch_size: a process has one image of this batch .*\(Expected more than 1"),
        with_dummy_batch(torch.ones(1, 3, 2, 2), torch.zeros(1), [norm], synchronised=False) as (images, _),
    ):
        norm(images.mean((2, 3)))
