from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from feature_gan_kd import DistillConfig, Edge, UserError
from feature_gan_kd.method.build import Wiring, build_step, wire
from feature_gan_kd.models.build import Network

BOTH_WAYS = (Edge(0, 1), Edge(1, 0))


class Tiny(nn.Module):
    """Two blocks, each a map to tap, and a head."""

    def __init__(self, width: int, stride: int = 1, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, width, 3, stride, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(images).relu()).mean((2, 3)))
        return logits


def wired(
    modules: list[nn.Module],
    layers: Any = "second",
    edges: tuple[Edge, ...] = BOTH_WAYS,
    frozen: Collection[int] = (),
    size: int = 8,
    **settings: Any,
) -> Wiring:
    networks = [Network(module, type(module).__name__, type(module).__name__, image_size=size) for module in modules]
    return wire(networks, edges, frozen, layers, DistillConfig(**settings), in_chans=3)


def names_of(parameters: Collection[nn.Parameter], modules: list[nn.Module]) -> set[str]:
    """`network.parameter` of each; fails for one that is none of the networks'."""
    known = {parameter: f"{k}.{name}" for k, module in enumerate(modules) for name, parameter in named(module)}
    return {known[parameter] for parameter in parameters}


def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters())


def context() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def test_shapes_links_and_extractors() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6, stride=2)]
    wiring = wired(modules)
    assert [network.taps[0].shape for network in wiring.tapped] == [(4, 8, 8), (6, 4, 4)]
    assert wiring.num_classes == 5
    assert [link.edge for link in wiring.links] == list(BOTH_WAYS)
    assert all(link.discriminator is not None for link in wiring.links)
    assert [link.learner_shape[0] for link in wiring.links] == [6, 4]
    for k, extractor in enumerate(wiring.extractors):
        extracting = {f"{k}.{layer}.{kind}" for layer in ("first", "second") for kind in ("weight", "bias")}
        assert names_of(extractor, modules) == extracting


def test_an_early_tap_has_a_small_extractor() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6)]
    wiring = wired(modules, {0: "first", 1: "second"})
    assert names_of(wiring.extractors[0], modules) == {"0.first.weight", "0.first.bias"}
    assert len(wiring.extractors[1]) == 4


def test_several_taps_have_a_link_each() -> None:
    wiring = wired([Tiny(4), Tiny(6)], ["first", "second"])
    assert [(link.edge, link.tap) for link in wiring.links] == [(edge, tap) for edge in BOTH_WAYS for tap in (0, 1)]


@pytest.mark.parametrize(
    ("method", "taps", "links", "judges"),
    [
        ("afd", 1, 2, 2),
        ("feature", 1, 2, 2),
        ("l1", 1, 2, 0),
        ("l2-only", 1, 2, 0),
        ("zero-gradient", 1, 0, 0),
        ("logit", 0, 0, 0),
        ("dml", 0, 0, 0),
        ("vanilla", 0, 0, 0),
    ],
)
def test_only_what_the_method_needs_is_built(method: str, taps: int, links: int, judges: int) -> None:
    wiring = wired([Tiny(4), Tiny(6)], method=method)
    assert [len(network.taps) for network in wiring.tapped] == [taps, taps]
    assert len(wiring.links) == links
    assert sum(link.discriminator is not None for link in wiring.links) == judges
    updates = build_step(wiring, DistillConfig(method=method), context).updates
    assert set(updates) == {"logit"} | ({"feature"} if taps else set()) | ({"discriminator"} if judges else set())


def test_a_user_module_is_not_edited() -> None:
    modules = [Tiny(4), Tiny(6)]
    modules[0].train()
    modules[1].eval()
    weights = {key: value.clone() for key, value in modules[0].state_dict().items()}
    wired(list(modules))
    assert [module.training for module in modules] == [True, False]
    assert all(not module._forward_hooks for network in modules for module in network.modules())
    assert all(torch.equal(weights[key], value) for key, value in modules[0].state_dict().items())


def test_links_follow_the_networks_type() -> None:
    wiring = wired([Tiny(4).double(), Tiny(6).double()])
    assert all(parameter.dtype is torch.float64 for link in wiring.links for parameter in link.parameters())


def test_links_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> list[Tensor]:
        return [p.detach() for link in wired([Tiny(4), Tiny(6)], seed=seed).links for p in link.parameters()]

    torch.manual_seed(0)
    first = weights(3)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(3), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, weights(4), strict=True))


def test_each_optimiser_has_its_own_parameters() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6)]
    modules[0].first.bias.requires_grad_(False)
    wiring = wired(modules)
    step = build_step(wiring, DistillConfig(), context)
    every = {f"{k}.{name}" for k, module in enumerate(modules) for name, _ in named(module)} - {"0.first.bias"}
    assert names_of(step.logit_update.parameters, modules) == every
    assert step.feature_update is not None
    transfers = {id(p) for link in wiring.links for p in link.transfer.parameters()}
    assert transfers
    own = [p for p in step.feature_update.parameters if id(p) not in transfers]
    assert names_of(own, modules) == {name for name in every if "head" not in name}
    assert {id(p) for p in step.feature_update.parameters} - {id(p) for p in own} == transfers
    assert step.discriminator_update is not None
    judges = {id(p) for link in wiring.links if link.discriminator for p in link.discriminator.parameters()}
    assert {id(p) for p in step.discriminator_update.parameters} == judges
    for update in step.updates.values():
        held = [id(p) for group in update.optimizer.param_groups for p in group["params"]]
        assert held == [id(p) for p in update.parameters]
        assert len(set(held)) == len(held)


def test_a_frozen_network_is_in_no_optimiser_and_owns_nothing() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6), Tiny(8)]
    edges = (Edge(0, 1), Edge(1, 2), Edge(2, 1))
    step = build_step(wired(modules, edges=edges, frozen=(0,)), DistillConfig(clip_grad=1), context)
    frozen = {id(p) for p in modules[0].parameters()}
    for update in step.updates.values():
        assert not frozen & {id(p) for p in update.parameters}
    owned: dict[str, set[int]] = {}
    for parameter, owner in zip(step.logit_update.parameters, step.logit_update.owners, strict=True):
        owned.setdefault(owner, set()).add(id(parameter))
    assert owned == {f"network {k} (Tiny)": {id(p) for p in modules[k].parameters()} for k in (1, 2)}


def test_a_learner_without_a_trainable_parameter() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6).requires_grad_(False)]
    with pytest.raises(UserError, match=r"^network 1 \(Tiny\): it has no parameter to train: add 1 to frozen$"):
        build_step(wired(modules), DistillConfig(), context)


@pytest.mark.parametrize(
    ("modules", "settings", "message"),
    [
        ([Tiny(4), Tiny(4, classes=6)], {}, r"^models: the networks have \[5, 6\] classes"),
        (
            [Tiny(4), Tiny(4)],
            {"layers": "secnd"},
            r"^network 0 \(Tiny\): it has no layer 'secnd', the nearest are second$",
        ),
        (
            [Tiny(4), Tiny(4)],
            {"layers": {1: "third"}},
            r"^network 1 \(Tiny\): it has no layer 'third', .*first, second",
        ),
        (
            [Tiny(4), Tiny(4).double()],
            {},
            r"^network 1 \(Tiny\): it fails on images of 3x8x8 \(.+\): see to image_size",
        ),
        ([nn.Flatten(), nn.Flatten()], {}, r"^models: the networks have no parameters$"),
        ([Tiny(4), nn.Conv2d(3, 4, 3)], {"method": "logit"}, r"^network 1 \(Conv2d\): its output is \(2, 4, 6, 6\)"),
    ],
)
def test_what_cannot_be_wired(modules: list[nn.Module], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        wired(modules, **settings)
    assert "\n" not in str(error.value)


def test_a_network_of_a_fixed_size_names_the_remedy() -> None:
    vit = timm.create_model("test_vit", num_classes=5, dynamic_img_size=False)
    with pytest.raises(
        UserError, match=r"^network 1 \(.*\): it fails on images of 3x8x8 \(.*160.*\): see to image_size"
    ):
        wired([Tiny(4), vit], {0: "second"})
