from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from feature_gan_kd import DistillConfig, OnlineAdversarialDistiller, UserError
from feature_gan_kd.models.cached_outputs import CachedOutputs, MemoryStore, _describe, open_store
from feature_gan_kd.models.find_taps import find_taps
from feature_gan_kd.models.tapped_model import TappedModel


class Counting(TappedModel):
    """Counts the images that it is asked for."""

    asked = 0

    def forward(self, images: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        self.asked += len(images)
        return super().forward(images)


def source(**options: Any) -> Counting:
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=3).eval()
    return Counting(module, find_taps(module, torch.zeros(2, 3, 32, 32), "it"), "it", **options)


@pytest.fixture(params=["memory", "disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory" if request.param == "memory" else str(tmp_path / "cache")


def test_each_image_is_computed_once_and_each_gets_its_own(place: str) -> None:
    model = source()
    cached = CachedOutputs(model, open_store(place), "no")
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        logits, (feature_map,) = model(images)
    model.asked = 0
    for chosen in ([0, 1, 2], [2, 4, 0], [5, 4, 3, 2, 1, 0], [3]):
        own_logits, (own_map,) = cached(images[chosen])
        assert own_logits is not None
        torch.testing.assert_close(own_logits, logits[chosen], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own_map, feature_map[chosen], rtol=1e-4, atol=1e-5)
    assert model.asked == 6


def test_a_mirrored_image_is_another(place: str) -> None:
    model = source()
    cached = CachedOutputs(model, open_store(place), "no")
    images = torch.randn(2, 3, 32, 32)
    cached(images)
    mirrored, _ = cached(images.flip(3))
    assert model.asked == 4
    assert mirrored is not None
    torch.testing.assert_close(mirrored, model(images.flip(3))[0], rtol=1e-4, atol=1e-5)


def test_other_weights_are_other_outputs(place: str) -> None:
    model = source()
    store = open_store(place)
    cached = CachedOutputs(model, store, "no")
    images = torch.randn(2, 3, 32, 32)
    first, _ = cached(images)
    with torch.no_grad():
        next(model.module.parameters()).mul_(3)
    second, _ = cached(images)
    assert not torch.equal(first, second)
    CachedOutputs(model, store, "bf16")(images)
    assert model.asked == 6


def test_the_disk_is_shared_by_runs(tmp_path: Path) -> None:
    images = torch.randn(3, 3, 32, 32)
    first, second = source(classifies=False), source(classifies=False)
    given = CachedOutputs(first, open_store(str(tmp_path)), "no")(images)
    again = CachedOutputs(second, open_store(str(tmp_path)), "no")(images)
    assert given[0] is again[0] is None
    assert torch.equal(given[1][0], again[1][0])
    assert (first.asked, second.asked) == (3, 0)


def test_a_training_is_the_same_and_asks_a_source_once(place: str) -> None:
    results = []
    for cache in (None, place):
        settings: dict[str, Any] = {"cache_sources": cache, "augmentation": "none", "image_size": 32, "epochs": 3}
        distiller = OnlineAdversarialDistiller(
            ["test_resnet", "cifar_resnet8"], num_classes=10, frozen=[0], max_train_samples=24, batch_size=8, **settings
        )
        distiller.fit(progress=False)
        results.append(distiller)
    plain, cached = (list(one.models[1].parameters()) for one in results)
    for one, other in zip(plain, cached, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    (outputs,) = results[1].step.passes.cached_sources.values()
    if isinstance(outputs.store, MemoryStore):
        assert len(outputs.store._kept) == 24


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cache_sources: the images change from epoch to epoch \(augmentation auto\)"):
        DistillConfig(cache_sources="memory")
    with pytest.raises(UserError, match=r"^cache_sources: the images change from epoch to epoch \(mixup\)"):
        DistillConfig(cache_sources="memory", augmentation="none", mixup=0.2)
    with pytest.raises(UserError, match=r"^cache_sources: no model is frozen"):
        OnlineAdversarialDistiller(["test_resnet", "test_vit"], cache_sources="memory", augmentation="none")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"^cache_sources: .* cannot be used"):
        open_store(str(tmp_path / "file"))
    (tmp_path / "sources.sqlite").write_text("no database" * 100)
    with pytest.raises(UserError, match=r"^cache_sources: .* cannot be used"):
        open_store(str(tmp_path))


class Scaled(torch.nn.Module):
    """A map, scaled by what is neither a parameter nor saved."""

    def __init__(self, scale: float, slope: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.slope = slope
        self.end = torch.nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.end(torch.nn.functional.leaky_relu(self.convolution(images) * self.scale, self.slope))


@pytest.mark.parametrize("other", [Scaled(2.0), Scaled(1.0, slope=0.5)])
def test_models_that_differ_in_no_weight_share_nothing(place: str, other: torch.nn.Module) -> None:
    store, images = open_store(place), torch.randn(2, 3, 8, 8)
    outputs = []
    for module in (Scaled(1.0), other):
        model = TappedModel(module.eval(), find_taps(module, images, "it"), "it", classifies=False)
        outputs.append(CachedOutputs(model, store, "no")(images)[1][0])
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("change", ["data", "numpy", "activation", "hook"])
def test_changes_that_torch_does_not_count_are_noticed(place: str, change: str) -> None:
    model = source()
    cached = CachedOutputs(model, open_store(place), "no")
    images = torch.randn(2, 3, 32, 32)
    before = cached(images)[1][0]
    weight = next(model.module.parameters())
    if change == "data":
        weight.data.mul_(3)
    elif change == "numpy":
        weight.detach().numpy()[:] *= 3
    elif change == "activation":
        model.module.layer4[-1].act2 = torch.nn.GELU()  # type: ignore[index, union-attr]
    else:
        model.module.layer1.register_forward_hook(lambda module, given, output: output + 1)  # type: ignore[union-attr]
    with torch.no_grad():
        right = model(images)[1][0]
    assert not torch.equal(before, right)
    torch.testing.assert_close(cached(images)[1][0], right, rtol=1e-4, atol=1e-5)


class Nested(torch.nn.Module):
    """Its forward holds a function, which shows its address."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        def double(value: Tensor) -> Tensor:
            return value + value

        return double(self.convolution(images))


def test_a_description_is_the_same_in_every_process() -> None:
    """Otherwise nothing that is kept on disk would ever be found again."""
    described = _describe(Nested())
    assert " at 0x" not in described
    assert described == _describe(Nested())


def test_images_of_any_type_have_a_key(place: str) -> None:
    model = Nested().to(torch.bfloat16).eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    tapped = TappedModel(model, find_taps(model, images, "it"), "it", classifies=False)
    cached = CachedOutputs(tapped, open_store(place), "no")
    assert torch.equal(cached(images)[1][0], cached(images)[1][0])
