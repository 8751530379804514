"""What a checkpoint holds, against models in training."""

from __future__ import annotations

import copy

import pytest
import torch

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.training.checkpoint_contents import collect_state, describe_model, rebuild_models, restore_state
from tests.helpers.small_models import GroupNormModel


def distiller(*widths: int) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller([GroupNormModel(width) for width in widths], image_size=8)


def step(one: OnlineAdversarialDistiller) -> None:
    generator = torch.Generator().manual_seed(0)
    one.training_step(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4))


def test_what_was_restored_goes_on_as_what_was_captured() -> None:
    first, second = distiller(4, 6), distiller(4, 6)
    step(first)
    state = copy.deepcopy(collect_state(first.models, first.group.connections, {}, first.step, {"data": "digits"}))
    assert restore_state(state, second.models, second.group.connections, {}, second.step) == {"data": "digits"}
    assert second.step.number == 1
    for one in (first, second):
        step(one)
    again = [collect_state(one.models, one.group.connections, {}, one.step, None) for one in (first, second)]
    assert again[0].meta == again[1].meta
    assert again[0].tensors.keys() == again[1].tensors.keys()
    for component, tensors in again[0].tensors.items():
        assert tensors, component
        for name, value in tensors.items():
            torch.testing.assert_close(again[1].tensors[component][name], value, rtol=0, atol=0, msg=name)


def test_the_state_of_other_models_is_one_line() -> None:
    first, second = distiller(4, 6), distiller(6, 4)
    state = collect_state(first.models, first.group.connections, {}, first.step, None)
    with pytest.raises(UserError, match="other models or discriminators"):
        restore_state(state, second.models, second.group.connections, {}, second.step)


def test_a_description_tells_shapes_apart() -> None:
    digests = [describe_model(model)["tensors"] for model in distiller(4, 4, 6).group.peers]
    assert digests[0] == digests[1] != digests[2]


def test_all_modules_or_none_are_given() -> None:
    signature = distiller(4, 6).group.description()
    fresh = [GroupNormModel(4), GroupNormModel(6)]
    assert [model.module for model in rebuild_models(signature, fresh)] == fresh
    with pytest.raises(UserError, match="1 given, the checkpoint holds 2: give all, in order"):
        rebuild_models(signature, fresh[:1])
