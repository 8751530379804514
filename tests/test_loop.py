"""Fit: exact resume, records, best and last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.checkpoint import newest
from feature_gan_kd.loop import seed_step


class DropoutNetwork(nn.Module):
    """Batch normalisation and dropout: state in buffers, and randomness in the step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


SETTINGS: dict[str, Any] = {
    "image_size": 8,
    "max_train_samples": 130,
    "max_eval_samples": 60,
    "batch_size": 32,
    "epochs": 3,
    "checkpoint_every": 1,
    "keep_last": 100,
    "log_every": 2,
    "lr": 0.05,
    "adversarial_lr": 1e-3,
}


def build(**changes: Any) -> OnlineAdversarialDistiller:
    torch.manual_seed(3)
    return OnlineAdversarialDistiller([DropoutNetwork(4), DropoutNetwork(6)], **{**SETTINGS, **changes})


class PowerCutError(Exception):
    """Stands for the power going off."""


class StopAt:
    """Stops the run right after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        """Raises at the step."""
        if step == self.step:
            raise PowerCutError

    def on_start(self, step: int, total: int) -> None:
        """Nothing."""

    def on_metrics(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def on_end(self) -> None:
        """Nothing."""


def final_state(folder: Path) -> dict[str, Tensor]:
    last = newest(folder / "checkpoints")[0]
    return {
        f"{path.name}/{key}": value
        for path in sorted(last.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "seconds_left", "images_per_second")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


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
            build().fit(output_dir=folder, resume=True, callbacks=[StopAt(step)])
    build().fit(output_dir=folder, resume=True)
    expected, resumed = final_state(undisturbed), final_state(folder)
    assert expected.keys() == resumed.keys()
    assert [key for key in expected if not torch.equal(expected[key], resumed[key])] == []
    assert records(folder) == records(undisturbed)
    for path in (undisturbed / "networks").rglob("model.safetensors"):
        assert path.read_bytes() == (folder / path.relative_to(undisturbed)).read_bytes()


def test_steps_and_records(undisturbed: Path) -> None:
    lines = records(undisturbed)
    assert [line["step"] for line in lines if line["event"] == "epoch"] == [5, 10, 15]
    assert [line["step"] for line in lines if line["event"] == "step"] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    last = lines[-1]
    assert len(last["accuracy"]) == 2
    assert last["images"] == 60
    keys = {"cross_entropy/0", "logit/1", "adversarial/0", "discriminator/1", "real/0->1", "fake/1->0"}
    assert keys <= last["metrics"].keys()
    rates = [line["lr"]["logit"] for line in lines if line["event"] == "epoch"]
    assert rates == pytest.approx([0.05, 0.005, 0.0005])  # x0.1 at steps 8 and 11 of 15
    assert [line["lr"]["feature"] for line in lines if line["event"] == "epoch"] == pytest.approx([1e-4, 1e-5, 1e-5])


def test_best_is_kept_beside_last(tmp_path: Path) -> None:
    distiller = build(epochs=4, lr=0.5)
    history = distiller.fit(output_dir=tmp_path / "run")
    for index, best in enumerate(history.best):
        accuracies = [record["accuracy"][index] for record in history.epochs]
        assert best["accuracy"] == max(accuracies)
        assert best["epoch"] == accuracies.index(max(accuracies)) + 1
    folders = sorted(path.name for path in (tmp_path / "run" / "networks").iterdir())
    names = ["0-DropoutNetwork", "0-DropoutNetwork-best", "1-DropoutNetwork", "1-DropoutNetwork-best"]
    assert folders == names
    distiller.load_best(tmp_path / "run")
    result = distiller.evaluate()
    assert result["images"] == 60
    assert result["accuracy"] == pytest.approx([best["accuracy"] for best in history.best])


def test_a_broken_checkpoint_is_passed_over(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(PowerCutError):
        build().fit(output_dir=folder, callbacks=[StopAt(5)])
    newest_one = newest(folder / "checkpoints")[0]
    (newest_one / "network-0.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="trying step-3"):
        build().fit(output_dir=folder, resume=True)
    expected, resumed = final_state(undisturbed), final_state(folder)
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())


def test_resume_with_other_settings_touches_nothing(undisturbed: Path) -> None:
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    distiller = build(lr=0.06)
    weights = [parameter.detach().clone() for parameter in distiller.models[0].parameters()]
    with pytest.raises(UserError, match=r"config lr 0.05, this run has 0.06"):
        distiller.fit(output_dir=undisturbed, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, distiller.models[0].parameters(), strict=True))
    assert before == {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}


def test_accumulation_keeps_the_step_count(tmp_path: Path) -> None:
    history = build(accumulation_steps=3, epochs=1).fit(output_dir=tmp_path / "run")
    assert history.last["step"] == 5


@pytest.mark.parametrize(("every", "steps"), [(None, [5, 10]), (5, [5, 10]), (2, [2, 4, 5, 6, 8, 10])])
def test_every_epoch_ends_with_a_checkpoint(every: int | None, steps: list[int], tmp_path: Path) -> None:
    build(checkpoint_every=every, epochs=2).fit(output_dir=tmp_path / "run")
    found = newest(tmp_path / "run" / "checkpoints")
    assert [int(path.name.removeprefix("step-")) for path in reversed(found)] == steps


def test_seed_step_decides_dropout_alone() -> None:
    draws = []
    for seed, step, process in ((0, 1, 0), (0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0)):
        seed_step(seed, step, process)
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4


def test_no_host_copy_between_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics stay where they are computed: no `.item()`, `.tolist()` or `bool()` of a tensor inside a step."""
    distiller = build()
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    distiller.training_step(images, labels)
    asked = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, lambda self, name=name: asked.append(name))
    distiller.training_step(images, labels)
    monkeypatch.undo()
    assert asked == []
