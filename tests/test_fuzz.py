"""What reads files and arguments meets any content with one line, never with another error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from feature_gan_kd import DistillConfig, UserError, checkpoint
from feature_gan_kd.callbacks import read_records
from feature_gan_kd.cli import _parse

# The same cases in every run.
fuzz = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20)
JSON = some.recursive(
    SCALARS, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner), max_leaves=8
)
NAMES = some.sampled_from(sorted(DistillConfig().to_dict())) | some.text(max_size=10)


def outcome(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, or the line that refuses it."""
    try:
        return call(), None
    except UserError as error:
        return None, str(error)


@fuzz
@given(some.dictionaries(NAMES, JSON, max_size=4))
def test_any_config(values: dict[str, Any]) -> None:
    config, refusal = outcome(lambda: DistillConfig.from_dict(values))
    if refusal is None:
        assert DistillConfig.from_dict(config.to_dict()) == config
    else:
        assert refusal
        assert "\n" not in refusal


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints") / "step-1"
    tensors = {"network-0": {"weight": torch.arange(6.0)}, "optimizer-logit": {"0.step": torch.tensor(3.0)}}
    checkpoint.save(checkpoint.Checkpoint(tensors, {"step": 1, "groups": {}}), folder, {"models": ["a", "b"]})
    return folder


def read(folder: Path) -> Any:
    """The checkpoint as plain values, or the line that refuses it."""
    state, refusal = outcome(lambda: checkpoint.load(folder, {"models": ["a", "b"]}))
    if refusal is not None:
        assert refusal
        assert "\n" not in refusal
        return None
    return {
        part: {key: value.tolist() for key, value in own.items()} for part, own in state.tensors.items()
    }, state.meta


@fuzz
@given(data=some.data())
def test_any_damage_to_a_checkpoint(good: Path, tmp_path: Path, data: some.DataObject) -> None:
    """A byte changed, cut off or put in anywhere: refused, or read as it was written."""
    expected = read(good)
    assert expected is not None
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    path = data.draw(some.sampled_from(sorted(folder.iterdir())))
    content = path.read_bytes()
    place = data.draw(some.integers(0, len(content) - 1))
    damage = data.draw(some.sampled_from(["change", "cut", "put in"]))
    byte = bytes([data.draw(some.integers(0, 255))])
    path.write_bytes(
        {
            "change": content[:place] + byte + content[place + 1 :],
            "cut": content[:place],
            "put in": content[:place] + byte + content[place:],
        }[damage]
    )
    found = read(folder)
    assert found is None or found == expected


@fuzz
@given(content=some.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_manifest(good: Path, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "foreign"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (folder / "manifest.json").write_bytes(content)
    assert read(folder) is None


@fuzz
@given(
    some.lists(some.sampled_from(['{"step": 1}', '{"step": 2', "", "null", "[1]"]) | some.text(max_size=20), max_size=5)
)
def test_any_metrics_file(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert all(isinstance(record, dict) for record in read_records(path))


WORDS = some.sampled_from(["train", "--lr", "--models", "--epochs", "0.1", "a", "--output-dir", "x", "--resume", "-h2"])


@settings(fuzz, max_examples=40)
@given(some.lists(WORDS | some.text(max_size=8), max_size=6))
def test_any_arguments(words: list[str]) -> None:
    """A command ready to run, or one line; `--help` ends by itself."""
    try:
        command, refusal = outcome(lambda: _parse(words))
    except SystemExit as stop:
        command, refusal = stop.code, None
    assert refusal or callable(command) or command in (0, None)
