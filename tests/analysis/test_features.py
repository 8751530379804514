"""Features of models with and without a classifier, and of named layers; how they are collected and measured."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from feature_gan_kd import DistillConfig, UserError
from feature_gan_kd.analysis.features import FeatureExtractor, collect_features
from feature_gan_kd.analysis.probe import measure_features
from feature_gan_kd.data import open_data
from feature_gan_kd.models.normalisation import Normalisation
from tests.helpers.small_models import GroupNormModel

SIZE = (3, 32, 32)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "cifar_resnet20"])
@pytest.mark.parametrize("classes", [0, 5])
def test_they_are_what_the_classifier_is_given(name: str, classes: int) -> None:
    model: Any = timm.create_model(name, num_classes=classes).train()
    extract = FeatureExtractor(model, name, SIZE)
    features = extract(images())
    assert features.shape == (3, extract.size) == (3, model.head_hidden_size if classes else extract.size)
    assert torch.equal(features, model.forward_head(model.forward_features(images()), pre_logits=True))
    with torch.no_grad():
        logits = model(images())
        assert torch.allclose(logits, model.get_classifier()(features), atol=1e-6)
    assert not model.training


def test_a_map_is_averaged_over_its_positions() -> None:
    model: Any = timm.create_model("test_resnet", num_classes=0).eval()
    kept: list[Tensor] = []
    handle = model.layer2.register_forward_hook(lambda module, args, output: kept.append(output))
    model(images())
    handle.remove()
    features = FeatureExtractor(model, "net", SIZE, "layer2")(images())
    assert torch.allclose(features, kept[0].mean((2, 3)))
    assert torch.equal(features, FeatureExtractor(model, "net", SIZE, 2)(images()))


class InPlace(nn.Module):
    """Changes its images, and the output of its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        """Logits (batch, 5)."""
        return self.head(self.second(self.act(self.first(x.sub_(2)))).mean((2, 3)))


def test_what_changes_in_place() -> None:
    model, given = InPlace(), images()
    with pytest.raises(UserError, match=r"^net: a later layer changes the output of 'first' in place: name that later"):
        FeatureExtractor(model, "net", SIZE, "first")
    features = FeatureExtractor(model, "net", SIZE, "second")(given)
    assert torch.equal(given, images())
    with torch.no_grad():
        expected = model.second(model.first(images() - 2).relu()).mean((2, 3))
    assert torch.allclose(features, expected, atol=1e-6)


def test_tokens_are_averaged_without_those_in_front_of_the_grid() -> None:
    model: Any = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    kept: list[Tensor] = []
    handle = model.blocks[0].register_forward_hook(lambda module, args, output: kept.append(output))
    model(images())
    handle.remove()
    features = FeatureExtractor(model, "net", SIZE, "blocks.0")(images())
    assert torch.allclose(features, kept[0][:, model.num_prefix_tokens :].mean(1), atol=1e-6)


def test_a_vector_is_taken_as_it_is() -> None:
    model = timm.create_model("test_resnet", num_classes=5).eval()
    assert torch.allclose(FeatureExtractor(model, "net", SIZE, "fc")(images()), model(images()))


class NoVector(nn.Module):
    """As timm's encoders, whose `forward_head` refuses."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, images: Tensor) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("model", "layer", "line"),
    [
        (GroupNormModel(4, 5), None, "net: has no features in timm's sense .forward_features.: name a layer with --la"),
        (timm.create_model("test_resnet", global_pool="", num_classes=0), None, r"net: gives \(2, 96, 1, 1\) in place"),
        (timm.create_model("test_resnet"), "layer9", "net: it has no layer 'layer9', the nearest are layer"),
        (timm.create_model("test_resnet"), 9, "net: feature_layers names stage 9"),
        (
            timm.create_model("qwen3_vit_88m_enc", depth=1),
            None,
            "net: its features cannot be computed .*: name a layer",
        ),
    ],
)
def test_models_without_features(model: nn.Module, layer: str | int | None, line: str) -> None:
    with pytest.raises(UserError, match=line):
        FeatureExtractor(model, "net", SIZE, layer)


def test_features_that_are_not_finite() -> None:
    model: Any = timm.create_model("test_resnet", num_classes=0)
    extract = FeatureExtractor(model, "net", SIZE)
    bad = images()
    bad[1, 0, 0, 0] = torch.inf
    with pytest.raises(UserError, match="net: gives features that are not finite: name a model that did not diverge"):
        extract(bad)


def test_all_images_are_collected_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_gan_kd.analysis.features.BATCH_SIZE", 7)
    config = DistillConfig(max_train_samples=20, max_eval_samples=15)
    stated = Normalisation((0.5,) * 3, (0.5,) * 3)
    data = open_data(None, None, config, image_size=32, in_chans=3, stated=stated, for_training=False)
    model: Any = timm.create_model("test_resnet", num_classes=0)
    extract = FeatureExtractor(model, "net", SIZE)
    features, labels = collect_features(extract, data.train, torch.device("cpu"))
    (batch,) = data.train.batches(batch_size=20, seed=0, epoch=0, device="cpu", train=False)
    assert torch.equal(labels, batch[1])
    assert torch.allclose(features, extract(batch[0]), atol=1e-5)


def test_images_without_a_label_are_refused() -> None:
    class Unlabelled:
        def batches(self, **how: Any) -> Any:
            yield images(2), torch.tensor([1, -1])

    extract = FeatureExtractor(timm.create_model("test_resnet", num_classes=0), "net", SIZE)
    with pytest.raises(UserError, match="labels: 1 of 2 images have none: give labelled data"):
        collect_features(extract, Unlabelled(), torch.device("cpu"))  # type: ignore[arg-type]


def test_images_to_measure_are_cropped_as_in_evaluation() -> None:
    """The training images, too: in a training they would be whole, and cropped at random."""
    config = DistillConfig(crop_pct=0.5, max_train_samples=20, max_eval_samples=15)
    stated = Normalisation((0.0,) * 3, (1.0,) * 3)
    found = [
        open_data(None, None, config, image_size=8, in_chans=3, stated=stated, for_training=training).train
        for training in (False, True)
    ]
    measured, trained = (
        next(iter(one.batches(batch_size=20, seed=0, epoch=0, device="cpu", train=False)))[0] for one in found
    )
    large = open_data(
        None, None, config.replace(crop_pct=1.0), image_size=16, in_chans=3, stated=stated, for_training=False
    ).train
    whole = next(iter(large.batches(batch_size=20, seed=0, epoch=0, device="cpu", train=False)))[0]
    assert torch.allclose(measured, whole[:, :, 4:12, 4:12], atol=0.02)
    assert not torch.allclose(measured, trained, atol=0.1)


class Labelled:
    """A source whose images are their features."""

    def __init__(self, features: Tensor, labels: list[int]) -> None:
        self.features, self.labels = features, torch.tensor(labels)

    def batches(self, **how: Any) -> Any:
        yield self.features[:, :, None, None], self.labels


class Flat(nn.Module):
    """Gives its images as vectors."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, images: Tensor, pre_logits: bool) -> Tensor:
        return images.flatten(1)


def test_what_is_measured() -> None:
    centres = 5 * torch.eye(4)
    labels = [0, 1, 2, 3, 3, 3] * 4
    train = Labelled(centres[labels] + 0.1 * torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), labels)
    asked = [0, 1, 3, 1, 3]
    right = [0, 1, 3, 2, 3]  # the fourth is wrong
    found = measure_features(
        FeatureExtractor(Flat(), "net", (4, 1, 1)),
        train,  # type: ignore[arg-type]
        Labelled(centres[asked], right),  # type: ignore[arg-type]
        k=3,
        temperature=0.07,
        device=torch.device("cpu"),
    )
    assert found["knn_accuracy"] == found["linear_accuracy"] == 80.0
    assert (found["chance"], found["majority"]) == (25.0, 40.0)
    assert (found["train_images"], found["eval_images"], found["classes"], found["features"]) == (24, 5, 4, 4)
