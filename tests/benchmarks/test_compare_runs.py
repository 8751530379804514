"""The list of runs, their commands, and a small comparison from the first run to the table."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare.__main__ import main
from benchmarks.compare.presets import METHODS, PAIRS, PRESETS, ZERO_GRADIENT
from benchmarks.compare.runs import Run, list_runs
from feature_gan_kd.cli.main import parse
from feature_gan_kd.cli.train import DEMO
from feature_gan_kd.report import read_run
from tests.benchmarks.records import write_result

ROOT = Path(__file__).parents[2]


def test_runs_are_ordered_by_seed(tmp_path: Path) -> None:
    runs = list_runs("smoke", tmp_path)
    methods = ["vanilla", "logit", "afd", "offline-logit"]
    assert [run.name for run in runs] == [f"tiny/{method}/{seed}" for seed in (0, 1) for method in methods]
    assert len({run.result for run in runs}) == len({run.folder for run in runs}) == 8


@pytest.mark.parametrize(
    ("only", "count"),
    [([], 8), (["afd"], 2), (["0"], 4), (["*afd*", "tiny/vanilla/1"], 3), (["tiny/*/0"], 4), (["r20"], 0)],
)
def test_only(tmp_path: Path, only: list[str], count: int) -> None:
    assert len(list_runs("smoke", tmp_path, only)) == count


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


@pytest.mark.parametrize(("flag", "said"), [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx2", "no")])
def test_the_cpu_preset_computes_in_bf16_only_where_the_processor_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, said: str
) -> None:
    monkeypatch.setattr("feature_gan_kd.utils.processor.CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"flags\t: fpu {flag}\n")
    words = Run("cpu", "r14+r14", "afd", 0, tmp_path).command(None)
    assert words[words.index("--mixed-precision") + 1] == said
    assert "--mixed-precision auto" in shlex.join(Run("paper", "r32+r32", "afd", 0, tmp_path).command(None))


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({"precision": "bf16"}, "in bf16 on Z80"),
        ({"processor": "6502"}, "in fp32 on 6502"),
        ({"processor": None}, "in fp32 on a processor that was not recorded"),
    ],
)
def test_results_of_another_machine_are_refused_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    about: dict[str, Any],
    found: str,
) -> None:
    monkeypatch.setattr("feature_gan_kd.utils.processor.CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("model name\t: Z80\nflags\t: avx2\n")
    path = write_result(tmp_path, "afd", 0, [[1.0, 2.0, 3.0]], pair="r14+r14", preset="cpu", **about)
    assert main(["--preset", "cpu", "--only", "r14+r14/*/0", "--output-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"benchmarks.compare: error: --output-dir: {path} was computed {found}, this machine computes in fp32 on Z80: "
        "name another folder\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_command_of_a_preset_is_understood(preset: str, tmp_path: Path) -> None:
    runs = list_runs(preset, tmp_path)
    # Options depend on the method and on the pair alone, so every method once and every pair once is enough.
    some = {run.method: run for run in runs} | {run.pair: run for run in runs}
    for run in some.values():
        parse(run.command(None))


def test_presets_name_what_there_is() -> None:
    for preset in PRESETS.values():
        assert set(preset.pairs) <= PAIRS.keys()
        assert set(preset.methods) <= METHODS.keys()
        assert len(set(preset.seeds)) == len(preset.seeds)
    assert ZERO_GRADIENT.keys() | set(ZERO_GRADIENT.values()) <= METHODS.keys()


def test_the_preset_demo_is_the_demo(tmp_path: Path) -> None:
    (run,) = list_runs("demo", tmp_path, ["demo/afd/0"])
    words = run.command(None)
    asked = {word for word in DEMO if word.startswith("--")}
    for option in asked - {"--models"}:
        assert words[words.index(option) + 1] == DEMO[DEMO.index(option) + 1], option
    assert PAIRS["demo"] == DEMO[1:3]


def test_offline_methods_are_for_two_models(tmp_path: Path) -> None:
    wide = [run for run in list_runs("paper", tmp_path) if len(PAIRS[run.pair]) > 2]
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
        ("--preset smoke --output-dir {}/file/x", "--output-dir: {}/file/x cannot be created (Not a directory)"),
        ("--preset smoke --output-dir {} --markdown", "--markdown: needs --tabulate"),
        ("--preset smoke --output-dir {} --speed 3", "unrecognized arguments: --speed 3"),
        ("--tabulate {}/nowhere", "--tabulate: {}/nowhere is not a folder"),
        ("--tabulate {}", "--tabulate: {} has no finished run"),
        ("--tabulate {} --preset smoke", "--preset: is not allowed with --tabulate"),
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


@pytest.mark.slow
def test_a_small_comparison_killed_midway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = compare(tmp_path, "--only", "tiny/vanilla/0", "tiny/offline-logit/0")
    vanilla, offline = list_runs("smoke", tmp_path, ["tiny/vanilla/0", "tiny/offline-logit/0"])
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
    teacher = json.loads(vanilla.result.read_text())["epochs"][-1]["metrics"]["eval/accuracy/1"]
    assert [epoch["metrics"]["eval/accuracy/1"] for epoch in result["epochs"]] == [teacher] * 2
    assert len(read_run(vanilla.folder).epochs) == 2
    assert not (vanilla.folder / "checkpoints").exists()
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
    """Takes 70 s on two cores of a loaded machine."""
    assert main(compare(tmp_path)[3:]) == 0
    capsys.readouterr()
    assert main(["--tabulate", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "left out" not in err
    assert out.count("| ensemble ") == 8
    assert (tmp_path / "smoke-tiny.png").exists()
