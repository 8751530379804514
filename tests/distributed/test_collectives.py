"""Several processes on gloo against one: whole trainings, and what happens where one of them fails."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.cli import main
from feature_gan_kd.distributed.collectives import (
    all_ranks_equal,
    check_ranks_equal,
    explain_lost_process,
)
from feature_gan_kd.distributed.launch import usable_accelerator
from feature_gan_kd.training.checkpoint_files import list_checkpoints
from tests.helpers.launching import launch
from tests.helpers.worker import CASES, run

TIMED = ("seconds", "seconds_left", "train/images_per_second", "train/epoch_images_per_second")


def state_of(run_folder: Path) -> dict[str, Tensor]:
    """Every tensor of a run's last checkpoint: models, discriminators, transfers, optimisers."""
    folder = list_checkpoints(run_folder / "checkpoints")[0]
    return {
        f"{path.stem} {key}": value
        for path in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def numbers_of(run_folder: Path) -> dict[str, Any]:
    """Every value in a run's metrics but times, by its place."""

    def walk(value: Any, place: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, (dict, list)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            for key, one in inner:
                if key not in TIMED:
                    yield from walk(one, f"{place} {key}")
        else:
            yield place, value

    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return {place: value for number, line in enumerate(lines) for place, value in walk(json.loads(line), f"{number}")}


def assert_same_run(found: Path, expected: Path) -> None:
    """The same records and the same last state, up to rounding, of which the largest figures are printed.

    The models and the losses are float64, but for one case; in all the percentages of right answers and the
    cross-entropy of an evaluation are float32.
    """
    loose = 1e-4 if expected.name == "float32" else 0.0
    weights = losses = 0.0
    ours, theirs = state_of(found), state_of(expected)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        rounding = {"rtol": loose or 1e-9, "atol": loose or 1e-11}
        torch.testing.assert_close(ours[key], value, **rounding, msg=lambda text, key=key: f"{key}: {text}")
        if key.startswith(("model", "link")) and value.numel():
            weights = max(weights, float((ours[key].double() - value).abs().max()))
    numbers, others = numbers_of(found), numbers_of(expected)
    assert numbers.keys() == others.keys()
    for place, number in others.items():
        if isinstance(number, str):
            assert numbers[place] == number, place
            continue
        single = any(
            name in place for name in ("accuracy/", "/right/", "eval/cross_entropy/", "eval/ema_cross_entropy/")
        )
        tolerance = loose or (1e-4 if "accuracy/" in place or "/right/" in place else 1e-6 if single else 1e-11)
        assert numbers[place] == pytest.approx(number, rel=loose or 1e-9, abs=tolerance, nan_ok=True), place
        if "metrics" in place and not single and "/confident/" not in place:  # a percentage
            losses = max(losses, abs(numbers[place] - number))
    print(f"{expected.name}: largest difference of a weight {weights:.1e}, of a loss {losses:.1e}")


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_train_as_one(by_one: Path, by_two: Path, case: str) -> None:
    assert_same_run(by_two / case, by_one / case)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_three_processes_train_as_one(by_one: Path, by_three: Path, case: str) -> None:
    # The last batch has two images: the first of the three processes has none of them.
    assert_same_run(by_three / case, by_one / case)


def test_the_page_counts_the_trainings() -> None:
    assert f"{len(CASES)} trainings" in (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()


def test_every_image_is_evaluated_once(by_two: Path) -> None:
    images = [value for place, value in numbers_of(by_two / "pair").items() if place.endswith(" eval/images")]
    assert images == [50, 50]


def test_all_processes_skip_the_update_in_which_one_meets_nan(by_two: Path) -> None:
    lines = (by_two / "a fault in the last process" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    skipped = {record["step"]: record["metrics"]["train/skipped"] for record in records if record["event"] == "step"}
    assert [step for step, share in skipped.items() if share] == [3]
    assert skipped[3] == 1


def test_an_unequal_weight_ends_the_run_on_every_process(by_two: Path) -> None:
    # `spoil` changed one weight of model 0 by its last bit, on one process alone.
    lines = [(by_two / "spoiled" / f"{rank}.txt").read_text() for rank in range(2)]
    assert lines[0] == lines[1]
    assert lines[0].startswith("processes: the weights of model 0 (SmallModel) are not the same on all 2 processes")
    assert list_checkpoints(by_two / "spoiled" / "run" / "checkpoints") == []


def test_two_processes_go_on_with_what_one_began(by_one: Path, by_two: Path) -> None:
    """In the middle of an epoch."""
    assert_same_run(by_two / "begun by one", by_one / "cycle of 3")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(by_one: Path, by_two: Path, tmp_path: Path) -> None:
    """Alone, or with as many as before."""
    began = time.perf_counter()
    _, said = launch(2, "-m", "tests.helpers.worker", str(tmp_path), "pair", status=1, env={"DIE": "1:10"})
    assert time.perf_counter() - began < 60
    assert "exitcode  : -9" in said
    assert list_checkpoints(tmp_path / "pair" / "checkpoints")[0].name == "step-6"

    shutil.copytree(tmp_path / "pair", tmp_path / "alone")
    run("pair", tmp_path / "alone")
    assert_same_run(tmp_path / "alone", by_one / "pair")
    launch(2, "-m", "tests.helpers.worker", str(tmp_path), "pair")
    for key, value in state_of(by_two / "pair").items():
        assert torch.equal(state_of(tmp_path / "pair")[key], value), key


@pytest.mark.slow
def test_two_machines_train_one_run(by_one: Path, tmp_path: Path) -> None:
    launch(2, "-m", "tests.helpers.worker", str(tmp_path), "pair", "batch norm", machines=2)
    for case in ("pair", "batch norm"):
        assert_same_run(tmp_path / case, by_one / case)


TRAIN = ("-m", "feature_gan_kd", "train", "--models", "test_resnet", "test_vit", "--image-size", "32", "--epochs", "1")


@pytest.mark.slow
def test_the_first_process_alone_writes_and_prints(tmp_path: Path) -> None:
    options = ["--max-train-samples", "150", "--batch-size", "50", "--output-dir", str(tmp_path / "run")]
    out, err = launch(2, *TRAIN, *options)
    for line, count in Counter((out + err).splitlines()).items():
        assert count == 1 or not line.strip(), line
    assert "epoch 1/1" in err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2  # of the last step, of the epoch
    main(["train", *TRAIN[3:], *options, "--resume"])
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-3"]


@pytest.mark.slow
def test_sharded_training_is_refused_once(tmp_path: Path) -> None:
    command = (*TRAIN, "--output-dir", str(tmp_path / "run"))
    _, err = launch(2, *command, status=1, env={"ACCELERATE_USE_FSDP": "true"})
    (line,) = [line for line in err.splitlines() if "feature-gan-kd" in line]
    assert line == (
        "feature-gan-kd: error: accelerate: FSDP takes one model and one gradient per step, the method needs several "
        "of both: launch with plain multi-GPU or multi-CPU"
    )
    assert "exitcode  : 2" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_what_accelerate_may_put_around_a_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(SystemExit, match="2"):
        main([*TRAIN[2:], "--output-dir", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"feature-gan-kd: error: accelerate: {name} takes one model")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_fp8_is_refused() -> None:
    class Eighth:
        distributed_type = Accelerator().distributed_type
        device = torch.device("cpu")
        mixed_precision = "fp8"

    with pytest.raises(UserError, match=r"^accelerate: mixed precision fp8 is not supported: launch with no, bf16 or"):
        usable_accelerator(Eighth())  # type: ignore[arg-type]


def test_gradient_accumulation_by_accelerate_is_refused() -> None:
    with pytest.raises(UserError, match=r"^accelerate: gradient_accumulation_steps is 4, .* set grad_accum_steps=4"):
        usable_accelerator(Accelerator(cpu=True, gradient_accumulation_steps=4))


def test_a_failed_exchange_is_one_line() -> None:
    gone = r"^processes: another of the 1 processes ended.*\(Connection closed by peer\): see"
    with pytest.raises(UserError, match=gone) as said, explain_lost_process():
        raise RuntimeError("Connection closed\nby peer. More")
    assert "\n" not in str(said.value)


def test_one_process_agrees_with_itself() -> None:
    assert all_ranks_equal(torch.tensor([0, -1, 2**63 - 1, -(2**63)])) == [True] * 4
    check_ranks_equal({"model": nn.Linear(2, 2)})
