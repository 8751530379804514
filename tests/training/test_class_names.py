"""Every label means one class, whichever order a published model and the data have their classes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import transformers_models
from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.export import load_published
from feature_gan_kd.models.class_order import order_of, stated_class_names
from feature_gan_kd.training.class_names import align_class_names, notes_on_frozen

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
GREY = (99, 99, 99)
SMALL: dict[str, Any] = {"image_size": 32, "batch_size": 6, "lr": 0.05, "epochs": 3, "seed": 1}


def data(*names: str, count: int = 8) -> datasets.DatasetDict:
    """Images of one colour each, labelled with the index of its name."""
    columns = {
        "image": [Image.new("RGB", (32, 32), COLOURS.get(name, GREY)) for name in names for _ in range(count)],
        "label": [k for k in range(len(names)) for _ in range(count)],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(names)))
    split = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(train=split, test=split)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models that know green, red and blue, in this order."""
    distiller = OnlineAdversarialDistiller(["test_resnet", "test_resnet"], num_classes=3, **SMALL)
    history = distiller.fit(data("green", "red", "blue"), progress=False)
    assert history.last["metrics"]["eval/accuracy/0"] == 100
    folders = distiller.save_pretrained(tmp_path_factory.mktemp("published"))
    return [f"local-dir:{folder}" for folder in folders]


def fit(models: list[Any], *names: str, output_dir: Path | None = None, **settings: Any) -> OnlineAdversarialDistiller:
    """Hardly trains."""
    distiller = OnlineAdversarialDistiller(models, num_classes=3, **{**SMALL, "epochs": 1, "lr": 1e-6, **settings})
    distiller.fit(data(*names), output_dir=output_dir, progress=True)
    return distiller


@pytest.mark.parametrize("frozen", [(), (0,)], ids=["learners", "frozen"])
def test_a_classifier_is_put_into_the_order_of_the_data(
    published: list[str], frozen: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distiller = fit(published, "blue", "green", "red", output_dir=tmp_path / "run", frozen=frozen, topology="star")
    assert distiller.evaluate()["accuracy"] == [100, 100]
    note = "model 0 (test_resnet): its classes were in another order than those of the data; its classifier"
    assert note in capsys.readouterr().err
    for folder in sorted((tmp_path / "run" / "networks").iterdir()):
        model, config = load_published(folder)
        assert config["label_names"] == ["blue", "green", "red"]
        cfg = config["pretrained_cfg"]
        mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        for name in COLOURS:
            image = torch.tensor(COLOURS[name]).view(3, 1, 1).expand(3, 32, 32) / 255
            with torch.no_grad():
                answer = int(model(((image - mean) / std)[None]).argmax())
            assert config["label_names"][answer] == name


def test_the_logits_are_the_same_but_for_their_order(published: list[str]) -> None:
    distiller = OnlineAdversarialDistiller(published, **SMALL, frozen=[0], topology="star")
    images = torch.rand(2, 3, 32, 32)
    before = [model.eval()(images) for model in distiller.models]
    notes = align_class_names(distiller.group, ["red", "blue", "green"])
    assert len(notes) == 2
    for model, logits in zip(distiller.models, before, strict=True):
        torch.testing.assert_close(model.eval()(images), logits[:, [1, 2, 0]])
        assert stated_class_names(model, 3) == ["red", "blue", "green"]
    assert align_class_names(distiller.group, ["red", "blue", "green"]) == []  # once is enough


def test_plain_and_natural_sort(published: list[str]) -> None:
    assert order_of(["1", "2", "10"], ["1", "10", "2"]) == [0, 2, 1]
    assert order_of(["cat", "dog"], ["cat", "cow"]) is None
    assert order_of(["crane", "crane", "dog"], ["crane", "dog", "crane"]) is None
    assert order_of(["crane", "crane"], ["crane", "crane"]) == [0, 1]


def test_a_run_is_not_resumed_where_the_numbers_mean_other_classes(published: list[str], tmp_path: Path) -> None:
    """The images and label numbers are the same."""
    fit(published, "red", "blue", "green", output_dir=tmp_path / "run", lr=0.01, epochs=1)
    again = OnlineAdversarialDistiller(published, num_classes=3, **{**SMALL, "lr": 0.01, "epochs": 1})
    renamed = data("red", "blue", "green")
    for name, split in renamed.items():
        numbers = split.cast_column("label", datasets.Value("int64"))
        renamed[name] = numbers.cast_column("label", datasets.ClassLabel(names=["green", "blue", "red"]))
    with pytest.raises(UserError, match=r"was written with class_names 0 \"red\", this run has \"green\": resume with"):
        again.fit(renamed, output_dir=tmp_path / "run", resume=True, progress=False)


def test_a_resumed_run_is_exact(published: list[str], tmp_path: Path) -> None:
    names = ("red", "blue", "green")
    whole = fit(published, *names, output_dir=tmp_path / "whole", lr=0.01, epochs=2)
    fit(published, *names, output_dir=tmp_path / "run", lr=0.01, epochs=2)
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-8")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    again = OnlineAdversarialDistiller(published, num_classes=3, **{**SMALL, "lr": 0.01, "epochs": 2})
    again.fit(data(*names), output_dir=tmp_path / "run", resume=True, progress=False)
    for one, other in zip(whole.models, again.models, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )
    restored = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "run" / "checkpoints" / "step-8")
    assert restored.evaluate(data(*names))["accuracy"] == [100, 100]


def test_a_second_training_on_data_in_another_order(published: list[str]) -> None:
    distiller = fit(published, "red", "blue", "green")
    distiller.fit(data("blue", "red", "green"), progress=False)
    assert distiller.evaluate()["accuracy"] == [100, 100]


def test_a_module_takes_its_names_to_the_next_distiller() -> None:
    first = fit(["test_resnet", "test_resnet"], "red", "blue", "green", lr=0.05, epochs=3)
    assert first.evaluate()["accuracy"] == [100, 100]
    second = fit([first.models[0], "test_resnet"], "blue", "green", "red", frozen=[0], topology="star")
    assert second.evaluate()["accuracy"][0] == 100
    align_class_names(second.group, None)
    assert stated_class_names(second.models[0], 3) == ["blue", "green", "red"]
    assert stated_class_names(second.models[1], 3) is None  # it will learn classes without names


def contents(distiller: OnlineAdversarialDistiller) -> list[Tensor]:
    return [tensor.clone() for model in distiller.models for tensor in model.state_dict().values()]


@pytest.mark.parametrize("frozen", [(), (0,)], ids=["learner", "frozen"])
def test_other_classes_are_refused(published: list[str], frozen: tuple[int, ...], tmp_path: Path) -> None:
    model = timm.create_model(published[0], pretrained=True)
    model.pretrained_cfg["label_names"] = ["green", "red", "violet"]
    distiller = OnlineAdversarialDistiller([model, published[1]], **SMALL, frozen=frozen, topology="star")
    before = contents(distiller)
    with pytest.raises(UserError) as error:
        distiller.fit(data("blue", "green", "red"), output_dir=tmp_path / "run", progress=False)
    assert str(error.value) == (
        "models: model 0 (test_resnet) knows other classes than the data: class 0 is 'green' in the model and 'blue' "
        "in the data: give it a new classifier without these names (model.reset_classifier(3), "
        "model.pretrained_cfg.pop('label_names'))"
    )
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(one, other) for one, other in zip(before, contents(distiller), strict=True))


def test_the_remedy_helps(published: list[str]) -> None:
    model = timm.create_model(published[0], pretrained=True)
    model.pretrained_cfg["label_names"] = ["green", "red", "violet"]
    model.reset_classifier(3)
    model.pretrained_cfg.pop("label_names")
    fit([model, published[1]], "blue", "green", "red")


class Multiplied(nn.Module):
    """A model of one's own whose classifier is a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.matrix = nn.Parameter(torch.randn(4, 3))
        self.pretrained_cfg = {"label_names": {"0": "green", "1": "red", "2": "blue"}}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 3)."""
        logits: Tensor = self.body(x).mean((2, 3)) @ self.matrix
        return logits


def test_a_classifier_that_cannot_be_reordered_is_refused(published: list[str]) -> None:
    distiller = OnlineAdversarialDistiller([Multiplied(), published[0]], **SMALL)
    before = contents(distiller)
    with pytest.raises(UserError, match=r"class 0 is 'green', in the data 'blue'\) and no linear classifier"):
        distiller.fit(data("blue", "green", "red"), progress=False)
    assert all(torch.equal(one, other) for one, other in zip(before, contents(distiller), strict=True))
    distiller.fit(data("green", "red", "blue"), progress=False)  # the same order needs no change


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s", "test_vit", "squeezenet"])
def test_every_kind_of_classifier(name: str) -> None:
    import torchvision

    small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 32} if name.startswith("deit") else {}
    model: Any = (
        torchvision.models.squeezenet1_1(num_classes=3)
        if name == "squeezenet"
        else timm.create_model(name, num_classes=3, **small)
    )
    model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), "label_names": ["a", "b", "c"]}
    side = 224 if name == "levit_128s" else 32
    partner = timm.create_model("test_resnet", num_classes=3)
    distiller = OnlineAdversarialDistiller([model, partner], image_size=side)
    images = torch.rand(2, 3, side, side)
    before = model.eval()(images)
    align_class_names(distiller.group, ["c", "a", "b"])
    torch.testing.assert_close(model(images), before[:, [2, 0, 1]], rtol=1e-4, atol=1e-5)


def test_a_model_of_transformers_has_its_names_in_its_config() -> None:
    model: Any = transformers_models.build("vit", 3).eval()
    assert stated_class_names(model, 3) is None  # LABEL_0, ...
    model.config.id2label = {0: "dog", 1: "cat", 2: "cow"}
    partner = timm.create_model("test_resnet", num_classes=3)
    distiller = OnlineAdversarialDistiller([model, partner], image_size=32, frozen=[0], topology="star")
    images = torch.rand(2, 3, 32, 32)
    before = model(images).logits
    align_class_names(distiller.group, ["cat", "cow", "dog"])
    torch.testing.assert_close(model(images).logits, before[:, [1, 2, 0]])
    assert model.config.id2label == {0: "cat", 1: "cow", 2: "dog"}


def test_a_replaced_classifier_has_nothing_to_compare(published: list[str]) -> None:
    distiller = OnlineAdversarialDistiller(published, num_classes=2, **SMALL)
    assert align_class_names(distiller.group, ["x", "y"]) == []


def test_own_loop_refuses_models_whose_labels_mean_other_classes(published: list[str], tmp_path: Path) -> None:
    other = fit(published, "blue", "green", "red").save_pretrained(tmp_path / "other")[0]
    distiller = OnlineAdversarialDistiller([published[0], f"local-dir:{other}"], num_classes=3, **SMALL)
    with pytest.raises(UserError, match=r"^models: class 0 is 'green' in model 0 and 'blue' in model 1: fit"):
        distiller.training_step(torch.randn(6, 3, 32, 32), torch.arange(6) % 3)


def test_models_are_evaluated_before_training_in_their_own_order(published: list[str]) -> None:
    distiller = OnlineAdversarialDistiller(published, **SMALL)
    assert distiller.evaluate(data("green", "red", "blue"))["accuracy"] == [100, 100]
    assert distiller.evaluate(data("blue", "green", "red"))["accuracy"] == [100, 100]
    with pytest.raises(UserError, match=r"^labels: class 'grey' of split 'test' is not among the 3 classes of the mod"):
        distiller.evaluate(data("grey", "green", "red"))
    distiller.models[1].pretrained_cfg["label_names"] = ["red", "green", "blue"]  # type: ignore[index, operator]
    with pytest.raises(UserError, match="class 0 is 'green' in model 0 and 'red' in model 1: fit them first"):
        distiller.evaluate(data("green", "red", "blue"))


def test_what_is_not_known_of_a_frozen_model_is_said(published: list[str]) -> None:
    unnamed = timm.create_model(published[0], pretrained=True)
    unnamed.pretrained_cfg.pop("label_names")
    star = {"frozen": [0], "topology": "star"}
    distiller = OnlineAdversarialDistiller([unnamed, published[1]], **SMALL, **star)
    note = "model 0 (test_resnet): its class names are not known: class k of the data is taken as its output k"
    assert align_class_names(distiller.group, ["green", "red", "blue"]) == [note]
    distiller = OnlineAdversarialDistiller(published, **SMALL, **star)
    assert align_class_names(distiller.group, None) == [note.replace("its class names", "the data's class names")]


def test_a_frozen_model_that_teaches_noise_is_said(published: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    star: dict[str, Any] = {**SMALL, "frozen": [0], "topology": "star", "num_classes": 2}
    untrained = OnlineAdversarialDistiller(["test_resnet", "test_vit"], **{**star, "epochs": 1})
    untrained.fit(data("blue", "red"), progress=True)
    line = "model 0 (test_resnet) is frozen without trained weights, so it teaches noise: name one with weights"
    assert line in capsys.readouterr().err
    new_head = OnlineAdversarialDistiller([published[0], "test_vit"], **star)
    (note,) = notes_on_frozen(new_head.group)
    assert note == "model 0 (test_resnet) knows 3 other classes, so it teaches by its feature maps alone"
    module = timm.create_model("test_resnet", num_classes=2)
    assert notes_on_frozen(OnlineAdversarialDistiller([module, "test_vit"], **star).group) == []
    assert (
        notes_on_frozen(OnlineAdversarialDistiller(["test_resnet", "test_vit"], **{**star, "frozen": []}).group) == []
    )
    trained = OnlineAdversarialDistiller([published[0], "test_vit"], **{**star, "num_classes": 3})
    assert notes_on_frozen(trained.group) == []


def test_the_names_are_in_the_published_config(published: list[str]) -> None:
    config = json.loads((Path(published[0].removeprefix("local-dir:")) / "config.json").read_text())
    assert config["label_names"] == ["green", "red", "blue"]


def test_without_labels_the_models_own_names_count(published: list[str], tmp_path: Path) -> None:
    """Their data have no classes: models that state theirs in another order must still mean the same by a logit."""
    settings: dict[str, Any] = {**SMALL, "labels": False, "num_classes": 3, "method": "logit"}
    distiller = OnlineAdversarialDistiller(published, **settings)
    for k, names in enumerate((["red", "green", "blue"], ["blue", "red", "green"])):
        distiller.models[k].pretrained_cfg["label_names"] = names  # type: ignore[index, operator]
    weight = next(iter(distiller.models[1].get_classifier().parameters())).clone()  # type: ignore[operator]
    notes = align_class_names(distiller.group, None)
    assert notes == [
        "classes of model 0: 0 is 'red', 1 is 'green', 2 is 'blue'; labels to evaluate on are taken so, if they have "
        "no names",
        "model 1 (test_resnet): its classes were in another order than those of model 0; its classifier was put into "
        "that one",
    ]
    after = next(iter(distiller.models[1].get_classifier().parameters()))  # type: ignore[operator]
    assert torch.equal(after, weight[[1, 2, 0]])
    distiller.models[1].pretrained_cfg["label_names"] = ["ant", "bee", "cat"]  # type: ignore[index, operator]
    with pytest.raises(UserError, match="knows other classes than the data"):
        align_class_names(distiller.group, None)


def test_labels_without_names_mean_one_class_to_all_models(published: list[str]) -> None:
    distiller = OnlineAdversarialDistiller(published, **SMALL)
    for k, names in enumerate((["red", "green", "blue"], ["blue", "red", "green"])):
        distiller.models[k].pretrained_cfg["label_names"] = names  # type: ignore[index, operator]
    with pytest.raises(UserError, match=r"^models: class 0 is 'red' in model 0 and 'blue' in model 1, and the data's"):
        align_class_names(distiller.group, None)
