"""The public contract of `OnlineAdversarialDistiller`."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from feature_gan_kd import DistillConfig, Edge, OnlineAdversarialDistiller, UserError
from tests.helpers.small_models import GroupNormModel

TINY: dict[str, Any] = {"image_size": 32, "batch_size": 8, "epochs": 1, "lr": 0.01}


def tiny(**settings: Any) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller(["test_resnet", "test_vit"], num_classes=3, **{**TINY, **settings})


def image_dataset(count: int = 12, size: int = 32) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(count)]
    labels = datasets.ClassLabel(names=["cat", "dog", "owl"])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    return datasets.Dataset.from_dict({"image": images, "label": [k % 3 for k in range(count)]}, features=features)


def test_attributes() -> None:
    own = GroupNormModel(4)
    distiller = OnlineAdversarialDistiller([own, GroupNormModel(6)], image_size=8)
    assert distiller.models[0] is own
    assert distiller.edges == (Edge(0, 1), Edge(1, 0))
    assert len(distiller.discriminators) == len(distiller.transfers) == 2
    assert isinstance(distiller.config, DistillConfig)
    assert distiller.config.recipe == "paper"
    assert distiller.group.num_classes == 5


def test_summary_names_models_layers_maps_and_lessons() -> None:
    text = tiny().summary()
    assert "layer4" in text
    assert "96x1x1" in text
    assert "test_resnet (0) -> test_vit (1)" in text
    assert "64 -> 96 channels" in text


@pytest.mark.parametrize("kind", ["Dataset", "DatasetDict", "folder", "torch Dataset", "DataLoader"])
def test_every_kind_of_data(kind: str, tmp_path: Path) -> None:
    data: Any = image_dataset()
    evaluation: Any = None
    if kind == "DatasetDict":
        data = datasets.DatasetDict(train=data, validation=image_dataset(5))
    elif kind == "folder":
        for split, rows in (("train", data), ("test", image_dataset(5))):
            for position, row in enumerate(rows):
                path = tmp_path / split / ["cat", "dog", "owl"][row["label"]] / f"{position}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                row["image"].save(path)
        data = tmp_path
    elif kind in ("torch Dataset", "DataLoader"):
        data = TensorDataset(torch.randn(12, 3, 32, 32), torch.arange(12) % 3)
        evaluation = TensorDataset(torch.randn(5, 3, 32, 32), torch.arange(5) % 3)
        if kind == "DataLoader":
            data, evaluation = DataLoader(data, batch_size=6), DataLoader(evaluation, batch_size=5)
    history = tiny().fit(data, evaluation)
    # a held-out fifth leaves 9 images: one batch, and a single image that is left out
    assert history.last["step"] == (1 if kind == "Dataset" else 2)
    assert history.last["metrics"]["eval/images"] == (3 if kind == "Dataset" else 5)


def test_a_restored_distiller_is_the_same(tmp_path: Path) -> None:
    distiller = tiny(topology=[(0, 1), (1, 0)])
    data = datasets.DatasetDict(train=image_dataset(), test=image_dataset(7))
    distiller.fit(data, output_dir=tmp_path / "run")
    distiller.save_checkpoint(tmp_path / "saved")
    restored = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved")
    assert restored.edges == distiller.edges
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    assert restored.evaluate(data) == distiller.evaluate(data)
    metrics = [
        {key: float(value) for key, value in one.training_step(images, labels).items()} for one in (distiller, restored)
    ]
    assert metrics[0] == metrics[1]
    for own, other in zip(distiller.models, restored.models, strict=True):
        for key, value in own.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    tiny().save_checkpoint(tmp_path / "saved")
    (tmp_path / "saved" / "connection-0.safetensors").unlink()
    with pytest.raises(UserError, match=r"connection-0.safetensors: is missing"):
        OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved")


def test_own_modules_are_restored_into_modules_that_are_given(tmp_path: Path) -> None:
    models = [GroupNormModel(4), GroupNormModel(6)]
    OnlineAdversarialDistiller(models, image_size=8).save_checkpoint(tmp_path / "saved")
    fresh = [GroupNormModel(4), GroupNormModel(6)]
    OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved", models=fresh)
    assert torch.equal(fresh[1].head.weight, models[1].head.weight)
    with pytest.raises(UserError, match="models"):
        OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved", models=fresh[::-1])
    with pytest.raises(UserError, match="GroupNormModel"):
        OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved")


def test_user_modules_stay_as_they_are() -> None:
    own = GroupNormModel(4)
    distiller = OnlineAdversarialDistiller([own, GroupNormModel(6)], image_size=8)
    distiller.training_step(torch.randn(4, 3, 8, 8), torch.arange(4))
    assert not any(module._forward_hooks for module in own.modules())
    images = torch.randn(2, 3, 8, 8)
    expected = own(images)
    assert torch.equal(copy.deepcopy(own)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(own))(images), expected)
    assert all(parameter.grad is None for parameter in own.parameters())


def test_frozen_model_only_teaches() -> None:
    distiller = tiny(frozen=[0], method="afd")
    assert distiller.edges == (Edge(0, 1),)
    assert len(distiller.discriminators) == 1
    before = copy.deepcopy(distiller.models[0].state_dict())
    learner = copy.deepcopy(distiller.models[1].state_dict())
    distiller.training_step(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    assert all(torch.equal(value, distiller.models[0].state_dict()[key]) for key, value in before.items())
    assert any(not torch.equal(value, distiller.models[1].state_dict()[key]) for key, value in learner.items())
    assert not distiller.models[0].training


def test_published_weights_are_timms_own(tmp_path: Path) -> None:
    distiller = tiny()
    distiller.fit(datasets.DatasetDict(train=image_dataset(), test=image_dataset(5)))
    folders = distiller.save_pretrained(tmp_path, license="mit")
    assert [folder.name for folder in folders] == ["0-test_resnet", "1-test_vit"]
    images = torch.randn(2, 3, 32, 32)
    for folder, own in zip(folders, distiller.models, strict=True):
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert loaded.state_dict().keys() == timm.create_model(own.pretrained_cfg["architecture"]).state_dict().keys()
        assert loaded.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
        with torch.no_grad():
            assert torch.equal(loaded(images), own.eval().to(memory_format=torch.contiguous_format)(images))


def test_the_recipe_follows_the_weights_that_the_learners_begin_with(tmp_path: Path) -> None:
    published = f"local-dir:{tiny().save_pretrained(tmp_path)[0]}"

    def recipe(*models: str, **settings: Any) -> str:
        return OnlineAdversarialDistiller(models, num_classes=3, **TINY, **settings).config.recipe

    assert recipe(published, published) == "finetune"
    assert recipe(published, "test_vit") == "paper"
    assert recipe("test_vit", published, topology=[(0, 1)], frozen=[0]) == "finetune"
    assert recipe(published, "test_vit", frozen=[0], topology=[(0, 1)]) == "paper"
    assert recipe(published, published, recipe="paper") == "paper"


@pytest.mark.parametrize("model", [2, -1, "0", True])
def test_only_a_model_that_is_there_is_pushed(model: Any) -> None:
    with pytest.raises(UserError, match=r"^model: .* is not allowed, expected a position: 0 \(test_resnet\), 1"):
        tiny().push_to_hub("me/net", model=model)


def test_a_model_timm_cannot_rebuild_is_saved_bare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distiller = OnlineAdversarialDistiller([GroupNormModel(4), GroupNormModel(6)], image_size=8)
    folder = distiller.save_pretrained(tmp_path, mean=[0.5], std=[0.25])[0]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors"]
    assert "minus [0.5, 0.5, 0.5], divided by [0.25, 0.25, 0.25]" in (folder / "README.md").read_text()
    assert "timm cannot rebuild GroupNormModel" in capsys.readouterr().err


def test_gradient_checkpointing_and_bf16() -> None:
    plain, thrifty = tiny(mixed_precision="bf16"), tiny(mixed_precision="bf16")
    thrifty.models[1].set_grad_checkpointing(True)  # type: ignore[operator]
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    for distiller in (plain, thrifty):
        metrics = distiller.training_step(images, labels)
        assert all(value.isfinite() and value.dtype is torch.float32 for value in metrics.values())
    for one, other in zip(plain.models[1].parameters(), thrifty.models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


class TwoHeads(nn.Module):
    """Logits in a mapping, as transformers give them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = GroupNormModel(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits and something else."""
        return {"hidden": x, "logits": self.inner(x)}


def test_logits_in_a_mapping() -> None:
    distiller = OnlineAdversarialDistiller([TwoHeads(), GroupNormModel(4)], image_size=8)
    assert distiller.training_step(torch.randn(4, 3, 8, 8), torch.arange(4))["cross_entropy/0"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": ["test_resnet"]}, "at least 2"),
        ({"models": ["test_resnet", "test_resnext"]}, "no model 'test_resnext', the closest are test_resnet"),
        ({"feature_layers": "layer9"}, "no layer 'layer9', the nearest are layer"),
        ({"learning_rate": 1}, "no setting 'learning_rate'"),
        ({"config": {"lr": 0.1}}, "config: dict is not allowed"),
        ({"topology": [(0, 1)]}, "nobody teaches model 0"),
        ({"frozen": [5]}, "no model 5"),
        ({"feature_layers": {0: ["layer3", "layer4"]}}, "tapped layers"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    models = arguments.pop("models", ["test_resnet", "test_vit"])
    with pytest.raises(UserError, match=message) as error:
        OnlineAdversarialDistiller(models, num_classes=3, **{**TINY, **arguments})
    assert "\n" not in str(error.value)


def test_models_of_other_class_counts() -> None:
    with pytest.raises(UserError, match=r"\[5, 3\] classes"):
        OnlineAdversarialDistiller([GroupNormModel(4), timm.create_model("test_resnet", num_classes=3)], **TINY)


def test_data_of_another_class_count() -> None:
    with pytest.raises(UserError, match="has 3 classes, the models have 7: build them with num_classes=3"):
        OnlineAdversarialDistiller(["test_resnet", "test_vit"], num_classes=7, **TINY).fit(image_dataset())


def test_evaluating_before_training_needs_a_normalisation() -> None:
    with pytest.raises(UserError, match="not known: give mean and std"):
        tiny().evaluate(image_dataset())
    assert tiny(mean=(0.5,), std=(0.25,)).evaluate(image_dataset())["images"] == len(image_dataset())


def test_images_smaller_than_the_wiring() -> None:
    distiller = tiny(image_size=64)
    with pytest.raises(UserError, match="image_size"):
        distiller.training_step(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64))


def test_half_precision_of_accelerate_is_refused() -> None:
    accelerator = Accelerator()
    accelerator.state._mixed_precision = "fp16"
    try:
        with pytest.raises(UserError, match=r"^mixed_precision: fp16 needs a GPU"):
            tiny(accelerator=accelerator)
    finally:
        accelerator.state._mixed_precision = "no"


class MeanDiscriminator(nn.Module):
    """A discriminator of one's own: a line on the mean of each channel."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.line = nn.Linear(shape[0], 1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Answers (batch,)."""
        return torch.sigmoid(self.line(feature_map.mean((2, 3)))[:, 0])


def test_a_discriminator_of_ones_own(tmp_path: Path) -> None:
    distiller = tiny(discriminator=MeanDiscriminator)
    assert all(isinstance(one, MeanDiscriminator) for one in distiller.discriminators)
    before = [one.line.weight.detach().clone() for one in distiller.discriminators]  # type: ignore[union-attr]
    distiller.training_step(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    for one, weight in zip(distiller.discriminators, before, strict=True):
        assert not torch.equal(one.line.weight, weight)  # type: ignore[union-attr]
    distiller.save_checkpoint(tmp_path / "saved")
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved", discriminator=MeanDiscriminator)
    assert torch.equal(again.discriminators[0].line.weight, distiller.discriminators[0].line.weight)  # type: ignore[union-attr]


def test_a_discriminator_that_gives_no_answer_per_map() -> None:
    with pytest.raises(UserError, match=r"gives \(2, 1, 1\) for 2 maps"):
        tiny(discriminator=lambda shape: nn.Sequential(nn.Conv2d(shape[0], 1, 1), nn.Flatten(0, 0), nn.Flatten(2)))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_settings_of_the_discriminators(norm: str) -> None:
    distiller = tiny(discriminator_width=7, discriminator_norm=norm)
    assert [one.conv1.out_channels for one in distiller.discriminators] == [7, 7]  # type: ignore[union-attr]
    metrics = distiller.training_step(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    assert all(value.isfinite() for value in metrics.values())


def test_several_taps_have_a_discriminator_each_and_their_losses_are_averaged() -> None:
    one = tiny(feature_layers={0: "layer3", 1: -2})
    other = tiny(feature_layers={0: "layer4", 1: -1})
    both = tiny(feature_layers={0: ["layer3", "layer4"], 1: [-2, -1]})
    assert len(both.discriminators) == 4
    # the same discriminators, so that the losses can be compared
    for connection in both.group.connections:
        connection.load_state_dict((one, other)[connection.tap].group.connections[connection.edge.source].state_dict())
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    first, second, mean = (d.training_step(images, labels) for d in (one, other, both))
    for key in ("adversarial/0", "discriminator/1", "real/0->1", "fake/1->0"):
        torch.testing.assert_close(mean[key], (first[key] + second[key]) / 2)


@pytest.mark.parametrize("topology", ["cycle", "complete", "star"])
def test_topologies_of_three(topology: str) -> None:
    distiller = OnlineAdversarialDistiller(
        [GroupNormModel(4), GroupNormModel(6), GroupNormModel(4)],
        image_size=8,
        topology=topology,  # type: ignore[arg-type]
    )
    assert len(distiller.edges) == {"cycle": 3, "complete": 6, "star": 4}[topology]
    metrics = distiller.training_step(torch.randn(5, 3, 8, 8), torch.arange(5))
    assert all(value.isfinite() for value in metrics.values())


def test_peers_that_share_a_parameter_are_refused() -> None:
    first, second = GroupNormModel(4), GroupNormModel(4)
    second.head = first.head
    with pytest.raises(UserError, match=r"models 0 and 1 share 'head.weight'"):
        OnlineAdversarialDistiller([first, second], image_size=8)
    norm = nn.BatchNorm2d(4, affine=False)
    first, second = (nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Flatten(), nn.Linear(256, 5)) for _ in range(2))
    with pytest.raises(UserError, match=r"models 0 and 1 share '1.running_mean'"):
        OnlineAdversarialDistiller([first, second], image_size=8)
    with pytest.raises(UserError, match="the same module is given twice"):
        OnlineAdversarialDistiller([first, first], image_size=8)


def test_data_parallel_wrappers_are_taken_off() -> None:
    own = GroupNormModel(4)
    distiller = OnlineAdversarialDistiller([nn.DataParallel(own), GroupNormModel(4)], image_size=8)
    assert distiller.models[0] is own


def test_evaluating_again_takes_the_images_of_the_fit(tmp_path: Path) -> None:
    distiller = tiny()
    history = distiller.fit(image_dataset())
    again = distiller.evaluate()
    assert (again["accuracy"], again["ensemble"], again["images"]) == (history.accuracy, history.ensemble, 3)
    distiller.save_checkpoint(tmp_path / "saved")
    with pytest.raises(UserError, match=r"the training data was a Dataset object, which .* does not hold: give data"):
        OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved").evaluate()


def test_a_vector_is_a_map_only_where_one_asks() -> None:
    with pytest.raises(UserError, match=r"layer 'fc_norm' outputs \(2, 64\), which has no grid"):
        tiny(feature_layers={0: "layer4", 1: "fc_norm"})
    distiller = tiny(feature_layers={0: "layer4", 1: "fc_norm"}, vectors_as_maps=True)
    assert [connection.source_shape for connection in distiller.group.connections] == [(96, 1, 1), (64, 1, 1)]
    metrics = distiller.training_step(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    assert all(value.isfinite() for value in metrics.values())


def test_models_that_are_nowhere_or_in_two_places() -> None:
    with torch.device("meta"):
        nowhere = GroupNormModel(4)
    with pytest.raises(UserError, match=r"model 0 .GroupNormModel. is on the meta device"):
        OnlineAdversarialDistiller([nowhere, GroupNormModel(4)], image_size=8)
    split = GroupNormModel(4)
    split.head.to("meta")
    with pytest.raises(UserError, match=r"model 1 .* has parameters on cpu and meta"):
        OnlineAdversarialDistiller([GroupNormModel(4), split], image_size=8)


def test_another_number_of_channels() -> None:
    with pytest.raises(UserError, match=r"it fails on images of 1x8x8 .*check image_size and in_chans"):
        OnlineAdversarialDistiller([GroupNormModel(4), GroupNormModel(4)], image_size=8, in_chans=1)
