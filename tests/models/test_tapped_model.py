"""The tap: the right map out of the same forward pass, and the user's module as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import feature_gan_kd.models  # noqa: F401  registers the CIFAR models
from feature_gan_kd import OnlineAdversarialDistiller
from feature_gan_kd.models.dataflow import upstream_parameters
from feature_gan_kd.models.find_taps import dry_run, find_taps, layers_of
from feature_gan_kd.models.outputs import logits_of, tensors_of
from feature_gan_kd.models.tapped_model import Layer, Layout, Tap, TapKind, TappedModel
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A model, and what its last map must be found to be."""

    build: Callable[[], nn.Module]
    layer: str
    layout: Layout
    shape: tuple[int, int, int]
    behind: tuple[str, ...]  # prefixes of the parameters that the map does not come from
    prefix_tokens: int = 0
    size: tuple[int, int] = (64, 64)


def timm_model(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **kwargs)


def vision_transformer(size: tuple[int, int], **kwargs: Any) -> Callable[[], nn.Module]:
    common: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return lambda: VisionTransformer(img_size=size, **common, **kwargs)


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2), num_classes=5
    )


SAMPLES = {
    "resnet": Sample(timm_model("test_resnet"), "layer4", Layout.NCHW, (96, 2, 2), ("fc.",)),
    "efficientnet": Sample(timm_model("test_efficientnet"), "bn2", Layout.NCHW, (256, 2, 2), ("classifier.",)),
    "convnext": Sample(timm_model("test_convnext"), "norm_pre", Layout.NCHW, (64, 2, 2), ("head.",)),
    "nfnet": Sample(timm_model("test_nfnet"), "final_act", Layout.NCHW, (192, 2, 2), ("head.",)),
    "cifar": Sample(timm_model("cifar_resnet20"), "layer3", Layout.NCHW, (64, 8, 8), ("fc.",), size=(32, 32)),
    "wide": Sample(timm_model("cifar_wrn_16_2"), "act", Layout.NCHW, (128, 8, 8), ("fc.",), size=(32, 32)),
    "mambaout": Sample(timm_model("test_mambaout"), "stages", Layout.NHWC, (64, 2, 2), ("head.",)),
    "swin": Sample(swin, "norm", Layout.NHWC, (32, 8, 8), ("head.",), size=(32, 32)),
    "vit": Sample(timm_model("test_vit", img_size=64), "norm", Layout.NLC, (64, 4, 4), ("head.",), prefix_tokens=1),
    "vit without class token": Sample(
        timm_model("test_vit_relpos", img_size=64), "norm", Layout.NLC, (96, 4, 4), ("fc_norm.", "head.")
    ),
    "vit with registers": Sample(
        vision_transformer((32, 32), reg_tokens=3),
        *("norm", Layout.NLC, (16, 4, 4), ("head.",)),
        prefix_tokens=4,
        size=(32, 32),
    ),
    "vit on a wide grid": Sample(
        vision_transformer((16, 48)), "norm", Layout.NLC, (16, 2, 6), ("head.",), prefix_tokens=1, size=(16, 48)
    ),
}


def images_of(sample: Sample) -> Tensor:
    return torch.randn(2, 3, *sample.size, generator=torch.Generator().manual_seed(0))


def built(sample: Sample) -> nn.Module:
    torch.manual_seed(0)
    return sample.build()


def tapped(sample: Sample) -> TappedModel:
    model = built(sample)
    return TappedModel(model, find_taps(model, images_of(sample), "it"), "it")


def hooks_in(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def by_hand(features: Tensor, sample: Sample) -> Tensor:
    """What `forward_features` gives as (batch, channels, height, width), one place at a time."""
    channels, height, width = sample.shape
    out = torch.empty(len(features), channels, height, width)
    for i in range(height):
        for j in range(width):
            if sample.layout is Layout.NLC:
                out[:, :, i, j] = features[:, sample.prefix_tokens + i * width + j]
            elif sample.layout is Layout.NHWC:
                out[:, :, i, j] = features[:, i, j]
            else:
                out[:, :, i, j] = features[:, :, i, j]
    return out


@pytest.mark.parametrize("name", SAMPLES)
def test_the_last_map_is_found(name: str) -> None:
    sample = SAMPLES[name]
    model = tapped(sample)
    assert model.taps == (Tap(sample.layer, sample.layout, sample.prefix_tokens, sample.shape),)
    images = images_of(sample)
    model.eval()
    with torch.no_grad():
        logits, (feature_map,) = model(images)
        assert torch.equal(feature_map, by_hand(model.module.forward_features(images), sample))
        assert torch.equal(logits, model.module(images))


@pytest.mark.parametrize("name", SAMPLES)
def test_the_extractor_is_all_that_the_map_comes_from(name: str) -> None:
    sample = SAMPLES[name]
    model = tapped(sample)
    trial = dry_run(model, images_of(sample))
    assert trial.classes == 5
    own = dict(model.module.named_parameters())
    assert {key for key, parameter in own.items() if parameter not in trial.extractor} == {
        key for key in own if key.startswith(sample.behind)
    }
    assert trial.extractor <= set(own.values())
    assert all(parameter.grad is None for parameter in own.values())


@pytest.mark.parametrize("name", SAMPLES)
def test_the_users_module_is_untouched(name: str) -> None:
    sample = SAMPLES[name]
    model = built(sample)
    untouched = copy.deepcopy(model)
    images = images_of(sample)
    wrapped = TappedModel(model, find_taps(model, images, "it"), "it")
    dry_run(wrapped, images)
    assert hooks_in(model) == 0
    assert all(module.training for module in model.modules())
    wrapped.eval()
    untouched.eval()
    with torch.no_grad():
        wrapped(images)
        expected = untouched(images)
    assert hooks_in(model) == 0
    assert model.state_dict().keys() == untouched.state_dict().keys()
    assert all(torch.equal(value, untouched.state_dict()[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(images), expected)
            assert vars(twin).keys() == vars(untouched).keys()


@pytest.mark.parametrize(("left", "right"), [("resnet", "vit"), ("swin", "cifar"), ("mambaout", "efficientnet")])
def test_pairs_of_different_kinds_train(left: str, right: str) -> None:
    samples = [SAMPLES[left], SAMPLES[right]]
    models = [built(sample) for sample in samples]
    distiller = OnlineAdversarialDistiller(models, image_size=samples[0].size[0], channels_last=False)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    images = torch.randn(4, 3, *samples[0].size)
    for _ in range(2):  # timm's residual branches begin at zero and pass no gradient in the first step
        metrics = distiller.training_step(images, torch.tensor([0, 1, 2, 3]))
    assert all(value.isfinite() for value in metrics.values())
    for model, old in zip(models, before, strict=True):
        assert hooks_in(model) == 0
        moved = {key: not torch.equal(value.cpu(), old[key]) for key, value in model.state_dict().items()}
        assert all(moved[key] for key, _ in model.named_parameters()), moved


class Functional(nn.Module):
    """In timm's form, with a last map that is no module's output; `forward` may scale its logits besides."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)
        self.scale = scale

    def forward_features(self, images: Tensor) -> Tensor:
        return self.conv(images).square()

    def forward_head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images)) * self.scale


def test_a_last_map_that_no_module_gives() -> None:
    model = Functional()
    images = torch.randn(2, 3, 8, 8)
    taps = find_taps(model, images, "it")
    assert taps == [Tap("", Layout.NCHW, 0, (4, 6, 6), kind=TapKind.FEATURES)]
    wrapped = TappedModel(model, taps, "it")
    logits, (feature_map,) = wrapped(images)
    assert torch.equal(logits, model(images))
    assert torch.equal(feature_map, model.conv(images).square())
    assert dry_run(wrapped, images).extractor == set(model.conv.parameters())


def test_a_last_map_that_would_cost_the_models_own_forward() -> None:
    with pytest.raises(UserError, match=r"^it: taking the map of forward_features changes the logits: name a"):
        find_taps(Functional(scale=2.0), torch.randn(2, 3, 8, 8), "it")


# Models that are not timm's, and layers by name.


class Plain(nn.Module):
    """Two convolutions, a module called twice, one never called, a pooling module and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 6, 3)
        self.shared = nn.ReLU()
        self.unused = nn.Linear(2, 2)
        self.pool = nn.AvgPool2d(4)
        self.flat = nn.Flatten()
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.shared(self.second(self.shared(self.first(images))))
        logits: Tensor = self.head(self.flat(self.pool(x)))
        return logits


class Returns(nn.Module):
    """Gives what it is told to, made of its input."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


class Odd(nn.Module):
    """A convolution, a module with an odd output, a classifier."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.odd = Returns(make)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        self.odd(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


PLAIN_IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def taps_of(*layers: Layer, model: nn.Module | None = None) -> list[Tap]:
    return find_taps(model or Plain(), PLAIN_IMAGES, "model 0 (Plain)", layers)


def refusal(*layers: Layer, model: nn.Module | None = None) -> str:
    with pytest.raises(UserError) as caught:
        taps_of(*layers, model=model)
    message = str(caught.value)
    assert message.startswith("model 0 (Plain): ")
    assert "\n" not in message
    return message


def test_the_last_spatial_output_is_found_in_other_modules() -> None:
    # Not the pooled 1x1 map; `shared` gives the last grid but is called twice.
    assert taps_of() == [Tap("second", Layout.NCHW, 0, (6, 4, 4))]


def test_layers_by_name() -> None:
    model = Plain()
    taps = taps_of("first", "second", model=model)
    assert taps == [Tap("first", Layout.NCHW, 0, (4, 6, 6)), Tap("second", Layout.NCHW, 0, (6, 4, 4))]
    wrapped = TappedModel(model, taps, "it")
    _, maps = wrapped(PLAIN_IMAGES)
    assert torch.equal(maps[0], model.first(PLAIN_IMAGES))
    assert torch.equal(maps[1], model.second(model.shared(maps[0])))
    only_first = TappedModel(model, taps[:1], "it")
    assert dry_run(only_first, PLAIN_IMAGES).extractor == set(model.first.parameters())
    assert dry_run(wrapped, PLAIN_IMAGES).extractor == {*model.first.parameters(), *model.second.parameters()}


def test_one_layer_twice_and_none_at_all() -> None:
    model = Plain()
    _, maps = TappedModel(model, taps_of("first", "first", model=model), "it")(PLAIN_IMAGES)
    assert torch.equal(maps[0], maps[1])
    logits, none = TappedModel(model, [], "it")(PLAIN_IMAGES)
    assert none == ()
    assert torch.equal(logits, model(PLAIN_IMAGES))
    assert dry_run(TappedModel(model, [], "it"), PLAIN_IMAGES).extractor == set()


@pytest.mark.parametrize(
    "make",
    [lambda x: (x[:, :1], x, "last"), lambda x: {"a": x[:, :1], "b": x}, lambda x: ([x[:, :1]], (x, x.mean()))],
)
def test_the_last_map_of_several_tensors(make: Callable[[Tensor], Any]) -> None:
    model = Odd(make)
    (tap,) = taps_of("odd", model=model)
    assert tap == Tap("odd", Layout.NCHW, 0, (4, 6, 6), element=1)
    _, (feature_map,) = TappedModel(model, [tap], "it")(PLAIN_IMAGES)
    assert torch.equal(feature_map, model.first(PLAIN_IMAGES))


def test_stages_by_number() -> None:
    model = timm.create_model("test_resnet", num_classes=5)
    images = torch.randn(2, 3, 64, 64)
    taps = find_taps(model, images, "it", [-1, "layer2", 1])
    assert [tap.shape for tap in taps] == [(96, 2, 2), (48, 8, 8), (32, 16, 16)]
    untouched = copy.deepcopy(model)
    logits, maps = TappedModel(model, taps, "it")(images)  # in training
    by_name = find_taps(untouched, images, "it", ["layer4", "layer2", "layer1"])
    expected, expected_maps = TappedModel(untouched, by_name, "it")(images)
    assert torch.equal(logits, expected)
    assert all(torch.equal(one, other) for one, other in zip(maps, expected_maps, strict=True))
    assert all(torch.equal(value, untouched.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"^it: feature_layers names stage 9, it has 5 stages$"):
        find_taps(model, images, "it", [9])


def test_a_layer_that_does_not_exist() -> None:
    message = refusal("secnod")
    assert "it has no layer 'secnod', the nearest are second" in message
    message = refusal("zzz")
    assert all(child in message for child in ("first", "second", "head"))
    assert "it has no layer ''" in refusal("")
    model = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(UserError, match=r"^it: it has no layer 'layer4\.2', the nearest are layer4\.0, "):
        find_taps(model, torch.zeros(1, 3, 64, 64), "it", ["layer4.2"])


def test_a_layer_must_be_called_once() -> None:
    assert "layer 'unused' was called 0 times in one forward, expected once" in refusal("unused")
    assert "layer 'shared' was called 2 times in one forward, expected once" in refusal("shared")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: ("no", "tensor"), "tuple"),
        (lambda x: (), "tuple"),
        (lambda x: None, "NoneType"),
        (lambda x: x.sum(), "()"),
        (lambda x: x[None], "(1, 2, 4, 6, 6)"),
        (lambda x: x[:, 0, :, :5], "(2, 6, 5)"),
    ],
)
def test_outputs_that_are_no_map(make: Callable[[Tensor], Any], words: str) -> None:
    message = refusal("odd", model=Odd(make))
    assert f"layer 'odd' outputs {words}, which has no grid: name a layer that outputs a map" in message


def test_no_last_map_to_be_found() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert "no module outputs a map through which all of the images pass: name a layer" in refusal(model=model)


class TrainsOtherwise(nn.Module):
    """Calls its first layer once in evaluation, and `calls` times in training."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.calls if self.training else 1):
            x = self.first(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("calls", [0, 2])
def test_every_forward_is_checked(calls: int) -> None:
    model = TrainsOtherwise(calls)
    wrapped = TappedModel(model, taps_of("first", model=model), "model 1 (it)")
    with pytest.raises(UserError, match=rf"^model 1 \(it\): layer 'first' was called {calls} times"):
        wrapped(PLAIN_IMAGES)
    assert hooks_in(model) == 0


def test_hooks_go_after_an_error_and_the_users_own_stay() -> None:
    model = Plain()
    seen: list[int] = []
    model.first.register_forward_hook(lambda *_: seen.append(1))
    wrapped = TappedModel(model, taps_of("second", model=model), "it")
    with pytest.raises(RuntimeError):
        wrapped(torch.zeros(2, 4, 8, 8))
    assert hooks_in(model) == 1
    seen.clear()
    wrapped(PLAIN_IMAGES)
    assert seen == [1]
    assert hooks_in(model) == 1


def test_finding_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))
    model.extend([nn.Flatten(), nn.Linear(4, 5)])
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    dry_run(TappedModel(model, taps_of(model=model), "it"), PLAIN_IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True, True]


# Helpers.


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: (z, z + 1), lambda z: [z], lambda z: {"logits": z}, Answer])
def test_logits_in_any_output(wrap: Callable[[Tensor], Any]) -> None:
    logits = torch.randn(2, 5)
    assert logits_of(wrap(logits), "it") is logits


@pytest.mark.parametrize("output", [torch.zeros(2, 3, 4, 4), torch.zeros(2), None, (), {"features": torch.zeros(2, 3)}])
def test_outputs_that_are_no_logits(output: Any) -> None:
    with pytest.raises(
        UserError, match=r"^it: its output is .*, expected logits \(batch, classes\): it cannot classify$"
    ):
        logits_of(output, "it")


def test_tensors_of() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    for output in (a, (a, None, "word"), {"a": a}, [[a], 1]):
        assert [tensor is a for tensor in tensors_of(output)] == [True]
    for output in ((a, b), {"a": a, "b": b}, [a, {"b": (b,)}]):
        assert [tensors_of(output)[0] is a, tensors_of(output)[1] is b] == [True, True]
    assert tensors_of(None) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [[], []]),
        ("layer4", [["layer4"], ["layer4"]]),
        (-1, [[-1], [-1]]),
        (["layer3", 4], [["layer3", 4], ["layer3", 4]]),
        ({1: "norm"}, [[], ["norm"]]),
        ({0: ["layer3", "layer4"], 1: 2}, [["layer3", "layer4"], [2]]),
    ],
)
def test_layers_of(given: Any, expected: list[list[Layer]]) -> None:
    assert [layers_of(given, index) for index in (0, 1)] == expected


def test_upstream_parameters() -> None:
    used, other, fixed = (nn.Parameter(torch.ones(2)) for _ in range(3))
    fixed.requires_grad_(False)
    out = (used * 2 + fixed).sum()
    assert upstream_parameters([out]) == {used}
    assert upstream_parameters([out, (other * used).sum()]) == {used, other}
    assert upstream_parameters([out.detach()]) == set()


def distilled_deit(*, apart: bool) -> Any:
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=2, img_size=32, embed_dim=24, depth=2, num_heads=2
    )
    model.set_distilled_training(apart)
    return model


def test_two_heads_that_train_apart_are_refused() -> None:
    partner = lambda: timm.create_model("test_resnet", num_classes=2)  # noqa: E731
    with pytest.raises(UserError, match=r"^model 0 \(.*distilled_training is on.*call set_distilled_training\(False\)"):
        OnlineAdversarialDistiller([distilled_deit(apart=True), partner()], image_size=32)
    # A teacher is always in evaluation mode, where both heads answer together.
    OnlineAdversarialDistiller([distilled_deit(apart=True), partner()], image_size=32, frozen=[0], topology="star")


def test_both_heads_of_a_distilled_model_are_trained() -> None:
    model = distilled_deit(apart=False)
    distiller = OnlineAdversarialDistiller([model, timm.create_model("test_resnet", num_classes=2)], image_size=32)
    before = [head.weight.clone() for head in model.get_classifier()]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])
    distiller.training_step(images, labels)
    after = [head.weight.clone() for head in model.get_classifier()]
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    model.set_distilled_training(True)
    with pytest.raises(UserError, match="distilled_training is on"):
        distiller.training_step(images, labels)
    assert torch.equal(model.head_dist.weight, after[1])
