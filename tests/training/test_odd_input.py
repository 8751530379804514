"""Inputs that once gave wrong numbers in silence: each gives the right value, or one line."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, TensorDataset

from feature_gan_kd import Callback, OnlineAdversarialDistiller, UserError
from feature_gan_kd.training.run import open_training_data

IMAGES = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


class Net(nn.Module):
    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 2, 1)
        self.second = nn.Conv2d(width, width, 3, 1, 1)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.second(self.first(images).relu()).relu().mean((2, 3)))


def built(**settings: Any) -> OnlineAdversarialDistiller:
    defaults: dict[str, Any] = {"image_size": 8, "num_classes": 3, "lr": 0.01}
    return OnlineAdversarialDistiller([Net(4), Net(6)], **{**defaults, **settings})


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


def test_the_statistics_of_a_sorted_loader_are_those_of_all_images() -> None:
    images = IMAGES.clone()
    images[:8] = 0
    loader = DataLoader(TensorDataset(images, LABELS), batch_size=8)
    distiller = built()
    distiller.fit(loader, loader, epochs=1, progress=False)
    shared = distiller.group.shared
    assert shared is not None
    pixels = images.double() / 255
    assert shared.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert shared.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


class Labelled(Dataset[Any]):
    def __init__(self, label: Any) -> None:
        self.label = label

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index], self.label(index)


@pytest.mark.parametrize("label", [lambda i: np.eye(3, dtype=np.int64)[i % 3], lambda i: np.array([i % 3])])
def test_a_label_of_several_numbers(label: Any) -> None:
    with pytest.raises(UserError, match=r"^labels: image \d+ of split 'train' has the label array\(.*expected 0 to 2$"):
        built().fit(Labelled(label), Labelled(label), epochs=1, batch_size=4)
    data = Labelled(lambda i: np.int64(i % 3))
    built().fit(data, data, epochs=1, batch_size=4, progress=False)


def table(kind: str, labels: list[Any]) -> Any:
    images = [PIL.Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 120, 250)] * (len(labels) // 3)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_texts_are_not_guessed_to_be_the_numbers_of_another_split() -> None:
    train, evaluation = table("int64", [0, 1, 2] * 10), table("string", ["dog", "cat", "bee"] * 3)
    with pytest.raises(UserError, match=r"^labels: split '\w+' has texts, split '\w+' has plain numbers"):
        open_training_data(built().group, train, evaluation)


class Batches(Dataset[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return IMAGES[8 * index : 8 * index + 8], LABELS[8 * index : 8 * index + 8]


def test_a_loader_of_ready_batches_counts_images(tmp_path: Path) -> None:
    loader = DataLoader(Batches(), batch_size=None)
    last = built().fit(loader, loader, epochs=1, output_dir=tmp_path / "run", progress=False).last
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert (data["train_images"], data["evaluation_images"], last["metrics"]["eval/images"]) == (40, 40, 40)
    assert last["metrics"]["train/epoch_images_per_second"] == pytest.approx(40 / last["seconds"])


class OwnBatches(BatchSampler):
    pass


def test_a_batch_sampler_of_ones_own_leaves_no_image_out() -> None:
    drops = DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=OwnBatches(SequentialSampler(IMAGES), 16, True))
    with pytest.raises(UserError, match="leaves out the last 8 of 40 images"):
        built(mean=[0.5] * 3, std=[0.25] * 3).evaluate(drops)
    keeps = DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=OwnBatches(SequentialSampler(IMAGES), 16, False))
    assert built(mean=[0.5] * 3, std=[0.25] * 3).evaluate(keeps)["images"] == 40


class Spectrogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 16, 3, (2, 1), 1), nn.ReLU())
        self.fc = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.block(images).mean((2, 3)))


def test_as_many_channels_as_rows() -> None:
    models = [Spectrogram(), Spectrogram()]
    distiller = OnlineAdversarialDistiller(models, image_size=32, num_classes=3)
    assert [tap.shape for model in distiller.group.tapped for tap in model.taps] == [(16, 16, 32)] * 2


class WithFeatures(Net):
    def forward(self, images: Tensor) -> Any:
        features = self.second(self.first(images).relu()).relu().mean((2, 3))
        return features, self.fc(features)


def test_features_are_not_taken_for_logits() -> None:
    models = [WithFeatures(16), WithFeatures(16)]
    with pytest.raises(UserError, match=r"^models: model 0 \(WithFeatures\) returns vectors of 16 and 3 numbers"):
        OnlineAdversarialDistiller(models, image_size=8)


def test_discriminators_share_nothing() -> None:
    one = nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 1), nn.Sigmoid(), nn.Flatten(0))
    with pytest.raises(UserError, match=r"^discriminator: the function gives the same module"):
        OnlineAdversarialDistiller([Net(5), Net(5)], image_size=8, num_classes=3, discriminator=lambda shape: one)


def test_a_model_of_another_type_than_it_was_built_with() -> None:
    distiller = built()
    distiller.training_step(*batch())
    distiller.models[0].double()
    with pytest.raises(UserError, match=r"^model 0 \(Net\): first.weight: changed from torch.float32 to torch.float64"):
        distiller.training_step(*batch())


class Fourier(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 4, 3, dtype=torch.cfloat))


def test_complex_parameters() -> None:
    with pytest.raises(UserError, match=r"^models: model 1 \(Fourier\) has a complex parameter 'kernel'"):
        OnlineAdversarialDistiller([Net(4), Fourier()], image_size=8, num_classes=3)


def test_tensors_made_in_inference_mode() -> None:
    ends = []
    for inference in (False, True):
        torch.manual_seed(0)
        distiller = built()
        images, labels = batch()
        with torch.inference_mode(inference):
            images, soft = images.to(memory_format=torch.channels_last), nn.functional.one_hot(labels, 3).float()
        distiller.training_step(images, soft)
        ends.append(distiller.models[0].state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_labels_do_not_learn() -> None:
    images, _ = batch()
    ends = []
    for detached in (True, False):
        torch.manual_seed(0)
        distiller = built()
        soft = distiller.models[0](images).softmax(1)
        distiller.training_step(images, soft.detach() if detached else soft)
        ends.append(distiller.models[0].state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


class Stop(Callback):
    def on_epoch(self, epoch: int) -> None:
        raise KeyboardInterrupt


def test_a_run_goes_on_with_the_same_evaluation_images(tmp_path: Path) -> None:
    train = TensorDataset(IMAGES, LABELS)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "output_dir": tmp_path / "run", "progress": False}
    settings["mean"], settings["std"] = [0.5] * 3, [0.2] * 3
    with pytest.raises(KeyboardInterrupt):
        built().fit(train, TensorDataset(IMAGES[:8], LABELS[:8]), callbacks=[Stop()], **settings)
    with pytest.raises(UserError, match="data"):
        built().fit(train, TensorDataset(IMAGES[:8], LABELS[1:9]), resume=True, **settings)
    history = built().fit(train, TensorDataset(IMAGES[:8], LABELS[:8]), resume=True, **settings)
    assert [record["metrics"]["eval/images"] for record in history.epochs] == [8, 8]


class Judge(nn.Module):
    def __init__(self, channels: int, *, in_place: bool) -> None:
        super().__init__()
        self.act, self.last = nn.ReLU(inplace=in_place), nn.Linear(channels, 1)

    def forward(self, maps: Tensor) -> Any:
        return torch.sigmoid(self.last(self.act(maps).mean((2, 3))))[:, 0]


def test_a_discriminator_that_changes_the_maps() -> None:
    built(discriminator=lambda shape: Judge(shape[0], in_place=False)).training_step(*batch())
    with pytest.raises(UserError, match=r"^discriminator: changes the maps that it is given in place"):
        built(discriminator=lambda shape: Judge(shape[0], in_place=True))
    with pytest.raises(UserError, match=r"^discriminator: fails on 2 maps \(\d, 4, 4\) \(.*mat1 and mat2.*: build it"):
        built(discriminator=lambda shape: Judge(shape[0] + 1, in_place=False))


def test_parameters_that_were_frozen_before(capsys: pytest.CaptureFixture[str]) -> None:
    """The first lines and the summary say how many; a new distiller does not know who froze them."""
    models = [timm.create_model("test_resnet", num_classes=3) for _ in range(2)]
    settings: dict[str, Any] = {"num_classes": 3, "image_size": 32, "lr": 0.01, "method": "logit"}
    first = OnlineAdversarialDistiller(models, freeze_backbone=True, **settings)
    head = sum(parameter.numel() for parameter in models[0].get_classifier().parameters())
    total = sum(parameter.numel() for parameter in models[0].parameters())
    data = TensorDataset(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 3)
    first.fit(data, data, epochs=1, batch_size=4)
    assert "parameters learn" not in capsys.readouterr().err  # the line says "backbone frozen"
    second = OnlineAdversarialDistiller(models, **settings)
    assert second.summary().count(f"{total - head:,} parameters fixed") == 2
    second.fit(data, data, epochs=1, batch_size=4)
    assert f"{head:,} of {total:,} parameters learn" in capsys.readouterr().err
    assert "parameters fixed" not in built().summary()


class Named(Net):
    no_weight_decay: Any = frozenset({"second.weight"})


@pytest.mark.parametrize("names", [{"second.weight"}, ["second.weight"], lambda: {"second.weight"}])
def test_names_without_weight_decay(names: Any) -> None:
    models = [Named(), Named()]
    models[0].no_weight_decay = names
    distiller = OnlineAdversarialDistiller(
        models, image_size=8, num_classes=3, lr=0.01, weight_decay=0.1, decay_norms=False
    )
    groups = distiller.step.logit_groups[0].optimizer.param_groups
    decays = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    for model in models:
        found = {name: decays[parameter] for name, parameter in model.named_parameters()}
        assert {name for name, decay in found.items() if decay == 0.1} == {"first.weight", "fc.weight"}
        assert {name for name, decay in found.items() if decay == 0} == found.keys() - {"first.weight", "fc.weight"}


@pytest.mark.parametrize("names", [True, "second.weight", {1, 2}])
def test_what_are_no_names(names: Any) -> None:
    models = [Named(), Named()]
    models[1].no_weight_decay = names
    with pytest.raises(UserError, match=r"^decay_norms: Named.no_weight_decay gives .*, expected a set of parameter"):
        OnlineAdversarialDistiller(models, image_size=8, num_classes=3, lr=0.01, decay_norms=False)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_training_without_gradients(context: Any, tmp_path: Path) -> None:
    data = TensorDataset(IMAGES, LABELS)
    distiller = built()
    with pytest.raises(UserError, match=r"^fit: gradients are off \(no_grad or inference_mode\)"), context():
        distiller.fit(data, data, epochs=1, batch_size=8, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_that_were_built_in_inference_mode() -> None:
    with pytest.raises(UserError, match=r"^models: in inference_mode no model can be built"), torch.inference_mode():
        built()
    with torch.inference_mode():
        model = Net()
    with pytest.raises(UserError, match=r"^models: model 1 \(Net\) was built in inference_mode, so 'first.weight'"):
        OnlineAdversarialDistiller([Net(), model], image_size=8, num_classes=3)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_no_second_distiller_in_memory(copied: Any) -> None:
    with pytest.raises(UserError, match=r"^distiller: it cannot be copied or pickled: write it with save_checkpoint"):
        copied(built())


class Counting(Net):
    extra: Any = None

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_a_state_that_is_no_tensor(tmp_path: Path) -> None:
    data = TensorDataset(IMAGES, LABELS)
    models = [Counting(4), Counting(6)]
    models[0].extra, models[1].extra = torch.tensor(3), {"calls": 3}
    settings: dict[str, Any] = {"image_size": 8, "num_classes": 3, "lr": 0.01, "mean": [0.5] * 3, "std": [0.2] * 3}
    distiller = OnlineAdversarialDistiller(models, **settings)
    for write in (
        lambda: distiller.fit(data, data, epochs=1, batch_size=8, output_dir=tmp_path / "run", progress=False),
        lambda: distiller.save_checkpoint(tmp_path / "checkpoint"),
    ):
        with pytest.raises(UserError, match=r"^model 1 \(Counting\): its state holds a dict \(_extra_state\)"):
            write()
    assert list(tmp_path.iterdir()) == []
    models[1].extra = torch.tensor(4)
    distiller.save_checkpoint(tmp_path / "checkpoint")
    others = [Counting(4), Counting(6)]
    with pytest.raises(UserError, match="checkpoint"):
        OnlineAdversarialDistiller.from_checkpoint(tmp_path / "checkpoint", others)  # without such a state
    for other in others:
        other.extra = torch.tensor(0)
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "checkpoint", others)
    assert [int(model.extra) for model in again.models] == [3, 4]  # type: ignore[arg-type]


class Whitening(nn.Module):
    """A model that normalises images by the others of their batch, as batch normalisation left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("test_resnet", num_classes=2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images - images.mean()) / images.std())
        return logits


def test_a_source_that_mixes_the_images_of_a_batch() -> None:
    with pytest.raises(UserError, match=r"^model 0 \(Whitening\): what it gives for an image depends on the other"):
        OnlineAdversarialDistiller([Whitening(), "test_resnet"], num_classes=2, image_size=32, frozen=[0])
