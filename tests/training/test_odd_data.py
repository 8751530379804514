"""Data that changed, or that are not what they seem, from a run to its evaluation, its resumption and its models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from feature_gan_kd import Callback, OnlineAdversarialDistiller, UserError
from tests.training.test_odd_input import IMAGES, LABELS, built

STATED: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.2] * 3}
OTHERS = r"^evaluate: \S+ does not give the images that the models were evaluated on in their training: files"


def add_images(folder: Path, numbers: range, *, shift: int = 0) -> Path:
    for k in numbers:
        place = folder / "ab"[k % 2] / f"{k:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), ((37 * k + shift) % 256,) * 3).save(place)
    return folder


def run_of(data: str, run: Path, **settings: Any) -> OnlineAdversarialDistiller:
    distiller = OnlineAdversarialDistiller(["cifar_resnet14"] * 2, num_classes=2, image_size=8, lr=0.01, **settings)
    distiller.fit(data, epochs=1, batch_size=8, output_dir=run, progress=False)
    return distiller


def restored(run: Path) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller.from_checkpoint(next((run / "checkpoints").glob("step-*")))


def test_a_held_out_fifth_of_a_folder_that_grew_is_not_drawn_again(tmp_path: Path) -> None:
    data = add_images(tmp_path / "data", range(50))
    trained = run_of(str(data), tmp_path / "run")
    distiller = restored(tmp_path / "run")
    assert distiller.evaluate() == trained.evaluate()
    assert distiller.evaluate()["images"] == 10
    add_images(data, range(50, 60))
    for one in (distiller, trained):
        with pytest.raises(UserError, match=OTHERS) as caught:
            one.evaluate()
        assert "\n" not in str(caught.value)
    # Other settings ask for other images, and so does data that is named.
    distiller.group.config = distiller.config.replace(max_eval_samples=6)
    assert distiller.evaluate()["images"] == 6
    assert trained.evaluate(str(data))["images"] == 60
    for k in range(50, 60):
        (data / "ab"[k % 2] / f"{k:03}.png").unlink()
    assert trained.evaluate()["images"] == 10


def test_a_relative_path_leads_to_other_images_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, shift in (("here", 0), ("there", 99)):
        for split in ("train", "test"):
            add_images(tmp_path / place / "photos" / split, range(8), shift=shift)
    monkeypatch.chdir(tmp_path / "here")
    run_of("photos", Path("run"))
    assert restored(tmp_path / "here" / "run").evaluate()["images"] == 8
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(UserError, match=OTHERS):
        restored(tmp_path / "here" / "run").evaluate()
    shutil.rmtree("photos")
    shutil.copytree(tmp_path / "here" / "photos", "photos")
    assert restored(tmp_path / "here" / "run").evaluate()["images"] == 8


class Stop(Callback):
    def on_epoch(self, epoch: int) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("loads", [True, False])
def test_a_run_does_not_go_on_with_other_labels_or_more_images(loads: bool, tmp_path: Path) -> None:
    images = torch.cat([IMAGES, IMAGES.flip(3), IMAGES.flip(2)])
    labels, other = torch.arange(120) % 3, torch.arange(120) % 3
    other[8:] = (other[8:] + 1) % 3
    kept = torch.linspace(0, 119, 50).long()
    other[kept] = labels[kept]

    def data(own: torch.Tensor) -> Any:
        return DataLoader(tensors(own), batch_size=8) if loads else tensors(own)

    def tensors(own: torch.Tensor) -> TensorDataset:
        return TensorDataset(images[: len(own)], own)

    evaluation = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "output_dir": tmp_path / "run", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        built(**STATED).fit(data(labels), evaluation, callbacks=[Stop()], **options)
    for changed in (other, labels[:80]):
        with pytest.raises(UserError, match=r"was written with data .*resume with what it was started with$"):
            built(**STATED).fit(data(changed), evaluation, resume=True, **options)
    history = built(**STATED).fit(data(labels), evaluation, resume=True, **options)
    assert [record["step"] for record in history.epochs] == [15, 30]


class Named(Dataset[Any]):
    classes = tuple("abcde")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return IMAGES[index], int(LABELS[index])


def test_a_given_number_of_classes_outlives_a_checkpoint(tmp_path: Path) -> None:
    distiller = OnlineAdversarialDistiller(["cifar_resnet14"] * 2, num_classes=3, image_size=8, lr=0.01)
    distiller.fit(Named(), Named(), epochs=1, batch_size=4, output_dir=tmp_path / "run", progress=False)
    assert distiller.evaluate(Named())["images"] == 12
    assert restored(tmp_path / "run").evaluate(Named())["images"] == 12


def named_table() -> datasets.Dataset:
    columns = {"image": [PIL.Image.new("RGB", (8, 8), (k,) * 3) for k in (20, 230) * 6], "label": [0, 1] * 6}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})
    return datasets.Dataset.from_dict(columns, features=features)


def names_in(folders: list[Path]) -> list[Any]:
    return [json.loads((folder / "config.json").read_text()).get("label_names") for folder in folders]


def test_models_keep_their_class_names_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    first = OnlineAdversarialDistiller(["cifar_resnet14"] * 2, num_classes=2, image_size=8, lr=0.01)
    first.fit(named_table(), named_table(), epochs=1, batch_size=4, progress=False)
    published = first.save_pretrained(tmp_path / "first")
    models = [f"local-dir:{published[0]}", "cifar_resnet14"]
    second = OnlineAdversarialDistiller(models, num_classes=2, image_size=8, lr=0.01, **STATED)
    assert names_in(second.save_pretrained(tmp_path / "untrained")) == [["dark", "bright"], None]
    second.training_step(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    assert names_in(second.save_pretrained(tmp_path / "second")) == [["dark", "bright"]] * 2
    # A training on classes without names says that the old ones do not hold any more.
    second.fit(TensorDataset(IMAGES, LABELS % 2), TensorDataset(IMAGES, LABELS % 2), epochs=1, batch_size=8)
    assert names_in(second.save_pretrained(tmp_path / "third")) == [None, None]


def shifted(items: list[Any]) -> Any:
    images, labels = zip(*items, strict=True)
    return torch.stack(images), (torch.tensor(labels) + 1) % 3


@pytest.mark.parametrize("kind", ["collate_fn", "transform"])
def test_names_of_other_labels_are_not_published(kind: str, tmp_path: Path) -> None:
    if kind == "transform":
        data: Any = named_table().with_transform(lambda rows: {**rows, "label": [1 - k for k in rows["label"]]})
        classes = 2
    else:
        data, classes = DataLoader(Named(), batch_size=4, collate_fn=shifted), 3
        data.dataset.classes = ["dark", "bright", "grey"]
    distiller = OnlineAdversarialDistiller(["cifar_resnet14"] * 2, num_classes=classes, image_size=8, lr=0.01)
    distiller.fit(data, data, epochs=1, batch_size=4, progress=False)
    assert names_in(distiller.save_pretrained(tmp_path / "published")) == [None, None]
