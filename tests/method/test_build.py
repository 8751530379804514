from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from feature_gan_kd import DistillConfig, Edge, UserError
from feature_gan_kd.method.build import MethodModules, build_modules
from feature_gan_kd.method.build_step import build_step
from feature_gan_kd.models.peer import PeerModel

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
) -> MethodModules:
    models = [PeerModel(module, type(module).__name__, type(module).__name__, image_size=size) for module in modules]
    return build_modules(models, edges, frozen, layers, DistillConfig(**settings), in_chans=3)


def names_of(parameters: Collection[nn.Parameter], modules: list[nn.Module]) -> set[str]:
    """`model.parameter` of each; fails for one that is none of the models'."""
    known = {parameter: f"{k}.{name}" for k, module in enumerate(modules) for name, parameter in named(module)}
    return {known[parameter] for parameter in parameters}


def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters())


def context() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def test_shapes_links_and_extractors() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6, stride=2)]
    built = wired(modules)
    assert [model.taps[0].shape for model in built.tapped] == [(4, 8, 8), (6, 4, 4)]
    assert built.num_classes == 5
    assert [connection.edge for connection in built.connections] == list(BOTH_WAYS)
    assert all(connection.discriminator is not None for connection in built.connections)
    assert [connection.learner_shape[0] for connection in built.connections] == [6, 4]
    for k, extractor in enumerate(built.extractors):
        extracting = {f"{k}.{layer}.{kind}" for layer in ("first", "second") for kind in ("weight", "bias")}
        assert names_of(extractor, modules) == extracting


def test_discriminators_that_see_classes_need_the_same_of_both() -> None:
    built = wired([Tiny(4), Tiny(6)], discriminator_classes=True)
    kinds = [type(connection.discriminator).__name__ for connection in built.connections]
    assert kinds == ["ClassDiscriminator"] * 2
    with pytest.raises(UserError, match=r"^discriminator_classes: model 0 .* have no classes and 5 classes, expected"):
        wired([Tiny(4, classes=7), Tiny(6)], edges=(Edge(0, 1),), frozen=(0,), discriminator_classes=True)
    # Where there are no discriminators, or a frozen model knows the same, nothing is asked.
    wired([Tiny(4, classes=7), Tiny(6)], edges=(Edge(0, 1),), frozen=(0,), discriminator_classes=True, method="l2")
    wired([Tiny(4), Tiny(6)], edges=(Edge(0, 1),), frozen=(0,), discriminator_classes=True)


def test_discriminators_of_ones_own_do_not_see_classes() -> None:
    models = [PeerModel(Tiny(4), "Tiny", "Tiny", image_size=8) for _ in range(2)]
    settings = DistillConfig(discriminator_classes=True, adversarial_loss="hinge")
    with pytest.raises(UserError, match=r"^discriminator_classes: a discriminator of your own sees maps alone"):
        build_modules(models, BOTH_WAYS, (), "second", settings, in_chans=3, discriminator=lambda shape: nn.Flatten())


def test_an_early_tap_has_a_small_extractor() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6)]
    built = wired(modules, {0: "first", 1: "second"})
    assert names_of(built.extractors[0], modules) == {"0.first.weight", "0.first.bias"}
    assert len(built.extractors[1]) == 4


def test_several_taps_have_a_link_each() -> None:
    modules = wired([Tiny(4), Tiny(6)], ["first", "second"])
    assert [(connection.edge, connection.tap) for connection in modules.connections] == [
        (edge, tap) for edge in BOTH_WAYS for tap in (0, 1)
    ]


@pytest.mark.parametrize(
    ("method", "taps", "connections", "judges"),
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
def test_only_what_the_method_needs_is_built(method: str, taps: int, connections: int, judges: int) -> None:
    modules = wired([Tiny(4), Tiny(6)], method=method)
    assert [len(model.taps) for model in modules.tapped] == [taps, taps]
    assert len(modules.connections) == connections
    assert sum(connection.discriminator is not None for connection in modules.connections) == judges
    updates = build_step(modules, DistillConfig(method=method), context).optimizer_groups
    assert set(updates) == {"logit"} | ({"feature"} if taps else set()) | ({"discriminator"} if judges else set())


def test_a_user_module_is_not_edited() -> None:
    modules = [Tiny(4), Tiny(6)]
    modules[0].train()
    modules[1].eval()
    weights = {key: value.clone() for key, value in modules[0].state_dict().items()}
    wired(list(modules))
    assert [module.training for module in modules] == [True, False]
    assert all(not module._forward_hooks for model in modules for module in model.modules())
    assert all(torch.equal(weights[key], value) for key, value in modules[0].state_dict().items())


def test_links_follow_the_models_type() -> None:
    modules = wired([Tiny(4).double(), Tiny(6).double()])
    assert all(
        parameter.dtype is torch.float64 for connection in modules.connections for parameter in connection.parameters()
    )


def test_links_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> list[Tensor]:
        return [
            p.detach()
            for connection in wired([Tiny(4), Tiny(6)], seed=seed).connections
            for p in connection.parameters()
        ]

    torch.manual_seed(0)
    first = weights(3)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(3), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, weights(4), strict=True))


def test_each_optimiser_has_its_own_parameters() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6)]
    modules[0].first.bias.requires_grad_(False)
    built = wired(modules)
    step = build_step(built, DistillConfig(), context)
    every = {f"{k}.{name}" for k, module in enumerate(modules) for name, _ in named(module)} - {"0.first.bias"}
    assert names_of(step.logit_groups[0].parameters, modules) == every
    assert step.feature_group is not None
    transfers = {id(p) for connection in built.connections for p in connection.transfer.parameters()}
    assert transfers
    own = [p for p in step.feature_group.parameters if id(p) not in transfers]
    assert names_of(own, modules) == {name for name in every if "head" not in name}
    assert {id(p) for p in step.feature_group.parameters} - {id(p) for p in own} == transfers
    assert step.discriminator_group is not None
    judges = {
        id(p)
        for connection in built.connections
        if connection.discriminator
        for p in connection.discriminator.parameters()
    }
    assert {id(p) for p in step.discriminator_group.parameters} == judges
    for update in step.optimizer_groups.values():
        held = [id(p) for group in update.optimizer.param_groups for p in group["params"]]
        assert held == [id(p) for p in update.parameters]
        assert len(set(held)) == len(held)


def test_a_frozen_model_is_in_no_optimiser_and_owns_nothing() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6), Tiny(8)]
    edges = (Edge(0, 1), Edge(1, 2), Edge(2, 1))
    step = build_step(wired(modules, edges=edges, frozen=(0,)), DistillConfig(clip_grad=1), context)
    frozen = {id(p) for p in modules[0].parameters()}
    for update in step.optimizer_groups.values():
        assert not frozen & {id(p) for p in update.parameters}
    owned: dict[str, set[int]] = {}
    for parameter, owner in zip(step.logit_groups[0].parameters, step.logit_groups[0].owners, strict=True):
        owned.setdefault(owner, set()).add(id(parameter))
    assert owned == {f"model {k} (Tiny)": {id(p) for p in modules[k].parameters()} for k in (1, 2)}


def test_a_learner_without_a_trainable_parameter() -> None:
    modules: list[nn.Module] = [Tiny(4), Tiny(6).requires_grad_(False)]
    with pytest.raises(UserError, match=r"^model 1 \(Tiny\): it has no parameter to train: add 1 to frozen$"):
        build_step(wired(modules), DistillConfig(), context)


@pytest.mark.parametrize(
    ("modules", "settings", "message"),
    [
        ([Tiny(4), Tiny(4, classes=6)], {}, r"^models: the models have \[5, 6\] classes"),
        (
            [Tiny(4), Tiny(4)],
            {"layers": "secnd"},
            r"^model 0 \(Tiny\): it has no layer 'secnd', the nearest are second$",
        ),
        (
            [Tiny(4), Tiny(4)],
            {"layers": {1: "third"}},
            r"^model 1 \(Tiny\): it has no layer 'third', .*first, second",
        ),
        (
            [Tiny(4), Tiny(4).double()],
            {},
            r"^model 1 \(Tiny\): it fails on images of 3x8x8 \(.+\): check image_size",
        ),
        ([nn.Flatten(), nn.Flatten()], {}, r"^models: the models have no parameters: give"),
        ([Tiny(4), nn.Conv2d(3, 4, 3)], {"method": "logit"}, r"^model 1 \(Conv2d\): its output is \(2, 4, 6, 6\)"),
    ],
)
def test_what_cannot_be_wired(modules: list[nn.Module], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        wired(modules, **settings)
    assert "\n" not in str(error.value)


def test_a_model_of_a_fixed_size_names_the_remedy() -> None:
    vit = timm.create_model("test_vit", num_classes=5, dynamic_img_size=False)
    with pytest.raises(UserError, match=r"^model 1 \(.*\): it fails on images of 3x8x8 \(.*160.*\): check image_size"):
        wired([Tiny(4), vit], {0: "second"})
