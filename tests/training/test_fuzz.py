"""Settings, files and arguments of any kind give what they should, or one line: never another exception."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_gan_kd import DistillConfig, UserError
from feature_gan_kd.cli.main import COMMANDS, DEMO, parse
from feature_gan_kd.report import read_run, results_table
from feature_gan_kd.training import checkpoint_files
from feature_gan_kd.training.callbacks import JsonLines, read_records
from feature_gan_kd.training.checkpoint_files import Checkpoint
from feature_gan_kd.training.history import History

SIGNATURE = {"models": [{"architecture": "a"}, {"architecture": "b"}], "num_classes": 3, "config": {"lr": 0.1}}
STATE = Checkpoint(
    {
        "model-0": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
        "optimizer-logit": {"0.momentum_buffer": torch.ones(2, 3)},
    },
    {"step": 7, "history": {"epochs": [{"metrics": {"eval/accuracy/0": 1.0}}]}, "provenance": None},
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, -1])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
NAMES = [spec.name for spec in dataclasses.fields(DistillConfig)]


def fuzz(examples: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test of a check: an eighth of the examples is fast, all of them are slow.

    They are the same ones at every run, however long one takes.

    Args:
        examples: how many in the slow tier.
        *strategies: of the check's last arguments; those before are fixtures, whose folders it must put back.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        fixtures = list(inspect.signature(check).parameters)[: -len(strategies)]

        @pytest.mark.parametrize("count", [examples // 8, pytest.param(examples, marks=pytest.mark.slow)])
        def test(count: int, request: pytest.FixtureRequest) -> None:
            values = [request.getfixturevalue(name) for name in fixtures]

            @settings(
                derandomize=True,
                deadline=None,
                max_examples=count,
                database=None,
                suppress_health_check=[HealthCheck.too_slow],
            )
            @given(st.tuples(*strategies))
            def one(drawn: tuple[Any, ...]) -> None:
                check(*values, *drawn)

            one()

        return test

    return decorate


def one_line(error: UserError) -> None:
    """What the user sees."""
    assert str(error)
    assert "\n" not in str(error)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A byte changed, bytes cut out or off, or bytes put in, anywhere."""
    kind = draw(st.sampled_from(["flip", "cut off", "cut out", "insert"]))
    place, other = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255))
    inserted = draw(st.binary(min_size=1, max_size=9))

    def damage(data: bytes) -> bytes:
        at = int(place * len(data))
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ other]) + data[at + 1 :]
        return data[:at] + {"cut off": b"", "cut out": data[at + other :], "insert": inserted + data[at:]}[kind]

    return damage


# Settings.


@fuzz(200, st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=12), JSON, max_size=4) | JSON)
def test_settings(values: Any) -> None:
    try:
        config = DistillConfig.from_dict(values)
    except UserError as error:
        one_line(error)
    else:
        assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# Checkpoints.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fuzz") / "step-7"
    checkpoint_files.save(STATE, place, SIGNATURE)
    return place


@contextlib.contextmanager
def changed(path: Path, data: bytes) -> Any:
    """A file with other content for a moment."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def whole_or_refused(folder: Path) -> bool:
    """Loads what was written, or refuses it in one line; says which."""
    for signature in (None, SIGNATURE):
        try:
            loaded = checkpoint_files.load(folder, signature)
        except UserError as error:
            one_line(error)
            return False
        assert loaded.meta == STATE.meta
        assert loaded.tensors.keys() == STATE.tensors.keys()
        for name, tensors in STATE.tensors.items():
            assert loaded.tensors[name].keys() == tensors.keys()
            for key, value in tensors.items():
                assert loaded.tensors[name][key].dtype is value.dtype
                assert torch.equal(loaded.tensors[name][key], value)
    return True


def test_an_unharmed_checkpoint_is_loaded(folder: Path) -> None:
    assert whole_or_refused(folder)


@fuzz(
    500,
    st.sampled_from(["manifest.json", "state.json", "model-0.safetensors", "optimizer-logit.safetensors"]),
    damages(),
)
def test_a_damaged_checkpoint(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = folder / name
    with changed(path, damage(path.read_bytes())):
        whole_or_refused(folder)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model-0.safetensors"])
def test_every_byte_counts(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for at in range(len(data)):
        with changed(folder / name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            assert not whole_or_refused(folder)


@fuzz(200, st.dictionaries(st.sampled_from(["format", "signature", "files", "digest", "x"]), JSON | st.just(1)) | JSON)
def test_any_manifest(folder: Path, values: Any) -> None:
    with changed(folder / "manifest.json", json.dumps(values).encode()):
        for read in (checkpoint_files.read_signature, lambda place: checkpoint_files.check_signature(place, SIGNATURE)):
            with contextlib.suppress(UserError):
                read(folder)
        try:
            loaded = checkpoint_files.load(folder, None)
        except UserError as error:
            one_line(error)
        else:  # one that names fewer files
            assert loaded.tensors.keys() < STATE.tensors.keys()


@fuzz(100, st.binary(max_size=200))
def test_any_bytes_for_a_manifest(folder: Path, data: bytes) -> None:
    with changed(folder / "manifest.json", data):
        assert not whole_or_refused(folder)


# Records.


TRAIN = {"train/cross_entropy/0": 1.0, "train/images_per_second": 9.0, "lr/logit": 0.1}
EVAL = {"eval/accuracy/0": 1.0, "eval/accuracy/1": 2.0, "eval/accuracy/ensemble": 3.0, "eval/images": 4}
EVAL |= {"eval/cross_entropy/0": 1.0, "eval/cross_entropy/1": 2.0, "train/epoch_images_per_second": 8.0}
RECORD = {"step": 1, "epoch": 1, "metrics": TRAIN}
EPOCH = {**RECORD, "metrics": TRAIN | EVAL, "epochs": 2, "seconds": 1.0, "seconds_left": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    lines = [{"event": "step", **RECORD}, {"event": "epoch", **EPOCH}, {"event": "step", **RECORD, "step": 2}]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = DistillConfig(epochs=2).to_dict()
    about = {"models": [{"name": "a"}, {"name": "b"}], "config": config, "topology": [[0, 1], [1, 0]], "frozen": []}
    (place / "config.json").write_text(json.dumps(about))
    return place


def shown_or_refused(run: Path, scratch: Path) -> None:
    """The records are read, the run's table is drawn or refused, and a run that goes on may add to the file."""
    for record in read_records(run / "metrics.jsonl"):
        assert record["event"] in ("step", "epoch")
        assert type(record["step"]) is int
    try:
        results_table(read_run(run))
    except UserError as error:
        one_line(error)
    copy = scratch / "metrics.jsonl"
    shutil.copy(run / "metrics.jsonl", copy)
    JsonLines(copy).on_start(1, 2, History())
    assert all(record["step"] <= 1 for record in read_records(copy))


def test_unharmed_records_are_shown(run: Path) -> None:
    assert len(read_records(run / "metrics.jsonl")) == 3
    assert "2.00" in results_table(read_run(run))


@fuzz(200, damages(), damages())
def test_damaged_records(
    run: Path, tmp_path: Path, one: Callable[[bytes], bytes], two: Callable[[bytes], bytes]
) -> None:
    data = one((run / "metrics.jsonl").read_bytes())
    with changed(run / "metrics.jsonl", two(data) if data else data):
        shown_or_refused(run, tmp_path)


@fuzz(100, st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20), max_size=4))
def test_any_lines_for_records(run: Path, tmp_path: Path, lines: list[bytes]) -> None:
    with changed(run / "metrics.jsonl", b"\n".join(lines)):
        shown_or_refused(run, tmp_path)


# Arguments.

OPTIONS = [f"--{name.replace('_', '-')}" for name in NAMES] + [word for word in DEMO if word.startswith("--")]
OPTIONS += ["--data", "--output-dir", "--resume", "--no-resume", "--frozen", "--feature-layers", "--which", "--json"]
VALUES = ["run", "1", "-1", "nan", "1e3", "None", "true", "0.5", "cosine", "[]", "{}", "--", "=", "", "a b", "é", "\0"]
OPTION = st.sampled_from(OPTIONS)
VALUE = st.sampled_from([*VALUES, *COMMANDS]) | st.text(max_size=8)
WORDS = (
    st.tuples(OPTION)
    | st.tuples(VALUE)
    | st.tuples(OPTION, VALUE)
    | st.builds("{}={}".format, OPTION, VALUE).map(lambda word: (word,))
)


@fuzz(300, st.sampled_from([*COMMANDS, *VALUES]), st.lists(WORDS, max_size=4))
def test_arguments(name: str, words: list[tuple[str, ...]]) -> None:
    status: object = None
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            assert callable(parse([name, *(word for group in words for word in group)]))
        except UserError as error:
            one_line(error)
        except SystemExit as stop:
            status = stop.code
    assert not status  # --help, wherever it stands


@pytest.mark.parametrize("name", COMMANDS)
def test_right_arguments_are_commands(name: str) -> None:
    words = {"train": ["--output-dir", "run"], "inspect": ["--models", "a", "b"], "evaluate": ["run"]}
    words |= {"schema": [], "embed": ["model", "images", "-o", "out.npy"], "probe": ["model", "--data", "images"]}
    assert callable(parse([name, *words.get(name, ["run", "out"])]))
