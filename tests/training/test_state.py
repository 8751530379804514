"""What a checkpoint holds, against networks in training."""

from __future__ import annotations

import copy

import pytest
import torch

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.training.state import capture, describe_network, rebuild_networks, restore
from tests.helpers.small_networks import GroupNormNetwork


def distiller(*widths: int) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller([GroupNormNetwork(width) for width in widths], image_size=8)


def step(one: OnlineAdversarialDistiller) -> None:
    generator = torch.Generator().manual_seed(0)
    one.training_step(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4))


def test_what_was_restored_goes_on_as_what_was_captured() -> None:
    first, second = distiller(4, 6), distiller(4, 6)
    step(first)
    state = copy.deepcopy(capture(first.models, first.links, first.step, {"data": "digits"}))
    assert restore(state, second.models, second.links, second.step) == {"data": "digits"}
    assert second.step.number == 1
    for one in (first, second):
        step(one)
    again = [capture(one.models, one.links, one.step, None) for one in (first, second)]
    assert again[0].meta == again[1].meta
    assert again[0].tensors.keys() == again[1].tensors.keys()
    for component, tensors in again[0].tensors.items():
        assert tensors, component
        for name, value in tensors.items():
            torch.testing.assert_close(again[1].tensors[component][name], value, rtol=0, atol=0, msg=name)


def test_the_state_of_other_networks_is_one_line() -> None:
    first, second = distiller(4, 6), distiller(6, 4)
    state = capture(first.models, first.links, first.step, None)
    with pytest.raises(UserError, match="other networks or discriminators"):
        restore(state, second.models, second.links, second.step)


def test_a_description_tells_shapes_apart() -> None:
    digests = [describe_network(network)["tensors"] for network in distiller(4, 4, 6).networks]
    assert digests[0] == digests[1] != digests[2]


def test_all_modules_or_none_are_given() -> None:
    signature = distiller(4, 6).description()
    fresh = [GroupNormNetwork(4), GroupNormNetwork(6)]
    assert [network.module for network in rebuild_networks(signature, fresh)] == fresh
    with pytest.raises(UserError, match="1 given, the checkpoint holds 2: give all, in order"):
        rebuild_networks(signature, fresh[:1])
