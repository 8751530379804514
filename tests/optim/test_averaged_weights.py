"""Running means of weights against a reference of their own, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.optim.averaged_weights import AveragedWeights
from tests.helpers.small_models import Convolutional


def tapped(module: nn.Module) -> TappedModel:
    return TappedModel(module, [], "model 0")


def moved(module: nn.Module, generator: torch.Generator) -> None:
    """Stands for an update: new weights, new statistics, one more batch."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
            else:
                value += 1


def test_the_mean_is_that_of_the_formula() -> None:
    """After update n it keeps min(decay, 1 - n^(-2/3)) of itself; counters are copied."""
    module = Convolutional(3).double()
    average = AveragedWeights(tapped(module), 0.45)
    generator = torch.Generator().manual_seed(0)
    expected: dict[str, Tensor] = {}
    for n in range(1, 6):
        moved(module, generator)
        average.update(torch.zeros(()))
        keep = min(0.45, 1 - n ** (-2 / 3))
        for name, value in copy.deepcopy(module.state_dict()).items():
            is_float = value.is_floating_point()
            expected[name] = keep * expected[name] + (1 - keep) * value if is_float and n > 1 else value
    torch.testing.assert_close(dict(average.module.state_dict()), expected, rtol=1e-12, atol=1e-12)
    assert min(0.45, 1 - 2 ** (-2 / 3)) < 0.45 < 1 - 5 ** (-2 / 3)  # both branches were taken


def test_a_skipped_update_changes_nothing() -> None:
    module = Convolutional(3)
    average = AveragedWeights(tapped(module), 0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        moved(module, generator)
        average.update(torch.zeros(()))
    before = copy.deepcopy(average.module.state_dict())
    average.update(torch.ones(()))
    torch.testing.assert_close(average.module.state_dict(), before, rtol=0, atol=0)


def test_shared_weights_move_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    average = AveragedWeights(tapped(module), 0.25)
    average.update(torch.zeros(()))
    first = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight += 1
    average.update(torch.zeros(()))
    torch.testing.assert_close(average.module[0].weight, first + 0.75)
    assert average.module[1].weight is average.module[0].weight


def test_it_begins_with_what_the_user_put_into_the_model() -> None:
    module = Convolutional(3)
    average = AveragedWeights(tapped(module), 0.9)
    moved(module, torch.Generator().manual_seed(0))
    average.begin()
    torch.testing.assert_close(average.module.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert not average.has_begun


def test_the_copy_neither_learns_nor_is_written_twice() -> None:
    average = AveragedWeights(tapped(Convolutional(3, drop=0.5)), 0.9)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not any(module.training for module in average.tapped.modules())
    assert {name.partition(".")[0] for name in average.state_dict()} == {"n_averaged", "module"}


def test_half_precision_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model_ema: model 0 has weights of torch.bfloat16 \(block1.0.weight\)"):
        AveragedWeights(tapped(Convolutional(3).bfloat16()), 0.9)
