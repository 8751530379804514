"""The grid of runs, their commands, and one small comparison from the first run to the table."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.compare.__main__ import main
from benchmarks.compare.presets import METHODS, PAIRS, PRESETS, ZERO_GRADIENT
from benchmarks.compare.runs import Run, grid
from feature_gan_kd.cli.main import parse
from feature_gan_kd.report import read_run

ROOT = Path(__file__).parents[2]


def test_grid_is_ordered_by_seed(tmp_path: Path) -> None:
    runs = grid("smoke", tmp_path)
    methods = ["vanilla", "logit", "afd", "offline-logit"]
    assert [run.name for run in runs] == [f"tiny/{method}/{seed}" for seed in (0, 1) for method in methods]
    assert len({run.result for run in runs}) == len({run.place for run in runs}) == 8


@pytest.mark.parametrize(
    ("only", "count"),
    [([], 8), (["afd"], 2), (["0"], 4), (["*afd*", "tiny/vanilla/1"], 3), (["tiny/*/0"], 4), (["r20"], 0)],
)
def test_only(tmp_path: Path, only: list[str], count: int) -> None:
    assert len(grid("smoke", tmp_path, only)) == count


def test_command() -> None:
    run = Run("smoke", "tiny", "afd", 1, Path("out"))
    options = "--epochs 2 --batch-size 64 --image-size 32 --max-train-samples 256 --max-eval-samples 100 --lr 0.05"
    rates = "--adversarial-lr 2e-4 --discriminator-lr 2e-4"
    assert shlex.join(run.command("digits")) == (
        f"train --models test_resnet test_vit --seed 1 --data digits {options} {rates} --method afd "
        "--output-dir out/runs/smoke/tiny/afd/1"
    )
    assert "--data" not in run.command(None)


def test_command_of_an_offline_method() -> None:
    run = Run("cpu", "r20+wrn16", "offline-afd", 2, Path("out"))
    assert run.teacher == Run("cpu", "r20+wrn16", "vanilla", 2, Path("out"))
    words = shlex.join(run.command(None))
    teacher = "local-dir:out/runs/cpu/r20+wrn16/vanilla/2/networks/1-cifar_wrn_16_2"
    assert words.startswith(f"train --models cifar_resnet20 {teacher} --seed 2 --data uoft-cs/cifar100 ")
    assert " --method afd --frozen 1 --output-dir " in words


@pytest.mark.parametrize("preset", PRESETS)
def test_every_command_of_a_preset_is_understood(preset: str, tmp_path: Path) -> None:
    runs = grid(preset, tmp_path)
    # Options follow from the method and from the pair alone: every method once and every pair once will do.
    some = {run.method: run for run in runs} | {run.pair: run for run in runs}
    for run in some.values():
        parse(run.command(None))


def test_presets_name_what_there_is() -> None:
    for preset in PRESETS.values():
        assert set(preset.pairs) <= PAIRS.keys()
        assert set(preset.methods) <= METHODS.keys()
        assert len(set(preset.seeds)) == len(preset.seeds)
    assert ZERO_GRADIENT.keys() | set(ZERO_GRADIENT.values()) <= METHODS.keys()


def test_offline_methods_are_for_two_models(tmp_path: Path) -> None:
    wide = [run for run in grid("paper", tmp_path) if len(PAIRS[run.pair]) > 2]
    assert {run.pair for run in wide} == {"r32x3", "r32x4", "r32x3-complete", "r32x4-complete"}
    assert [run.name for run in wide if run.teacher] == []
    topologies = {run.pair: "--topology" in run.command(None) for run in wide}
    assert [pair for pair, complete in topologies.items() if complete] == ["r32x3-complete", "r32x4-complete"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "--preset and --output-dir are needed"),
        ("--preset smoke", "--preset and --output-dir are needed"),
        ("--preset tpu --output-dir {}", "--preset: invalid choice: 'tpu'"),
        ("--preset smoke --output-dir {} --only gan", "--only: gan matches no run of smoke"),
        ("--preset smoke --output-dir {} --jobs 0", "--jobs: 0 is not allowed, expected a number above 0"),
        ("--preset smoke --output-dir {} --jobs two", "--jobs: invalid whole number value: 'two'"),
        ("--preset smoke --output-dir {} --minutes nan", "--minutes: nan is not allowed"),
        ("--preset smoke --output-dir {} --launch no-such-launcher", "--launch: there is no command no-such-launcher"),
        ("--preset smoke --output-dir {}/file/x", "--output-dir: {}/file/x cannot be made (Not a directory)"),
        ("--preset smoke --output-dir {} --markdown", "--markdown: goes with --tabulate"),
        ("--preset smoke --output-dir {} --speed 3", "unrecognized arguments: --speed 3"),
        ("--tabulate {}/nowhere", "--tabulate: {}/nowhere is no folder"),
        ("--tabulate {}", "--tabulate: {} has no finished run"),
        ("--tabulate {} --preset smoke", "--preset: does not go with --tabulate"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str) -> None:
    (tmp_path / "file").touch()
    assert main(arguments.format(tmp_path).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("benchmarks.compare: error: ")
    assert said.format(tmp_path) in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def compare(folder: Path, *more: str) -> list[str]:
    """The command of the preset `smoke`."""
    words = [sys.executable, "-m", "benchmarks.compare", "--preset", "smoke", "--threads", "1", "--jobs", "2"]
    return [*words, "--output-dir", str(folder), *more]


def test_a_small_comparison_killed_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = compare(tmp_path, "--only", "tiny/vanilla/0", "tiny/offline-kl/0")
    vanilla, offline = grid("smoke", tmp_path, ["tiny/vanilla/0", "tiny/offline-kl/0"])
    process = subprocess.Popen(words, cwd=ROOT)
    while not vanilla.log.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not offline.log.exists()
    subprocess.run(words, cwd=ROOT, check=True)
    result = json.loads(offline.result.read_text())
    assert result["frozen"] == [1]
    # The frozen teacher is the model that the vanilla run left.
    teacher = json.loads(vanilla.result.read_text())["epochs"][-1]["accuracy"][1]
    assert [epoch["accuracy"][1] for epoch in result["epochs"]] == [teacher] * 2
    assert len(read_run(vanilla.place).epochs) == 2
    assert not (vanilla.place / "checkpoints").exists()
    before = vanilla.log.read_bytes(), offline.log.read_bytes()
    assert main(words[3:]) == 0
    assert (vanilla.log.read_bytes(), offline.log.read_bytes()) == before
    capsys.readouterr()
    assert main(["--tabulate", str(tmp_path), "--markdown"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split("|")[2].strip() for line in out.splitlines() if line.startswith("| ensemble")] == [
        *("vanilla", "offline-logit"),
        *("vanilla", "offline-logit"),
    ]


@pytest.mark.slow
def test_the_whole_smoke_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """70 s on two cores of a loaded machine."""
    assert main(compare(tmp_path)[3:]) == 0
    capsys.readouterr()
    assert main(["--tabulate", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "left out" not in err
    assert out.count("| ensemble ") == 8
    assert (tmp_path / "smoke-tiny.png").exists()
