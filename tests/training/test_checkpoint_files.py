"""A checkpoint is whole or not there, is checked before use, and never runs code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import nn

from feature_gan_kd import UserError
from feature_gan_kd.models.weights import load_weights
from feature_gan_kd.training import checkpoint_files
from feature_gan_kd.training.checkpoint_files import Checkpoint

SIGNATURE = {"models": [{"architecture": "a"}, {"architecture": "b"}], "num_classes": 3, "config": {"lr": 0.1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = Checkpoint({"model-0": {"w": torch.arange(6.0).view(2, 3).t(), "n": torch.tensor(3)}}, {"step": 7})
    checkpoint_files.save(state, tmp_path / "step-7", SIGNATURE)
    return tmp_path / "step-7"


def test_round_trip(folder: Path) -> None:
    state = checkpoint_files.load(folder, SIGNATURE)
    assert state.meta == {"step": 7}
    assert torch.equal(state.tensors["model-0"]["w"], torch.arange(6.0).view(2, 3).t())
    assert state.tensors["model-0"]["n"].dtype is torch.int64
    assert [path.name for path in folder.parent.iterdir()] == ["step-7"]


def test_nothing_in_it_is_a_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    assert checkpoint_files.load(folder, SIGNATURE).meta == {"step": 7}
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_a_planted_pickle_is_not_run(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(folder.parent / "boom"),))  # type: ignore[return-value]

    (folder / "model-0.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="differs from what was written"):
        checkpoint_files.load(folder, SIGNATURE)
    # with a hash that agrees, too
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model-0.safetensors"] = checkpoint_files._hash(folder / "model-0.safetensors")
    del manifest["digest"]
    manifest["digest"] = checkpoint_files._digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is no safetensors file"):
        checkpoint_files.load(folder, SIGNATURE)
    assert not (folder.parent / "boom").exists()


def damage(folder: Path, kind: str) -> None:
    weights, manifest = folder / "model-0.safetensors", folder / "manifest.json"
    content = weights.read_bytes()
    if kind == "truncated":
        weights.write_bytes(content[:-1])
    elif kind == "bit flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif kind == "missing":
        weights.unlink()
    elif kind == "state":
        (folder / "state.json").write_text("{")
    elif kind == "no manifest":
        manifest.unlink()
    elif kind == "manifest cut":
        manifest.write_text(manifest.read_text()[:-20])
    elif kind == "manifest a list":
        manifest.write_text("[1]")
    elif kind == "newer":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    elif kind == "newer, of another form":
        manifest.write_text(json.dumps({"format": 2, "parts": []}))
    elif kind == "no digest":
        manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "digest"}))
    elif kind == "outside":
        parts = {**json.loads(manifest.read_text()), "files": {"../x": "0"}}
        del parts["digest"]
        manifest.write_text(json.dumps({**parts, "digest": checkpoint_files._digest(parts)}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "differs from what was written"),
        ("bit flipped", "differs from what was written"),
        ("missing", "is missing"),
        ("state", "differs from what was written"),
        ("no manifest", "cannot be read"),
        ("manifest cut", "cannot be read"),
        ("manifest a list", "no manifest"),
        ("newer", "its format is 2"),
        ("newer, of another form", "its format is 2"),
        ("no digest", "its digest is wrong"),
        ("outside", "is missing"),
    ],
)
def test_damage_is_recognised(folder: Path, kind: str, message: str) -> None:
    damage(folder, kind)
    with pytest.raises(UserError, match=message) as error:
        checkpoint_files.load(folder, SIGNATURE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**SIGNATURE, "models": SIGNATURE["models"][::-1]}, "models"),  # type: ignore[index]
        ({**SIGNATURE, "num_classes": 4}, "num_classes 3, this run has 4"),
        ({**SIGNATURE, "config": {"lr": 0.2}}, "config lr 0.1, this run has 0.2"),
    ],
)
def test_other_models_are_refused(folder: Path, other: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checkpoint_files.load(folder, other)


def test_a_write_that_fails_leaves_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint_files.save(Checkpoint({"model-0": {}}, {}), folder.parent / "step-9", SIGNATURE)
    assert checkpoint_files.list_checkpoints(folder.parent) == [folder]
    assert checkpoint_files.load(folder, SIGNATURE).meta == {"step": 7}
    assert [path.name for path in folder.parent.iterdir()] == ["step-7"]


def test_prune_keeps_the_newest(folder: Path) -> None:
    for step in (9, 10, 100):
        shutil.copytree(folder, folder.parent / f"step-{step}")
    (folder.parent / ".step-200.writing").mkdir()
    checkpoint_files.prune(folder.parent, 2)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-10", "step-100"]
    assert checkpoint_files.list_checkpoints(folder.parent)[0].name == "step-100"


def test_prune_spares_one(folder: Path) -> None:
    for step in (9, 10, 100):
        shutil.copytree(folder, folder.parent / f"step-{step}")
    checkpoint_files.prune(folder.parent, 1, spare=9)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-100", "step-9"]


def test_everything_is_on_the_disk_before_the_name_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def flush(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def move(path: Path, target: Path) -> Path:
        events.append(f"{path.name} to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", move)
    checkpoint_files.save(Checkpoint({"model-0": {}}, {}), folder.parent / "step-9", SIGNATURE)
    assert set(events[:-2]) == {"manifest.json", "model-0.safetensors", "state.json", ".step-9.writing"}
    assert events[-2:] == [".step-9.writing to step-9", folder.parent.name]


def test_a_setting_that_only_one_side_has_is_a_difference(folder: Path) -> None:
    with pytest.raises(checkpoint_files.MismatchError, match=r"config mixup null, this run has 0.5"):
        checkpoint_files.check_signature(folder, {**SIGNATURE, "config": {"lr": 0.1, "mixup": 0.5}})
    with pytest.raises(checkpoint_files.MismatchError, match=r"config lr 0.1, this run has null"):
        checkpoint_files.check_signature(folder, {**SIGNATURE, "config": {}})


def test_optimiser_state_goes_on_where_it_was() -> None:
    def train(steps: int, restart: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
        for step in range(steps):
            if step == restart:
                saved = checkpoint_files.optimizer_state(optimizer)
                contiguous = {key: value.contiguous() for key, value in saved[0].items()}
                optimizer = torch.optim.Adam(model.parameters(), lr=9.0, fused=True)
                checkpoint_files.load_optimizer_state(optimizer, contiguous, json.loads(json.dumps(saved[1])))
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(2, 3, 5, 5)).square().sum().backward()
            optimizer.step()
        return model.weight.detach().contiguous()

    assert torch.equal(train(4, restart=2), train(4, restart=None))


def trained(name: str, restart: int | None) -> torch.Tensor:
    """The weights after five steps of an optimiser of timm's; before one of them it is built again and loaded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 5))
    optimizer = create_optimizer_v2(list(model.parameters()), opt=name, lr=0.01, filter_bias_and_bn=False)
    for step in range(5):
        if step == restart:
            tensors, rest = checkpoint_files.optimizer_state(optimizer)
            tensors = {key: value.clone() for key, value in tensors.items()}
            optimizer = create_optimizer_v2(list(model.parameters()), opt=name, lr=0.5, filter_bias_and_bn=False)
            checkpoint_files.load_optimizer_state(optimizer, tensors, json.loads(json.dumps(rest)))
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", ["adabelief", "adafactorbv", "lamb", "laprop", "mars", "nadamlegacy"])
def test_an_optimiser_that_counts_elsewhere_goes_on_to_the_same_bits(name: str) -> None:
    """With a number of Python in its state, a tensor among its settings, or a type there."""
    assert torch.equal(trained(name, restart=3), trained(name, restart=None))


def test_an_optimiser_with_another_state_is_one_line() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.weight]["factors"] = [torch.ones(2), torch.ones(2)]  # as timm's Kron does
    with pytest.raises(UserError, match=r"^optimizer: a checkpoint cannot hold 'factors' of SGD's state"):
        checkpoint_files.optimizer_state(optimizer)


def test_load_weights_all_or_nothing(folder: Path) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="other tensors"):
        load_weights(model, folder)
    assert torch.equal(model.weight, before)
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(model, folder.parent)
