from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import feature_gan_kd
from feature_gan_kd import DistillConfig
from feature_gan_kd.cli import COMMANDS, main

FEATURES = datasets.Features(
    {
        "picture": datasets.Image(),
        "fine": datasets.ClassLabel(names=["crow", "cat", "carp", "cow"]),
        "coarse": datasets.ClassLabel(names=["wild", "tame"]),
    }
)
PAIR = ("--models", "test_resnet", "test_vit", "--image-size", "32", "--batch-size", "8", "--lr", "0.01")


def pictures(count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)) for _ in range(count)]


def table(count: int, seed: int = 0) -> datasets.Dataset:
    columns = {
        "picture": pictures(count, seed),
        "fine": [k % 4 for k in range(count)],
        "coarse": [k % 2 for k in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def plain(count: int, labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": pictures(count, 0), "label": labels}, features=features)


def write(folder: Path, **splits: datasets.Dataset) -> None:
    folder.mkdir()
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad data sets, a folder each."""
    root = tmp_path_factory.mktemp("data")
    write(root / "good", train=table(40), test=table(13, seed=1))
    write(root / "one-split", train=table(40))
    write(root / "no-images", train=table(8).remove_columns("picture"))
    write(root / "no-labels", train=table(8).remove_columns(["fine", "coarse"]))
    write(root / "empty", train=table(8).select([]), test=table(4))
    write(root / "empty-test", train=table(8), test=table(8).select([]))
    write(root / "outside", train=plain(6, [0, 1, 2, 1, 0, 1]), test=plain(2, [0, 1]))
    write(root / "outside-test", train=plain(4, [0, 1, 0, 1]), test=plain(4, [0, 1, 7, 0]))
    write(root / "negative", train=plain(4, [0, 1, -2, 1]))
    good = table(6)
    broken: list[Any] = good.cast_column("picture", datasets.Image(decode=False))["picture"][:]
    broken[3] = {"bytes": broken[3]["bytes"][:30], "path": None}
    columns = {"picture": broken, "fine": good["fine"][:], "coarse": good["coarse"][:]}
    write(root / "broken", train=datasets.Dataset.from_dict(columns, features=FEATURES), test=table(4))
    return root


def output_of(*args: object) -> str:
    """What a command prints on stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        main([str(arg) for arg in args])
    return out.getvalue()


@pytest.fixture(scope="module")
def command(data: Path) -> tuple[object, ...]:
    limits = ("--max-train-samples", "24", "--max-eval-samples", "11", "--log-every-steps", "2")
    return ("train", *PAIR, "--data", data / "good", "--epochs", "2", *limits)


@pytest.fixture(scope="module")
def finished(command: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run's folder, which no test may change, and what the command printed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, output_of(*command, "--output-dir", run)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refused(capsys: pytest.CaptureFixture[str], *args: object, at_once: bool = False) -> str:
    """The one line with which a command ends that a user's mistake stops, and that leaves no trace.

    Args:
        capsys: of the test.
        *args: of the command.
        at_once: whether not even the wiring may be printed first.
    """
    capsys.readouterr()
    before = contents(Path.cwd())
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    assert contents(Path.cwd()) == before
    printed = capsys.readouterr()
    assert not (at_once and printed.out)
    (line,) = printed.err.splitlines()
    assert line.startswith("feature-gan-kd: error: ")
    return line.removeprefix("feature-gan-kd: error: ")


# What a stranger mistypes.


COMMAND_NAMES = "train, evaluate, export, predict, embed, probe, inspect, report, schema"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("", f"command: none is named, expected {COMMAND_NAMES} or --help"),
        (
            "trian",
            f"command: 'trian' is not allowed, expected {COMMAND_NAMES} or --help",
        ),
        (
            "--epochs 3",
            f"command: '--epochs' is not allowed, expected {COMMAND_NAMES} or --help",
        ),
        ("train", "train: missing --output-dir, expected feature-gan-kd train --output-dir PATH [--option value ...]"),
        ("evaluate", "evaluate: missing RUN, expected feature-gan-kd evaluate RUN [--option value ...]"),
        (
            "export",
            "export: missing RUN and OUTPUT_DIR, expected feature-gan-kd export RUN OUTPUT_DIR [--option value ...]",
        ),
        ("train --output-dir", "--output-dir: its value is missing, expected a path"),
        ("train --output-dir run --epochs", "--epochs: its value is missing, expected a whole number"),
        ("train --output-dir run --epochs --resume", "--epochs: its value is missing, expected a whole number"),
        ("train --output-dir=", "--output-dir: its value is empty"),
        (
            "train --output-dir run twice",
            "train: 'twice' is one argument too many, expected "
            "feature-gan-kd train --output-dir PATH [--option value ...]",
        ),
        (
            "train --output-dir run --resume yes",
            "train: 'yes' is one argument too many, expected "
            "feature-gan-kd train --output-dir PATH [--option value ...]",
        ),
        ("evaluate run --which worst", "--which: 'worst' is not allowed, expected one of last, best, ema"),
        ("export run to --which newest", "--which: 'newest' is not allowed, expected one of last, best, ema"),
        ("export run to", "run: there is no folder run: name the folder of a run"),
        (
            "evaluate run",
            "run: there is no folder run, and timm has no model of this name: name the folder of a run or of a "
            "published model, hf-hub:owner/name or a timm name",
        ),
    ],
)
def test_what_is_mistyped(args: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *args.split()) == line


def test_an_empty_value(capsys: pytest.CaptureFixture[str]) -> None:
    """That of an unset shell variable; as a path it would be the present folder."""
    assert refused(capsys, "train", "--output-dir", "") == "--output-dir: its value is empty"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--epoch", "--epochs"),
        ("--batchsize", "--batch-size"),
        ("--modles", "--models"),
        ("--out-dir", "--output-dir"),
        ("--drop", "--drop-rate"),
        ("--drop-path", "--drop-path-rate"),
        ("--wd", "--weight-decay"),
        ("--ema", "--model-ema"),
        ("--label-smoothing", "--smoothing"),
        ("--auto-augment", "--aa"),
        ("--opt-betas", "--betas"),
        ("--train-interpolation", "--interpolation"),
        ("--hflip", "--augmentation"),
    ],
)
def test_an_unknown_option_has_the_closest_named(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "train", "--output-dir", "run", typed, "3")
    assert line.startswith(f"{typed}: train has no such option, the closest are ")
    assert meant in line


def bad_values() -> list[tuple[str, str]]:
    """For every setting values of another type, and one outside each of its bounds."""
    hints = typing.get_type_hints(DistillConfig)
    cases = []
    for spec in dataclasses.fields(DistillConfig):
        hint = hints[spec.name]
        kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType | typing._UnionGenericAlias) else hint
        values = {int: ["x", "1.5", "1e3"], float: ["x", "nan", "inf"], bool: [], str: []}.get(kind, ["unheard-of"])
        bounds = {"at_least": [-1], "above": [0, -1], "at_most": [1], "below": [0]}
        values += [str(spec.metadata[key] + by) for key in bounds if key in spec.metadata for by in bounds[key]]
        cases += [(f"--{spec.name.replace('_', '-')}", value) for value in values]
    return cases


@pytest.mark.parametrize(("option", "value"), bad_values())
def test_bad_values(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "train", "--output-dir", "run", *PAIR, option, value)
    said, expected = line.split(" is not allowed, expected ")
    name, shown = said.split(": ")
    assert name == option
    assert shown.strip("'(),") in (value, f"{value}.0")
    assert len(expected) > 3


def test_every_kind_of_bad_value_is_tried() -> None:
    tried = {option for option, _ in bad_values()}
    settings = {f"--{spec.name.replace('_', '-')}" for spec in dataclasses.fields(DistillConfig)}
    free = {"--aa", "--optimizer", "--image-column", "--label-column", "--train-split", "--eval-split"}
    free.add("--cache-sources")
    hints = typing.get_type_hints(DistillConfig)
    switches = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if hint is bool} & settings
    assert settings - tried == free | switches


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("--models test_resnet", "--models: 1 named, at least 2 are needed"),
        ("--models", "--models: 0 named, at least 2 are needed"),
        ("--models test_resnet resnt18", "--models: timm has no model 'resnt18', the closest are resnet18"),
        ("--feature-layers layer9", "model 0 (test_resnet): it has no layer 'layer9', the nearest are layer"),
        (
            "--feature-layers one:layer1",
            "--feature-layers: 'one' in 'one:layer1' is no position of a model: say K:LAYER",
        ),
        ("--feature-layers :layer1", "--feature-layers: '' in ':layer1' is no position of a model: say K:LAYER"),
        ("--feature-layers 7", "model 0 (test_resnet): feature_layers names stage 7"),
        ("--optimizer sgdd", "--optimizer: timm has no optimiser 'sgdd', the closest are sgd"),
        ("--topology ring", "--topology: 'ring' is not allowed, expected one of cycle, complete, star"),
        ("--in-chans 2", "--in-chans: '2' is not allowed, expected one of 1, 3"),
        ("--num-classes 0", "--num-classes: 0 is not allowed, expected a whole number of at least 2"),
        ("--num-classes -3", "--num-classes: -3 is not allowed"),
        ("--num-classes many", "--num-classes: 'many' is not allowed, expected a whole number"),
        ("--num-classes 7", "has 4 classes, the models have 7: build them with num_classes=4"),
        ("--frozen 2", "--frozen: there is no model 2, allowed are 0 to 1"),
        ("--frozen one", "--frozen: 'one' is not allowed, expected a whole number"),
        ("--frozen 0 1", "--frozen: every model is frozen"),
        ("--milestones 0.5 1.5", "--milestones: (0.5, 1.5) is not allowed"),
        ("--milestones 0.75 0.5", "--milestones: (0.75, 0.5) is not allowed, expected rising fractions"),
        ("--grad-accum-steps 9", "--grad-accum-steps: 9 parts of a batch of 8 images"),
        ("--data nowhere.parquet", "--data: there is no file or folder 'nowhere.parquet'"),
        ("--eval-split dev", "--eval-split: there is no split 'dev'; the splits are train, test"),
        ("--label-column name", "--label-column: split 'train' has no column 'name'; its columns are picture"),
        ("--image-column fine", "--image-column: column 'fine' of split 'train' holds no images"),
    ],
)
def test_bad_models_and_columns(args: str, line: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = refused(capsys, "train", "--output-dir", "run", *PAIR, "--data", data / "good", *args.split())
    assert line in given


def test_an_encoder_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of timm's seven models that only encode."""
    models = ("--models", "test_resnet", "qwen3_vit_88m_enc")
    line = refused(capsys, "train", *models, "--data", data / "good", "--output-dir", "run")
    said = "qwen3_vit_88m_enc has no classifier, it only encodes: name another, or learn without labels (labels=False)"
    assert line == f"--models: {said}"


@pytest.mark.parametrize(
    ("folder", "options", "said"),
    [
        ("no-images", "", ["--image-column", "no column of images", "fine (ClassLabel), coarse (ClassLabel)"]),
        ("no-labels", "", ["--label-column", "has images alone (picture)", "give data with labels"]),
        ("empty", "", ["--data", "split 'train' of ", "empty is empty"]),
        ("empty-test", "", ["--data", "split 'test' of ", "empty-test is empty"]),
        ("broken", "", ["image 3 of split 'train'"]),
        ("outside", "--num-classes 2", ["image 2 of split 'train' has the label 2", "'label'", "expected 0 to 1"]),
        ("outside-test", "", ["image 2 of split 'test' has the label 7", "expected 0 to 1"]),
        ("negative", "", ["image 2 of split 'train' has the label -2"]),
    ],
)
def test_bad_data(folder: str, options: str, said: list[str], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "train", *PAIR, "--data", data / folder, "--output-dir", "run", *options.split())
    for words in said:
        assert words in line


# Folders.


def test_a_folder_that_holds_a_run(
    finished: tuple[Path, str], command: tuple[object, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished[0], here / "run")
    line = refused(capsys, *command, "--output-dir", "run", at_once=True)
    assert line == "--output-dir: run already holds a run: resume it (--resume) or choose another folder"


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_where_a_folder_is_meant(
    place: str, command: tuple[object, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "file").write_text("no folder")
    line = refused(capsys, *command, "--output-dir", place, at_once=True)
    assert line.startswith(f"--output-dir: {place} cannot be written (")
    assert line.endswith("file is no folder): choose another folder")


def test_a_folder_that_cannot_be_written(
    command: tuple[object, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = here / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):  # as root, for whom only the system's own folders are closed
        closed = Path("/proc")
    line = refused(capsys, *command, "--output-dir", closed / "run")
    assert line.startswith(f"--output-dir: {closed / 'run'} cannot be written (")


def test_a_name_too_long_for_a_folder(command: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *command, "--output-dir", "a" * 300)
    assert "cannot be written (File name too long)" in line


def test_export_into_a_file(finished: tuple[Path, str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("no folder")
    assert "cannot be written" in refused(capsys, "export", finished[0], "file")


# A run.


def test_a_run_leaves_what_is_promised_and_no_more(finished: tuple[Path, str]) -> None:
    run, _ = finished
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints",
        "networks",
        "curves.png",
    }
    models = {"0-test_resnet", "0-test_resnet-best", "1-test_vit", "1-test_vit-best"}
    assert {path.name for path in (run / "networks").iterdir()} == models
    for name in models:
        files = {path.name for path in (run / "networks" / name).iterdir()}
        assert files == {"model.safetensors", "config.json", "README.md"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-3", "step-6"}


def test_settings_and_records(finished: tuple[Path, str]) -> None:
    run, _ = finished
    about = json.loads((run / "config.json").read_text())
    assert about["config"] == {
        **DistillConfig(**about["config"]).to_dict(),
        "lr": 0.01,
        "epochs": 2,
        "log_every_steps": 2,
    }
    assert (about["data"]["train_images"], about["data"]["evaluation_images"]) == (24, 11)
    assert (about["num_classes"], about["image_size"]) == (4, 32)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["event"], r["step"]) for r in records] == [
        ("step", 2),
        ("step", 3),
        ("epoch", 3),
        ("step", 4),
        ("step", 6),
        ("epoch", 6),
    ]
    assert records[-1]["metrics"]["eval/images"] == 11


def test_what_a_run_prints(finished: tuple[Path, str]) -> None:
    run, printed = finished
    assert "test_resnet (0) -> test_vit (1)" in printed  # the wiring
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    rows = {line.split("  ")[0]: line for line in printed.splitlines()}
    for k, name in enumerate(("0 test_resnet", "1 test_vit")):
        assert f"{last['metrics'][f'eval/accuracy/{k}']:.2f}" in rows[name]
    assert f"{last['metrics']['eval/accuracy/ensemble']:.2f}" in rows["ensemble"]
    assert str(run / "networks") in printed
    commands = dict(line.split(None, 1) for line in printed.splitlines()[-3:])
    assert [command.split(f" {name[:-1]} ")[1] for name, command in commands.items()] == [
        f"{run}",
        f"{run}",
        f"{run} FOLDER --which best --license LICENCE",
    ]


def test_what_to_do_next_can_be_typed_as_it_stands(finished: tuple[Path, str], here: Path) -> None:
    commands = [line.split(None, 1) for line in finished[1].splitlines()[-3:]]
    for name, command in commands:
        words = shlex.split(command)
        typed = words[words.index(name[:-1]) :]
        output_of(*(word.replace("LICENCE", "mit").replace("FOLDER", str(here / "out")) for word in typed))
    assert (finished[0] / "report.html").exists()
    (finished[0] / "report.html").unlink()
    assert "license: mit" in (here / "out" / "0-test_resnet" / "README.md").read_text()


def printed_by(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, str]:
    """What a command prints on stdout and on stderr."""
    capsys.readouterr()
    main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_a_quiet_run_says_nothing(
    command: tuple[object, ...], finished: tuple[Path, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But leaves the same; and a mistake is still said."""
    assert printed_by(capsys, *command, "--output-dir", "run", "--quiet") == ("", "")
    assert contents(here / "run").keys() == contents(finished[0]).keys()
    assert "already holds a run" in refused(capsys, *command, "--output-dir", "run", "--quiet")


@pytest.mark.slow
def test_a_quiet_program_says_nothing_either(here: Path) -> None:
    """Nor do the libraries, which read the data for the first time here."""
    options = ("--epochs", "1", "--max-train-samples", "64", "--max-eval-samples", "20", "--output-dir", "run")
    result = fresh("-m", "feature_gan_kd", "train", *options, "--quiet", HF_HOME=str(here / "hf"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (here / "run" / "curves.png").exists()


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_run_for_a_program(
    quiet: tuple[str, ...], command: tuple[object, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line of stdout is a record, the last one the result; what is for people is on stderr, if anywhere."""
    out, err = printed_by(capsys, *command, "--output-dir", "run", "--json", *quiet)
    lines = [json.loads(line) for line in out.splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["start", "step", "step", "epoch", "checkpoint", "step", "step", "epoch", "checkpoint", "end"]
    records = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if line["event"] in ("step", "epoch")] == records
    end = lines[-1]
    assert (end["accuracy"], end["ensemble"]) == (accuracies(records[-1]), ensemble(records[-1]))
    epochs = [accuracies(one) for one in records if one["event"] == "epoch"]
    assert [one["accuracy"] for one in end["best"]] == [max(own) for own in zip(*epochs, strict=True)]
    assert end["commands"].keys() == {"report", "evaluate", "export"}
    assert ("test_resnet (0) -> test_vit (1)" in err) == ("epoch 2/2" in err) == (not quiet)


def test_other_commands_for_a_program(finished: tuple[Path, str], here: Path) -> None:
    """One line of JSON each."""
    folders = json.loads(output_of("export", finished[0], "out", "--json"))["folders"]
    assert folders == ["out/0-test_resnet", "out/1-test_vit"]
    assert json.loads(output_of("report", finished[0], "--output", "page.html", "--json")) == {"report": "page.html"}
    assert (here / "page.html").exists()


def test_two_runs_of_one_command_differ_in_times_alone(
    finished: tuple[Path, str], command: tuple[object, ...], here: Path
) -> None:
    one, other = contents(finished[0]), {}
    output_of(*command, "--output-dir", "run")
    other = contents(here / "run")
    timed = {"metrics.jsonl", "curves.png"} | {n for n in one if n.endswith(("state.json", "manifest.json"))}
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name] and name not in timed] == []
    assert sum(name.endswith(".safetensors") for name in one) > 12
    times = ("seconds", "seconds_left", "train/images_per_second", "train/epoch_images_per_second")

    def untimed(files: dict[str, bytes | None]) -> list[dict[str, Any]]:
        lines = (files["metrics.jsonl"] or b"").splitlines()
        flat = [{**record, **record["metrics"], "metrics": None} for record in map(json.loads, lines)]
        return [{key: value for key, value in record.items() if key not in times} for record in flat]

    assert untimed(one) == untimed(other)


def test_resuming_a_finished_run_shows_it_and_changes_nothing(
    finished: tuple[Path, str], command: tuple[object, ...], here: Path
) -> None:
    shutil.copytree(finished[0], here / "run")
    before = contents(here / "run")
    printed = output_of(*command, "--output-dir", "run", "--resume")
    assert contents(here / "run") == before
    printed = re.sub(r"\brun(?=[/\s])", str(finished[0]), printed)
    assert printed == finished[1]


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ("--lr 0.02", "config lr 0.01, this run has 0.02"),
        ("--epochs 3", "config epochs 2, this run has 3"),
        ("--seed 1", "config seed 0, this run has 1"),
        ("--method l1", 'config method "afd", this run has "l1"'),
        ("--frozen 0", "edges"),
        ("--max-train-samples 25", "config max_train_samples 24, this run has 25"),
        ("--label-column coarse", "num_classes 4, this run has 2"),
        ("--models test_vit test_resnet", "models"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    change: str,
    setting: str,
    finished: tuple[Path, str],
    command: tuple[object, ...],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished[0], here / "run")
    line = refused(capsys, *command, "--output-dir", "run", "--resume", *change.split())
    assert setting in line
    assert "step-6: was written with" in line


def test_a_run_without_a_checkpoint_is_described_anew(
    finished: tuple[Path, str], command: tuple[object, ...], here: Path
) -> None:
    """Killed before its first checkpoint, it starts again, with the settings of the second command."""
    (here / "run").mkdir()
    shutil.copy(finished[0] / "config.json", here / "run")
    output_of(*command, "--output-dir", "run", "--resume", "--epochs", "1", "--seed", "4")
    about = json.loads((here / "run" / "config.json").read_text())
    assert (about["config"]["epochs"], about["config"]["seed"]) == (1, 4)


# Afterwards.


def last_record(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return record


def accuracies(record: dict[str, Any]) -> list[float]:
    return [record["metrics"][f"eval/accuracy/{k}"] for k in (0, 1)]


def ensemble(record: dict[str, Any]) -> float:
    return float(record["metrics"]["eval/accuracy/ensemble"])


def agrees(run: Path, *options: object) -> None:
    """`evaluate` gives the figures of the run's last epoch."""
    found, expected = json.loads(output_of("evaluate", run, "--json", *options)), last_record(run)
    assert found["accuracy"] == accuracies(expected)
    assert found["ensemble"] == ensemble(expected)
    assert found["images"] == expected["metrics"]["eval/images"]
    losses = [expected["metrics"][f"eval/cross_entropy/{k}"] for k in (0, 1)]
    assert found["cross_entropy"] == pytest.approx(losses, rel=1e-5)


def test_evaluate_agrees_with_the_table(finished: tuple[Path, str], data: Path) -> None:
    run, _ = finished
    before = contents(run)
    agrees(run)
    agrees(run, "--data", data / "good")
    printed = output_of("evaluate", run)
    assert [line.split()[0] for line in printed.splitlines()] == ["test_resnet", "test_vit", "ensemble", "on"]
    assert f"ensemble                 top-1 {ensemble(last_record(run)):6.2f} %" in printed
    assert "on 11 images; hardest for the ensemble: " in printed
    assert contents(run) == before


def test_evaluate_on_other_images(finished: tuple[Path, str], data: Path) -> None:
    test, train = (
        json.loads(output_of("evaluate", finished[0], "--data", data / folder, "--eval-split", split, "--json"))
        for folder, split in (("good", "test"), ("one-split", "train"))
    )
    recorded = last_record(finished[0])["metrics"]
    assert test["cross_entropy"] == pytest.approx([recorded[f"eval/cross_entropy/{k}"] for k in (0, 1)], rel=1e-5)
    assert train["cross_entropy"] != test["cross_entropy"]


def test_evaluate_takes_what_training_held_out(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the training images, where the data have no split for evaluation; and no other column of labels."""
    options = ("--epochs", "1", "--data", data / "one-split", "--label-column", "coarse", "--output-dir", "run")
    main([str(arg) for arg in ("train", *PAIR, *options)])
    assert "labels in 'coarse'" in capsys.readouterr().err
    config = json.loads((here / "run" / "networks" / "0-test_resnet" / "config.json").read_text())
    assert config["label_names"] == ["wild", "tame"]
    assert last_record(here / "run")["metrics"]["eval/images"] == 8
    agrees(here / "run")


def test_evaluate_takes_the_evaluation_data_of_the_run(data: Path, here: Path) -> None:
    """And the models' own size of images, where none was named."""
    sources = ("--data", data / "one-split", "--eval-data", data / "good")
    pair = ("--models", "cifar_resnet20", "test_resnet", "--batch-size", "20")
    output_of("train", *pair, *sources, "--epochs", "1", "--output-dir", "run")
    assert last_record(here / "run")["metrics"]["eval/images"] == 13
    agrees(here / "run")


def test_columns_and_splits_are_named_and_kept(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--train-split", "test", "--eval-split", "train", "--data", str(data / "good"), "--output-dir", "run")
    main(["train", *PAIR, "--epochs", "1", *options])
    printed = capsys.readouterr()
    assert (
        "split 'test': 13 images of 4 classes in column 'picture', labels in 'fine' (also there: coarse; choose with"
        in printed.err
    )
    assert "split 'train': 40 images" in printed.err
    assert last_record(here / "run")["metrics"]["eval/images"] == 40
    agrees(here / "run")


@pytest.mark.parametrize("which", ["last", "best"])
def test_export_gives_the_models_of_the_run(which: str, finished: tuple[Path, str], here: Path) -> None:
    """The best weights are marked, so that they cannot be mistaken for the last."""
    run = here / "run"
    shutil.copytree(finished[0], run)
    suffix = "-best" if which == "best" else ""
    for name in ("0-test_resnet-best", "1-test_vit-best"):
        path = run / "networks" / name / "model.safetensors"
        save_file({key: value + 1 for key, value in load_file(path).items()}, path)
    printed = output_of("export", run, "out", "--which", which, "--license", "mit")
    assert printed.splitlines() == ["out/0-test_resnet", "out/1-test_vit"]
    for name in ("0-test_resnet", "1-test_vit"):
        mine, theirs = (
            load_file(folder / "model.safetensors")
            for folder in (here / "out" / name, run / "networks" / f"{name}{suffix}")
        )
        assert mine.keys() == theirs.keys()
        assert all(bool((mine[key] == theirs[key]).all()) for key in mine)
        card = (here / "out" / name / "README.md").read_text()
        assert "license: mit" in card
        assert f"{which} epoch" in card or which in card


def test_inspect_draws_the_wiring(here: Path, data: Path) -> None:
    options = ("--data", data / "good", "--topology", "star", "--feature-layers", "-1")
    printed = output_of("inspect", "--models", "cifar_resnet20", "cifar_resnet32", "test_resnet", *options)
    lessons = [line.split("  ")[0] for line in printed.splitlines() if ") -> " in line]
    assert lessons == [
        "cifar_resnet20 (0) -> cifar_resnet32 (1)",
        "cifar_resnet32 (1) -> cifar_resnet20 (0)",
        "cifar_resnet20 (0) -> test_resnet (2)",
        "test_resnet (2) -> cifar_resnet20 (0)",
    ]
    assert "64x8x8 at 32 px" in printed
    assert list(here.iterdir()) == []


def test_without_models_and_data_it_is_the_demo(here: Path) -> None:
    printed = output_of("train", "--epochs", "1", "--output-dir", "run")
    about = json.loads((here / "run" / "config.json").read_text())
    assert [model["architecture"] for model in about["models"]] == ["test_convnext2", "test_resnet"]
    assert about["data"]["name"] == "bundled digits"
    assert (about["data"]["train_images"], about["data"]["evaluation_images"]) == (200, 359)
    assert (about["config"]["epochs"], about["config"]["optimizer"]) == (1, "adamw")
    assert "1 of 1 epochs" in printed
    agrees(here / "run")


# The program itself.


def fresh(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


def test_a_reader_who_leaves_ends_it_without_a_word() -> None:
    """As in `feature-gan-kd train --help | head -1`."""
    command = [sys.executable, "-m", "feature_gan_kd", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_help_is_there_at_once() -> None:
    code = """
import sys, time
from feature_gan_kd.cli import main
try:
    main([sys.argv[1], "--help"][-int(sys.argv[2]):])
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "timm", "accelerate", "datasets"} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 1, time.process_time()
"""
    for command in ("all", *COMMANDS):
        result = fresh("-c", code, command, "1" if command == "all" else "2")
        assert result.returncode == 0, result.stderr
        of_commands = {"train": "scale-adversarial-lr"}
        names = COMMANDS if command == "all" else [of_commands.get(command, f"feature-gan-kd {command}")]
        assert all(name in result.stdout for name in names)


def test_as_a_module() -> None:
    result = fresh("-m", "feature_gan_kd", "--version")
    assert (result.returncode, result.stdout) == (0, f"{feature_gan_kd.__version__}\n")


def test_the_line_does_not_depend_on_the_terminal() -> None:
    result = fresh("-m", "feature_gan_kd", "train", "--output-dir", "x", "--epochs", "0", PYTHONIOENCODING="ascii")
    assert result.returncode == 2
    assert result.stderr.startswith("feature-gan-kd: error: --epochs: 0 is not allowed, expected ")
    assert result.stdout == ""


def test_an_interrupted_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "inspect", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["inspect"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "feature-gan-kd: interrupted\n"
