"""Averaged weights in a run: evaluated, published, restored, and as teachers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from feature_gan_kd import OnlineAdversarialDistiller, Peer, UserError
from feature_gan_kd.cli import main
from feature_gan_kd.report import read_run, results_table
from tests.helpers.runs import build, records
from tests.helpers.small_models import Convolutional, GroupNormModel

TINY: dict[str, Any] = {"image_size": 32, "max_train_samples": 60, "max_eval_samples": 50, "batch_size": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged") / "run"
    peers = ["test_resnet", Peer("test_vit", lr=1e-3, optimizer="adamw")]
    OnlineAdversarialDistiller(peers, num_classes=10, model_ema=0.9, epochs=3, **TINY).fit(output_dir=folder)
    return folder


def test_the_published_mean_is_what_was_evaluated(run: Path) -> None:
    """Plain timm loads it, and its card states its own accuracy."""
    last = records(run)[-1]["metrics"]
    for k, name in enumerate(("test_resnet", "test_vit")):
        folder = run / "networks" / f"{k}-{name}-ema"
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        live = timm.create_model(f"local-dir:{folder.with_name(f'{k}-{name}')}", pretrained=True)
        differ = [not torch.equal(a, b) for a, b in zip(model.parameters(), live.parameters(), strict=True)]
        assert all(differ)
        card = (folder / "README.md").read_text()
        assert "with the running mean of its weights (EMA) after its last epoch (3 of 3)" in card
        assert f"| this model | {last[f'eval/ema_accuracy/{k}']:.2f} |" in card
        assert f"| ensemble (mean of all logits) | {last['eval/ema_accuracy/ensemble']:.2f} |" in card


def test_the_models_learn_as_without_it(run: Path, tmp_path: Path) -> None:
    peers = ["test_resnet", Peer("test_vit", lr=1e-3, optimizer="adamw")]
    OnlineAdversarialDistiller(peers, num_classes=10, epochs=3, **TINY).fit(output_dir=tmp_path / "run")
    for k, name in enumerate(("test_resnet", "test_vit")):
        file = f"networks/{k}-{name}/model.safetensors"
        torch.testing.assert_close(load_file(run / file), load_file(tmp_path / "run" / file), rtol=0, atol=0)


def test_a_checkpoint_holds_it(run: Path, tmp_path: Path) -> None:
    """Export and evaluation from the checkpoint give what the run gave."""
    main(["export", str(run), str(tmp_path), "--which", "ema", "--license", "mit"])
    for k, name in enumerate(("test_resnet", "test_vit")):
        found = load_file(tmp_path / f"{k}-{name}" / "model.safetensors")
        torch.testing.assert_close(found, load_file(run / "networks" / f"{k}-{name}-ema" / "model.safetensors"))
    restored = OnlineAdversarialDistiller.from_checkpoint(run / "checkpoints" / "step-9")
    last = records(run)[-1]["metrics"]
    assert restored.evaluate()["ema"]["accuracy"] == [last[f"eval/ema_accuracy/{k}"] for k in (0, 1)]


def test_what_a_user_sees_of_it(run: Path) -> None:
    main(["report", str(run)])
    rows = [line for line in results_table(read_run(run)).splitlines() if "averaged weights" in line]
    last = records(run)[-1]["metrics"]
    assert [row.split()[-3] for row in rows] == [f"{last[f'eval/ema_accuracy/{k}']:.2f}" for k in (0, 1, "ensemble")]
    page = (run / "report.html").read_text()
    assert "test_vit, averaged weights" in page


def test_only_some_models_have_it() -> None:
    peers = [Convolutional(3), Peer(Convolutional(4), model_ema=0.5)]
    distiller = OnlineAdversarialDistiller(peers, num_classes=5, image_size=8)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    assert distiller.group.averaged_models() == {}
    with pytest.raises(UserError, match=r"^which: Convolutional has no averaged weights: train with model_ema"):
        distiller.save_pretrained("nowhere", which="ema", mean=(0.5,) * 3, std=(0.5,) * 3)
    distiller.training_step(images, labels)
    assert list(distiller.group.averaged_models()) == [1]


def test_averaged_teachers_teach_logits_and_maps() -> None:
    """The second update against plain torch: the source's answers and map come from its mean, in evaluation mode."""
    torch.manual_seed(0)
    modules = [Convolutional(3, drop=0.3).double(), Convolutional(4, drop=0.3).double()]
    distiller = OnlineAdversarialDistiller(
        modules,
        num_classes=5,
        image_size=8,
        model_ema=0.9,
        targets="ema",
        method="l2",
        feature_layers="block2",
        lr=0.5,
        channels_last=False,
    )
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 5
    distiller.training_step(images, labels)
    first = copy.deepcopy(modules)
    distiller.training_step(images, labels)
    # The third update: its sources are the mean of the first two.
    keep = 1 - 2 ** (-2 / 3)
    means = copy.deepcopy(first)
    for mean, live in zip(means, modules, strict=True):
        for a, b in zip((*mean.parameters(), *mean.buffers()), (*live.parameters(), *live.buffers()), strict=True):
            a.data = keep * a.data + (1 - keep) * b.data if a.is_floating_point() else b.data.clone()
        mean.eval()
    learners = [module.train() for module in copy.deepcopy(modules)]
    step_targets = distiller.step.passes.taught(images, logits=[images] * 2, maps=[()] * 2)
    torch.manual_seed(2)
    logits = [learner(images) for learner in learners]
    torch.manual_seed(2)
    metrics = distiller.training_step(images, labels)
    with torch.no_grad():
        maps = [mean.block2(mean.block1(images)) for mean in means]
        taught = step_targets[1]
        for k, s in ((0, 1), (1, 0)):
            target = (means[s](images) / 3).softmax(1)
            kl = 9 * F.kl_div((logits[k] / 3).log_softmax(1), target, reduction="batchmean")
            torch.testing.assert_close(metrics[f"kl/{k}"], kl, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(taught[s][0], maps[s], rtol=1e-9, atol=1e-12)
            cross_entropy = F.cross_entropy(logits[k], labels)
            torch.testing.assert_close(metrics[f"cross_entropy/{k}"], cross_entropy, rtol=1e-9, atol=1e-12)


REFUSED = [
    ({"models": [GroupNormModel(4), Peer(GroupNormModel(4), frozen=True, model_ema=0.9)]}, "model_ema: model 1 "),
    ({"targets": "ema"}, "targets: model 0 (GroupNormModel) has no averaged weights to teach with: give model_ema"),
    ({"model_ema": 1.5}, "model_ema: 1.5 is not allowed, expected a finite number above 0 and at most 1"),
    ({"targets": "mean"}, "targets: 'mean' is not allowed, expected one of live, ema, ensemble"),
]


@pytest.mark.parametrize(("settings", "line"), REFUSED)
def test_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    models = settings.pop("models", None) or [GroupNormModel(4), GroupNormModel(4)]
    with pytest.raises(UserError) as caught:
        OnlineAdversarialDistiller(models, num_classes=5, image_size=8, **settings)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_frozen_teacher_needs_none() -> None:
    """Only learners have a mean; with averaged targets a frozen source teaches as it is."""
    teacher, learner = GroupNormModel(4), GroupNormModel(4)
    distiller = OnlineAdversarialDistiller(
        [teacher, learner], num_classes=5, image_size=8, frozen=[0], model_ema=0.9, targets="ema"
    )
    assert list(distiller.group.averages) == [1]
    assert distiller.step.passes.averaged_sources == {}


def test_the_same_without_a_mean_has_no_word_of_it(tmp_path: Path) -> None:
    build(epochs=1).fit(output_dir=tmp_path / "run")
    assert "ema_" not in json.dumps(records(tmp_path / "run"))
    assert not list((tmp_path / "run" / "networks").glob("*-ema"))


def test_a_frozen_model_has_no_figure_of_its_own(tmp_path: Path) -> None:
    distiller = OnlineAdversarialDistiller(
        ["test_resnet", "test_vit"], num_classes=10, frozen=[0], model_ema=0.9, epochs=1, method="logit", **TINY
    )
    distiller.fit(output_dir=tmp_path / "run", progress=False)
    named = {name for name in records(tmp_path / "run")[-1]["metrics"] if name.startswith("eval/ema_accuracy/")}
    assert named == {"eval/ema_accuracy/1", "eval/ema_accuracy/ensemble"}
    rows = [line for line in results_table(read_run(tmp_path / "run")).splitlines() if "averaged weights" in line]
    assert [row.split(",")[0] for row in rows] == ["1 test_vit", "ensemble"]


def table(names: list[str]) -> Any:
    """Twelve grey images, whose shade is their class by name."""
    labels = [k % 3 for k in range(12)]
    shade = {"a": 10, "b": 120, "c": 240}
    images = [Image.new("RGB", (8, 8), (shade[names[k]],) * 3) for k in labels]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_the_mean_follows_the_order_of_the_classes(tmp_path: Path) -> None:
    """A second `fit` on data whose classes are in another order; the weights of the first run are of its own order."""
    distiller = OnlineAdversarialDistiller(
        ["test_resnet"] * 2, num_classes=3, image_size=32, model_ema=0.9, method="logit", lr=1e-9, batch_size=12
    )
    first, second = table(["a", "b", "c"]), table(["c", "a", "b"])
    distiller.fit(first, first, epochs=1, output_dir=tmp_path / "run", progress=False)
    before = distiller.evaluate(first)
    distiller.fit(second, second, epochs=1, progress=False)
    after = distiller.evaluate(second)
    order = [1, 2, 0]  # of the first names among the second
    for own, then in ((before, after), (before["ema"], after["ema"])):
        assert [then["class_accuracy"][0][k] for k in order] == own["class_accuracy"][0]
    with pytest.raises(UserError, match=r"-best: its class 0 is 'a', that of model 0 is 'c': load it as a model"):
        distiller.load_best(tmp_path / "run")
    stated: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    fresh = OnlineAdversarialDistiller(["test_resnet"] * 2, num_classes=3, image_size=32, method="logit", **stated)
    fresh.load_best(tmp_path / "run")
    # Data in another order are matched by name, and the figures stand in the models' order.
    assert fresh.evaluate(second)["class_accuracy"] == fresh.evaluate(first)["class_accuracy"]
