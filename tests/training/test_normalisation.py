"""Each model sees its own normalisation exactly once, and what is published is what was seen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.models.normalisation import Normalisation
from tests.helpers.small_models import GroupNormModel

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TEACHERS = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
PIXELS = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float() / 255
LABELS = torch.arange(12) % 2


def normalised(mean: Any, std: Any) -> Tensor:
    return (PIXELS - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


FLOATS = TensorDataset(normalised(MEAN, STD), LABELS)
BYTES = TensorDataset((PIXELS * 255).round().to(torch.uint8), LABELS)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """The name of a published model whose config states `TEACHERS`."""
    model = timm.create_model("test_resnet", num_classes=2)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": TEACHERS[0], "std": TEACHERS[1]}
    timm.models.save_for_hf(model, tmp_path / "teacher", model_config={"num_classes": 2}, safe_serialization=True)
    return f"local-dir:{tmp_path / 'teacher'}"


def build(*models: Any, **settings: Any) -> OnlineAdversarialDistiller:
    return OnlineAdversarialDistiller(models, num_classes=2, image_size=16, lr=1e-9, **settings)


def seen_in(distiller: OnlineAdversarialDistiller, index: int, data: Any, **options: Any) -> Tensor:
    """What a model was given in the evaluation of a training."""
    given: list[Tensor] = []
    hook = distiller.models[index].register_forward_pre_hook(lambda _, images: given.append(images[0].detach()))
    distiller.fit(data, data, epochs=1, batch_size=12, progress=False, **options)
    hook.remove()
    return given[-1]


@pytest.mark.parametrize("peer", ["teacher", "test_vit"])
def test_floats_without_a_statement_are_given_to_all_as_they_are(teacher: str, peer: str) -> None:
    distiller = build(teacher, teacher if peer == "teacher" else peer)
    for k in (0, 1):
        assert torch.equal(seen_in(distiller, k, FLOATS), FLOATS.tensors[0])


@pytest.mark.parametrize("stated", ["fit", "constructor"])
def test_floats_with_mean_and_std_reach_each_model_in_its_own(teacher: str, stated: str) -> None:
    statement: dict[str, Any] = {"mean": MEAN, "std": STD}
    distiller = build(teacher, "test_vit", **(statement if stated == "constructor" else {}))
    options = statement if stated == "fit" else {}
    torch.testing.assert_close(seen_in(distiller, 0, FLOATS, **options), normalised(*TEACHERS), rtol=0, atol=1e-5)
    assert torch.equal(seen_in(distiller, 1, FLOATS, **options), FLOATS.tensors[0])


def test_pixels_reach_a_frozen_module_of_timm_as_by_name(teacher: str) -> None:
    module = timm.create_model(teacher, pretrained=True)
    for given in (teacher, module):
        seen = seen_in(build(given, "test_vit", frozen=[0]), 0, BYTES)
        torch.testing.assert_close(seen, normalised(*TEACHERS), rtol=0, atol=2e-2)


def test_modules_that_are_stated_as_pretrained_keep_what_their_config_says(teacher: str) -> None:
    module = timm.create_model(teacher, pretrained=True)
    other = timm.create_model(teacher, pretrained=True)
    distiller = build(module, other, pretrained=True)
    assert distiller.config.recipe == "finetune"
    torch.testing.assert_close(seen_in(distiller, 1, BYTES), normalised(*TEACHERS), rtol=0, atol=2e-2)


def test_a_frozen_module_that_states_none_is_asked_for(tmp_path: Path) -> None:
    models = [GroupNormModel(4, classes=10), GroupNormModel(4, classes=10)]
    distiller = OnlineAdversarialDistiller(models, image_size=8, frozen=[0])
    with pytest.raises(UserError, match=r"^frozen: model 0 \(GroupNormModel\) does not state .*: give mean and std"):
        distiller.fit(epochs=1, output_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_first_lines_say_it(teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(data: Any, **options: Any) -> str:
        build(teacher, "test_vit").fit(data, data, epochs=1, batch_size=12, **options)
        return capsys.readouterr().err

    assert "tensors of floats, given to every model as they are" in lines(FLOATS)
    given = "normalised with the given mean 0.5 0.4 0.3, std 0.2 0.25 0.3"
    assert f"tensors of floats, {given}" in lines(FLOATS, mean=MEAN, std=STD)
    assert f"pixels, {given}" in lines(BYTES, mean=MEAN, std=STD)
    assert re.search("pixels normalised with mean 0.*: the training images' own", lines(BYTES))


def test_a_run_that_publishes_asks_for_the_normalisation_of_floats(tmp_path: Path) -> None:
    distiller = build("test_resnet", "test_vit")
    with pytest.raises(UserError, match=r"^data: the images are tensors of floats.*: give mean and std"):
        distiller.fit(FLOATS, FLOATS, epochs=1, batch_size=12, output_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    distiller.fit(FLOATS, FLOATS, epochs=1, batch_size=12, mean=MEAN, std=STD, output_dir=tmp_path / "run")
    assert published(tmp_path / "run" / "networks" / "0-test_resnet") == (MEAN, STD)


@pytest.mark.parametrize("data", [(FLOATS, BYTES), (BYTES, FLOATS)])
def test_floats_beside_pixels_are_asked_for(data: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match=r"^eval_data: its images are .*: give mean and std"):
        build("test_resnet", "test_vit").fit(*data, epochs=1, batch_size=12, progress=False)
    distiller = build("test_resnet", "test_vit", mean=MEAN, std=STD)
    distiller.fit(*data, epochs=1, batch_size=12, progress=False)
    one, other = distiller.evaluate(FLOATS), distiller.evaluate(BYTES)
    assert one["cross_entropy"] == pytest.approx(other["cross_entropy"], abs=1e-2)


def test_floats_after_a_training_on_pixels_are_asked_for() -> None:
    distiller = build("test_resnet", "test_vit")
    distiller.fit(BYTES, BYTES, epochs=1, batch_size=12, progress=False)
    with pytest.raises(UserError, match=r"^evaluate: the images are tensors of floats.*give mean and std"):
        distiller.evaluate(FLOATS)


def published(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    return tuple(cfg["mean"]), tuple(cfg["std"])


def test_own_loop_publishes_what_was_seen(teacher: str, tmp_path: Path) -> None:
    """Images of the stated normalisation are converted for the model that has another."""
    distiller = build(teacher, "test_vit", mean=MEAN, std=STD)
    given: list[Tensor] = []
    distiller.models[0].register_forward_pre_hook(lambda _, images: given.append(images[0].detach()))
    distiller.training_step(*FLOATS.tensors)
    torch.testing.assert_close(given[0], normalised(*TEACHERS), rtol=0, atol=1e-5)
    folders = distiller.save_pretrained(tmp_path / "own")
    assert [published(folder) for folder in folders] == [TEACHERS, (MEAN, STD)]


def test_own_loop_asks_for_what_is_not_known(teacher: str, tmp_path: Path) -> None:
    distiller = build(teacher, "test_vit")
    distiller.training_step(*FLOATS.tensors)
    with pytest.raises(UserError, match=r"normalised with is not known, so it cannot be published: give mean and std"):
        distiller.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    folders = distiller.save_pretrained(tmp_path / "own", mean=MEAN, std=STD)
    assert [published(folder) for folder in folders] == [(MEAN, STD)] * 2
    card = (folders[0] / "README.md").read_text()
    assert "after 1 updates" in card
    assert not {"epochs", "batch_size", "scheduler"} & set(card.replace("|", " ").split())


def test_what_contradicts_the_training_is_refused(tmp_path: Path) -> None:
    distiller = build("test_resnet", "test_vit", mean=MEAN, std=STD)
    with pytest.raises(UserError, match=r"^mean: the images were normalised with mean 0.5 0.4 0.3"):
        distiller.save_pretrained(tmp_path / "own", mean=STD, std=MEAN)


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ({"mean": MEAN}, r"^std: it is missing: give mean and std together"),
        ({"std": STD}, r"^mean: it is missing"),
        ({"mean": MEAN, "std": STD[:2]}, r"^std: 2 values for images of 3 channels: give one each"),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, r"^std: "),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, r"^mean: .* at least 0 and at most 1"),
    ],
)
def test_bad_statements(statement: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        build("test_resnet", "test_vit", **statement)


def test_a_checkpoint_remembers(tmp_path: Path) -> None:
    models = [GroupNormModel(4), GroupNormModel(6)]
    distiller = OnlineAdversarialDistiller(models, image_size=8, mean=MEAN, std=STD)
    distiller.save_checkpoint(tmp_path / "saved")
    again = OnlineAdversarialDistiller.from_checkpoint(tmp_path / "saved", [GroupNormModel(4), GroupNormModel(6)])
    assert again.group.shared == distiller.group.shared == Normalisation(MEAN, STD)


def test_save_pretrained_takes_no_mean_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mean: 123.7 is not allowed, expected numbers from 0 to 1: of pixels / 255"):
        build("test_resnet", "test_vit").save_pretrained(tmp_path / "own", mean=[123.7], std=[58.4])
