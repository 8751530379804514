"""Fit: exact resume, records, best and last."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from feature_gan_kd import UserError
from feature_gan_kd.export import save_models
from feature_gan_kd.training import trainer
from feature_gan_kd.training.batch_checks import mark_bad_labels
from feature_gan_kd.training.checkpoint_files import list_checkpoints
from feature_gan_kd.training.run import open_training_data
from feature_gan_kd.training.trainer import seed_step
from feature_gan_kd.utils import files
from tests.helpers.runs import AtStep, assert_same_run, at_forward, build, published, records, steps_of


class PowerCutError(Exception):
    """Stands for the power going off."""


def cut() -> None:
    raise PowerCutError


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    build().fit(output_dir=folder)
    return folder


@pytest.mark.parametrize("stops", [[1], [3, 4, 9], [5], [6, 7]])
def test_resume_gives_the_very_same_weights(undisturbed: Path, tmp_path: Path, stops: list[int]) -> None:
    folder = tmp_path / "run"
    for step in stops:
        with pytest.raises(PowerCutError):
            build().fit(output_dir=folder, resume=True, callbacks=[AtStep(step, cut)])
    build().fit(output_dir=folder, resume=True)
    assert_same_run(folder, undisturbed)


OTHER_SETTINGS: list[dict[str, Any]] = [
    {"mixup": 0.0, "cutmix": 0.0},
    {"cutmix": 0.0},
    {"grad_accum_steps": 3},
    {"frozen": [0], "mean": (0.5,), "std": (0.25,)},
    {"optimizer": "adamw", "scheduler": "cosine", "warmup_fraction": 0.2},
    {"optimizer": "lion", "clip_grad": 0.5},
    {"optimizer": "lamb"},
    {"model_ema": 0.9, "targets": "ema"},
    {"discriminator_classes": True, "adversarial_loss": "reversal", "joint_backward": True},
    {"targets": "ensemble", "logit_loss": "standardised", "confidence_threshold": 0.15},
    {"method": "l1"},
    {"log_gradients": True, "similarity_images": 20, "early_stopping_patience": 2},
    {
        "adversarial_loss": "hinge",
        "adversarial_warmup_fraction": 0.5,
        "discriminator_interval": 2,
    },
]


@pytest.mark.parametrize("settings", OTHER_SETTINGS, ids=str)
def test_resume_with_other_settings_of_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, and of an accumulation where there is one."""
    settings = {**settings, "epochs": 2, "checkpoint_every_steps": 3}
    build(**settings).fit(output_dir=tmp_path / "undisturbed")
    distiller = build(**settings)
    at_forward(distiller.models[1], 7 * settings.get("grad_accum_steps", 1) - 1, cut, training=True)
    with pytest.raises(PowerCutError):
        distiller.fit(output_dir=tmp_path / "run")
    build(**settings).fit(output_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_resume_unpickles_nothing(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a run holds, from its checkpoint to its published models."""
    folder = tmp_path / "run"
    with pytest.raises(PowerCutError):
        build().fit(output_dir=folder, callbacks=[AtStep(7, cut)])
    distiller = build()
    open_training_data(distiller.group, None)  # the bundled images are not part of a run

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    with monkeypatch.context() as patch:
        for name in ("load", "loads", "Unpickler", "_Unpickler"):
            patch.setattr(pickle, name, forbidden)
        patch.setattr(torch, "load", forbidden)
        distiller.fit(output_dir=folder, resume=True)
    assert_same_run(folder, undisturbed)
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors", ".md"}


def test_mixing_is_a_function_of_the_step(undisturbed: Path, tmp_path: Path) -> None:
    """Not of what was drawn before, and it does change what is learnt."""
    build(mixup=0.0, cutmix=0.0).fit(output_dir=tmp_path / "unmixed")
    mixed, unmixed = records(undisturbed), records(tmp_path / "unmixed")
    assert mixed[0]["metrics"]["train/cross_entropy/0"] != unmixed[0]["metrics"]["train/cross_entropy/0"]


@pytest.mark.parametrize("event", ["replace the folder", "publish", "record"])
def test_a_power_cut_at_the_end_of_an_epoch(
    event: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the epoch's records, its checkpoint and the best models, and while a folder is replaced."""
    folder, distiller = tmp_path / "run", build()
    with monkeypatch.context() as patch:
        if event == "publish":
            patch.setattr(save_models, "save_if_changed", lambda *args: cut())
        elif event == "record":
            patch.setattr(trainer, "evaluate_group", lambda *args: cut())
        else:
            real, replaced = files._replace_folder, []

            def cut_inside(temporary: Path, target: Path) -> None:
                if target.exists():
                    target.rename(target.with_name(f".{target.name}.old"))
                    replaced.append(target)
                    cut()
                real(temporary, target)

            patch.setattr(files, "_replace_folder", cut_inside)
        with pytest.raises(PowerCutError):
            distiller.fit(output_dir=folder)
    build().fit(output_dir=folder, resume=True)
    assert_same_run(folder, undisturbed)


def test_what_is_published_needs_no_recomputing(undisturbed: Path, tmp_path: Path) -> None:
    """A run killed between its last checkpoint and the models has them after `resume`; the rest is not touched."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    best = records(folder)[-1]["epoch"]
    assert any(record["epoch"] != best for record in records(folder))
    shutil.rmtree(folder / "networks" / "0-RandomModel")
    untouched = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "0-RandomModel" not in str(path)}
    build().fit(output_dir=folder, resume=True)
    assert published(folder) == published(undisturbed)
    changed = {path.name for path, time in untouched.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"run", "networks", "metrics.jsonl"}


def test_steps_and_records(undisturbed: Path) -> None:
    lines = records(undisturbed)
    assert [line["step"] for line in lines if line["event"] == "epoch"] == [5, 10, 15]
    assert [line["step"] for line in lines if line["event"] == "step"] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    last = lines[-1]
    assert last.keys() == {"event", "step", "epoch", "epochs", "metrics"}
    learned = {"cross_entropy", "accuracy", "kl", "adversarial", "discriminator"}
    update = {f"train/{name}/{k}" for name in learned for k in (0, 1)} | {"train/skipped"}
    update |= {f"train/{name}/{edge}" for name in ("real", "fake") for edge in ("0->1", "1->0")}
    update |= {f"lr/{name}" for name in ("logit", "feature", "discriminator")}
    names = ("accuracy", "top5", "macro_f1", "cross_entropy")
    evaluated = {f"eval/{name}/{k}" for name in names for k in (0, 1, "ensemble")} | {"eval/images"}
    assert lines[0].keys() == {"event", "step", "epoch", "metrics"}
    assert lines[0]["metrics"].keys() == update
    assert last["metrics"].keys() == update | evaluated
    assert last["metrics"]["eval/images"] == 60
    epochs = [line["metrics"] for line in lines if line["event"] == "epoch"]
    assert [one["lr/logit"] for one in epochs] == pytest.approx([0.05, 0.005, 0.0005])  # x0.1 at steps 8 and 11 of 15
    assert [one["lr/feature"] for one in epochs] == pytest.approx([1e-4, 1e-5, 1e-5])


def test_times_are_recorded(undisturbed: Path) -> None:
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert all(line["metrics"]["train/images_per_second"] > 0 for line in lines)
    epochs = [line for line in lines if line["event"] == "epoch"]
    for one in epochs:  # 130 images an epoch
        assert one["metrics"]["train/epoch_images_per_second"] == pytest.approx(130 / one["seconds"])
    assert epochs[0]["seconds_left"] > epochs[1]["seconds_left"] > epochs[2]["seconds_left"] == 0


def test_accuracies_are_percentages() -> None:
    """In training and in evaluation, of an update and of a record."""
    distiller = build(epochs=1, log_every_steps=50, log_gradients=True, mixup=0.0, cutmix=0.0)
    metrics = distiller.training_step(torch.randn(8, 3, 8, 8), torch.arange(8))
    assert metrics["accuracy/0"].item() in {12.5 * right for right in range(9)}
    assert metrics["right/0->1"].item() in {6.25 * right for right in range(17)}
    history = distiller.fit(progress=False)
    right = 1.3 * history.last["metrics"]["train/accuracy/0"]  # of 130 images
    assert right == pytest.approx(round(right), abs=1e-3)
    assert right > 1
    assert history.accuracy == [history.last["metrics"][f"eval/accuracy/{k}"] for k in (0, 1)]
    assert history.ensemble == history.last["metrics"]["eval/accuracy/ensemble"]
    assert (history.accuracy, history.ensemble) == tuple(distiller.evaluate()[key] for key in ("accuracy", "ensemble"))


def test_best_is_kept_beside_last(tmp_path: Path) -> None:
    distiller = build(epochs=4, lr=0.5)
    history = distiller.fit(output_dir=tmp_path / "run")
    for index, best in enumerate(history.best):
        accuracies = [record["metrics"][f"eval/accuracy/{index}"] for record in history.epochs]
        assert best["accuracy"] == max(accuracies)
        assert best["epoch"] == accuracies.index(max(accuracies)) + 1
    folders = sorted(path.name for path in (tmp_path / "run" / "networks").iterdir())
    names = ["0-RandomModel", "0-RandomModel-best", "1-RandomModel", "1-RandomModel-best"]
    assert folders == names
    distiller.load_best(tmp_path / "run")
    result = distiller.evaluate()
    assert result["images"] == 60
    assert result["accuracy"] == pytest.approx([best["accuracy"] for best in history.best])


def test_a_broken_checkpoint_is_passed_over(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(PowerCutError):
        build().fit(output_dir=folder, callbacks=[AtStep(5, cut)])
    newest_one = list_checkpoints(folder / "checkpoints")[0]
    (newest_one / "model-0.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="trying step-3"):
        build().fit(output_dir=folder, resume=True)
    assert_same_run(folder, undisturbed)


def test_resume_with_other_settings_touches_nothing(undisturbed: Path) -> None:
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    distiller = build(lr=0.06)
    weights = [parameter.detach().clone() for parameter in distiller.models[0].parameters()]
    with pytest.raises(UserError, match=r"config lr 0.05, this run has 0.06"):
        distiller.fit(output_dir=undisturbed, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, distiller.models[0].parameters(), strict=True))
    assert before == {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", [{"adversarial_interval": 3}, {"joint_backward": True}])
def test_a_stop_in_a_cheaper_mode(mode: dict[str, Any], tmp_path: Path) -> None:
    """Which updates compare maps goes on where it was, and so do the means of those that do not."""
    build(**mode).fit(output_dir=tmp_path / "whole")
    with pytest.raises(PowerCutError):
        build(**mode).fit(output_dir=tmp_path / "run", callbacks=[AtStep(8, cut)])
    build(**mode).fit(output_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("stop", [3, 10, 15, 20])
def test_evaluations_can_be_rare(stop: int, tmp_path: Path) -> None:
    """Every second epoch and the last: no other is in the history, and a stop anywhere changes nothing."""
    settings = {"evaluate_every_epochs": 2, "epochs": 5}
    history = build(**settings).fit(output_dir=tmp_path / "whole")
    assert [record["epoch"] for record in history.epochs] == [2, 4, 5]
    assert [record["step"] for record in history.epochs] == [10, 20, 25]
    assert {best["epoch"] for best in history.best} <= {2, 4, 5}
    assert steps_of(tmp_path / "whole") == list(range(1, 26))
    lines = [line["step"] for line in records(tmp_path / "whole") if line["event"] == "step"]
    assert lines == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25]
    with pytest.raises(PowerCutError):
        build(**settings).fit(output_dir=tmp_path / "run", callbacks=[AtStep(stop, cut)])
    build(**settings).fit(output_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_accumulation_keeps_the_step_count(tmp_path: Path) -> None:
    history = build(grad_accum_steps=3, epochs=1).fit(output_dir=tmp_path / "run")
    assert history.last["step"] == 5


@pytest.mark.parametrize(("every", "steps"), [(None, [5, 10]), (5, [5, 10]), (2, [2, 4, 5, 6, 8, 10])])
def test_every_epoch_ends_with_a_checkpoint(every: int | None, steps: list[int], tmp_path: Path) -> None:
    build(checkpoint_every_steps=every, epochs=2).fit(output_dir=tmp_path / "run")
    assert steps_of(tmp_path / "run") == steps


def test_the_checkpoint_of_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """That of the best ensemble, the first of equals, beside the newest."""
    history = build(epochs=6, lr=0.5, keep_checkpoints=1).fit(output_dir=tmp_path / "run")
    ensembles = [record["metrics"]["eval/accuracy/ensemble"] for record in history.epochs]
    best = 5 * (ensembles.index(max(ensembles)) + 1)
    assert best < 30, "the last epoch is the best: choose another learning rate"
    assert steps_of(tmp_path / "run") == [best, 30]


def test_seed_step_decides_dropout_alone() -> None:
    draws = []
    for seed, step, process in ((0, 1, 0), (0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0)):
        seed_step(seed, step, process)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4


def test_no_host_copy_between_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics stay where they are computed: no `.item()`, `.tolist()` or `bool()` of a tensor inside a step.

    Only labels that the host holds are checked there, which waits for no device.
    """
    distiller = build()
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    distiller.training_step(images, labels)
    asked = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, lambda self, name=name: asked.append(name))
    distiller.group.training_step(*mark_bad_labels(images, labels, 10))
    monkeypatch.undo()
    assert asked == []
