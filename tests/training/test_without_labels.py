"""Models that learn without labels, sources without a classifier, and sources that know other classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from feature_gan_kd import DistillConfig, OnlineAdversarialDistiller, UserError
from feature_gan_kd.cli.report import report
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.training import checkpoint_files
from feature_gan_kd.training.describe_recipe import describe_recipe
from feature_gan_kd.training.evaluate import Processes, evaluate

SMALL: dict[str, Any] = {"image_size": 32, "batch_size": 8, "max_train_samples": 32, "max_eval_samples": 24, "seed": 1}
HEADLESS: dict[str, Any] = {**SMALL, "labels": False, "frozen": [0], "epochs": 2}


class Encoder(nn.Module):
    """Gives a map, tokens or a vector for each image, and no logits."""

    def __init__(self, kind: str = "map") -> None:
        super().__init__()
        self.kind = kind
        self.convolution = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.convolution(images))
        if self.kind == "vector":
            return features.mean((2, 3))
        return features.flatten(2).transpose(1, 2) if self.kind == "tokens" else features


@pytest.fixture
def run(tmp_path: Path) -> tuple[OnlineAdversarialDistiller, Path]:
    distiller = OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], **HEADLESS)
    distiller.fit(output_dir=tmp_path / "run", progress=False)
    return distiller, tmp_path / "run"


def test_a_backbone_is_published_that_timm_loads(run: tuple[OnlineAdversarialDistiller, Path]) -> None:
    distiller, folder = run
    assert distiller.config.method == "aligned"
    assert distiller.config.recipe == "unlabeled"
    published = timm.create_model(f"local-dir:{folder / 'networks' / '1-cifar_resnet8'}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(published(images), distiller.models[1].eval()(images))
    assert published.num_classes == 0
    card = (folder / "networks" / "1-cifar_resnet8" / "README.md").read_text()
    assert "A backbone without a classifier, which gives features of images of 32 x 32 pixels" in card
    assert "No labels were used." in card
    assert "nearest neighbours" in card


def test_a_run_is_evaluated_by_nearest_neighbours(run: tuple[OnlineAdversarialDistiller, Path]) -> None:
    """The figures are those of a classification by hand, each image by all the others."""
    distiller, folder = run
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    source = distiller.evaluate()
    assert record["eval/accuracy/1"] == pytest.approx(source["accuracy"][1])
    assert record["eval/images"] == 24
    assert not [name for name in record if "train/cross_entropy" in name or "train/kl" in name]
    assert record["train/aligned/1"] > 0


def test_no_picture_shows_where_an_encoder_sees_a_class(run: tuple[OnlineAdversarialDistiller, Path]) -> None:
    """Its features are no answers, although their numbers may be those of classes."""
    said = r"^grad_cam: model 0 \(.*\) of .* has no classifier of the learners' classes"
    with pytest.raises(UserError, match=said):
        report(run[1], grad_cam=(0,))


def test_a_checkpoint_holds_which_models_classify(run: tuple[OnlineAdversarialDistiller, Path]) -> None:
    distiller, folder = run
    newest = checkpoint_files.list_checkpoints(folder / "checkpoints")[0]
    again = OnlineAdversarialDistiller.from_checkpoint(newest)
    assert again.group.modules.classes == [0, 0]
    for one, other in zip(distiller.models, again.models, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert again.evaluate()["accuracy"] == distiller.evaluate()["accuracy"]


def test_a_stopped_run_goes_on_exactly(run: tuple[OnlineAdversarialDistiller, Path], tmp_path: Path) -> None:
    whole, _ = run
    half = OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], **HEADLESS)
    half.fit(output_dir=tmp_path / "half", progress=False)
    for step in checkpoint_files.list_checkpoints(tmp_path / "half" / "checkpoints")[:1]:
        step.rename(tmp_path / "gone")  # as if it had been stopped after the first epoch
    resumed = OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], **HEADLESS)
    resumed.fit(output_dir=tmp_path / "half", resume=True, progress=False)
    for one, other in zip(whole.models, resumed.models, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_pictures_alone_are_enough(tmp_path: Path) -> None:
    """No label anywhere: nothing is evaluated, and the last weights are published."""
    pixels = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for k in range(16):
        Image.fromarray(pixels.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{k}.png")
    distiller = OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], **HEADLESS)
    history = distiller.fit(str(tmp_path / "photos"), output_dir=tmp_path / "run", progress=False)
    assert history.accuracy == []
    assert history.ensemble is None
    assert history.best == []
    assert history.best_epoch == history.last
    assert sorted(path.name for path in (tmp_path / "run" / "networks").iterdir()) == ["0-test_vit", "1-cifar_resnet8"]


@pytest.mark.parametrize("kind", ["map", "tokens", "vector"])
def test_an_encoder_of_ones_own_teaches_beside_labels(kind: str) -> None:
    """It has no logits, so that over its edge the maps alone are compared; it answers by nearest neighbours."""
    torch.manual_seed(0)
    distiller = OnlineAdversarialDistiller(
        [Encoder(kind), "cifar_resnet8"], frozen=[0], num_classes=10, **{**SMALL, "epochs": 1}, mean=[0.5], std=[0.5]
    )
    assert distiller.group.modules.classes == [0, 10]
    terms = distiller.summary().split("connection")[1]
    assert "adversarial" in terms
    assert "logits" not in terms
    record = distiller.fit(progress=False).last["metrics"]
    assert {"train/cross_entropy/1", "train/adversarial/1", "eval/accuracy/0"} <= record.keys()
    assert "train/kl/1" not in record
    # The ensemble is one of classifiers.
    assert record["eval/accuracy/ensemble"] == record["eval/accuracy/1"]


def test_a_frozen_source_keeps_its_own_classes(tmp_path: Path) -> None:
    first = OnlineAdversarialDistiller(["cifar_resnet8", "test_vit"], num_classes=7, image_size=32)
    folders = first.save_pretrained(tmp_path, mean=[0.5] * 3, std=[0.5] * 3)
    names = [f"local-dir:{folders[0]}", "test_vit", "test_vit"]
    distiller = OnlineAdversarialDistiller(names, frozen=[0], num_classes=10, topology="complete", image_size=32)
    assert distiller.group.modules.classes == [7, 10, 10]
    assert [str(edge) for edge in distiller.group.modules.logit_edges] == ["1->2", "2->1"]
    metrics = distiller.training_step(torch.randn(4, 3, 32, 32), torch.arange(4))
    assert {"kl/1", "kl/2"} <= metrics.keys()
    learns = OnlineAdversarialDistiller(names, num_classes=10, topology="complete", image_size=32)
    assert learns.group.modules.classes == [10, 10, 10]


def test_sources_without_a_classifier_and_logits_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"^method: logit compares logits alone, and model 0 .test_vit. and .*no clas"):
        OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], method="logit", **HEADLESS)
    with pytest.raises(UserError, match=r"^labels: method vanilla learns from labels alone"):
        OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], method="vanilla", **HEADLESS)
    with pytest.raises(UserError, match=r"^adversarial_interval: without labels"):
        OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], adversarial_interval=2, **HEADLESS)
    with pytest.raises(UserError, match=r"has no classifier, it only encodes: .*labels=False"):
        OnlineAdversarialDistiller([timm.create_model("test_vit", num_classes=0), "cifar_resnet8"], num_classes=5)


@pytest.mark.parametrize("setting", ["smoothing", "kl_start_fraction", "labeled_fraction"])
def test_settings_that_act_on_labels_are_refused_without_them(setting: str) -> None:
    with pytest.raises(UserError, match=f"^{setting}: has no effect without labels"):
        DistillConfig(labels=False, **{setting: 0.5})


def left_out(**settings: Any) -> list[str]:
    """What the first lines of a run say about presets that give way."""
    built = OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], **{**HEADLESS, **settings})
    return [line for line in describe_recipe(built.group) if "left out" in line]


def test_presets_that_give_way_are_said_if_the_recipe_has_them() -> None:
    assert left_out() == []
    assert left_out(augmentation="none") == []
    assert left_out(color_jitter=0.4) == []
    why = "is left out: the models learn without labels"
    assert left_out(recipe="scratch") == [f"the recipe's smoothing 0.1 {why}"]
    assert left_out(recipe="finetune") == [f"the recipe's kl_start_fraction 0.1 {why}"]
    assert left_out(recipe="scratch", color_jitter=0.4, smoothing=0.0) == [
        "the recipe's aa rand-m9-mstd0.5 is left out: color_jitter 0.4 takes its place"
    ]
    assert left_out(decay_only_update=True) == [
        "the recipe's joint_backward True is left out: decay_only_update needs a second optimiser"
    ]


def test_known_classes_let_logits_teach_without_labels() -> None:
    distiller = OnlineAdversarialDistiller(
        ["test_vit", "cifar_resnet8"], labels=False, num_classes=10, method="logit", image_size=32
    )
    metrics = distiller.training_step(torch.randn(4, 3, 32, 32))
    assert set(metrics) == {"kl/0", "kl/1", "skipped"}


class Fixed(nn.Module):
    """Gives the pixels of an image as its features."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.mark.parametrize("shares", [[30], [13, 17], [30, 0]])
def test_each_image_is_classified_by_all_others_of_all_processes(shares: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(30, 5, 1, 1, generator=generator), torch.randint(3, (30,), generator=generator)
    vectors = torch.nn.functional.normalize(images.flatten(1).double(), dim=1)
    cosines = vectors @ vectors.T
    right = 0
    for i in range(30):
        nearest = [j for j in cosines[i].argsort(descending=True).tolist() if j != i][:20]
        votes = [sum(float(torch.exp(cosines[i, j] / 0.07)) for j in nearest if labels[j] == c) for c in range(3)]
        right += votes.index(max(votes)) == labels[i]
    encoder = Fixed()
    wholes = iter([*images.flatten(1).split(shares), *labels.double()[:, None].split(shares)])
    del wholes
    results = []
    for k, share in enumerate(shares):
        begin = sum(shares[:k])

        def gather(rows: Tensor, begin: int = begin) -> tuple[Tensor, int]:
            return (labels.double()[:, None] if rows.dtype == torch.float64 else images.flatten(1)), begin

        def add(sums: Tensor, own: int = share) -> Tensor:
            return torch.tensor([5.0, 1.0]).double() if sums.shape == (2,) else sums

        own = [(images[begin : begin + share], labels[begin : begin + share])]
        if share:
            results += evaluate([[encoder]], own, 0, encoders=[encoder], processes=Processes(add, gather))
    total = sum(one.models[0].accuracy * one.images for one in results) / 100
    assert total == pytest.approx(int(right))


def test_features_of_a_model_are_its_vector_or_its_last_map() -> None:
    images = torch.randn(2, 3, 32, 32)
    model = timm.create_model("test_vit", num_classes=0).eval()
    with torch.no_grad():
        assert torch.equal(TappedModel(model, (), "it", classifies=False).features(images), model(images))
    with pytest.raises(UserError, match="no vector for an image"):
        TappedModel(Encoder(), (), "it", classifies=False).features(images)


def test_a_classifier_that_nothing_trains_is_refused() -> None:
    frozen = timm.create_model("test_vit", num_classes=7)
    with pytest.raises(UserError, match=r"^num_classes: without labels nothing teaches the classifier of model 1"):
        OnlineAdversarialDistiller([frozen, "cifar_resnet8"], labels=False, num_classes=3, frozen=[0], image_size=32)


def test_the_deepest_map_of_a_pyramid_is_taken() -> None:
    pyramid = timm.create_model("test_resnet", features_only=True)
    distiller = OnlineAdversarialDistiller([pyramid, "cifar_resnet8"], labels=False, frozen=[0], image_size=32)
    assert distiller.group.tapped[0].taps[0].layer == "layer4"


class Masked(Encoder):
    """Shows another part of its map in every call, as a masked autoencoder does."""

    def forward(self, images: Tensor) -> Any:
        features = super().forward(images).flatten(2)
        kept = torch.randperm(features.shape[2])[:4]
        return features[:, :, kept].transpose(1, 2)


def test_a_source_that_draws_random_numbers_is_refused() -> None:
    with pytest.raises(UserError, match=r"gives other features for the same images at every call"):
        OnlineAdversarialDistiller([Masked(), "cifar_resnet8"], labels=False, frozen=[0], image_size=32)


def test_cards_say_what_acted_on_each_model(tmp_path: Path) -> None:
    """A source with other classes: no logits teach, and its own figure is one of nearest neighbours."""
    frozen = timm.create_model("test_vit", num_classes=7)
    distiller = OnlineAdversarialDistiller(
        [frozen, "cifar_resnet8"], num_classes=10, frozen=[0], **{**SMALL, "epochs": 1}, mean=[0.5], std=[0.5]
    )
    distiller.fit(progress=False)
    source, learner = (folder / "README.md" for folder in distiller.save_pretrained(tmp_path))
    assert "This model was frozen" in source.read_text()
    assert "no classifier of these classes: each image was classified by its nearest neighbours" in source.read_text()
    assert "top-1 accuracy of nearest neighbours" in source.read_text()
    said = "This model learned from the labels and from its source model's feature maps (adversarial)."
    assert said in learner.read_text()
    assert "nearest neighbours" not in learner.read_text()


def test_the_number_of_neighbours_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**HEADLESS, "epochs": 1, "max_eval_samples": 5}
    OnlineAdversarialDistiller(["test_vit", "cifar_resnet8"], **settings).fit()
    assert "by its 4 nearest neighbours among the evaluation images" in capsys.readouterr().err


def test_a_checkpoint_keeps_the_class_names_of_a_source_with_other_classes(tmp_path: Path) -> None:
    frozen = timm.create_model("test_vit", num_classes=2)
    frozen.pretrained_cfg["label_names"] = ["day", "night"]
    distiller = OnlineAdversarialDistiller(
        [frozen, "cifar_resnet8"], num_classes=10, frozen=[0], **{**SMALL, "epochs": 1}, mean=[0.5], std=[0.5]
    )
    distiller.fit(progress=False)
    distiller.save_checkpoint(tmp_path / "checkpoint")
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "checkpoint")
    folder, _ = again.save_pretrained(tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["label_names"] == ["day", "night"]


def test_cards_name_all_data_by_their_last_part(tmp_path: Path) -> None:
    """A card is public: it tells no path of this machine."""
    pixels = np.random.default_rng(0)
    for place in ("train/a", "train/b", "more", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        for k in range(6):
            Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / place / f"{k}.png")
    distiller = OnlineAdversarialDistiller(
        ["test_vit", "cifar_resnet8"], num_classes=2, image_size=32, epochs=1, batch_size=6
    )
    train, test, more = (str(tmp_path / name) for name in ("train", "test", "more"))
    distiller.fit(train, test, unlabeled_data=more, progress=False)
    card = (distiller.save_pretrained(tmp_path / "out")[0] / "README.md").read_text()
    assert "- Data: train, and more without labels; evaluated on test" in card
    assert "name: test" in card
    assert str(tmp_path) not in card
