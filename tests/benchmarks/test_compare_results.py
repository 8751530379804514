"""Which results are compared with each other, which are left out and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare.presets import METHODS, PRESETS
from benchmarks.compare.results import collect
from feature_gan_kd.utils.errors import UserError
from tests.benchmarks.records import DATA, evaluation, write_result

EPOCHS = [[10.0, 20.0, 30.0], [12.0, 22.0, 28.0]]


def test_methods_and_seeds_of_one_schedule_are_one_comparison(tmp_path: Path) -> None:
    for method in METHODS:
        write_result(tmp_path, method, 3, EPOCHS)
        write_result(tmp_path, method, 1, EPOCHS)
    (one,), left_out = collect(tmp_path)
    assert left_out == []
    assert list(one.results) == list(METHODS)
    assert {method: list(seeds) for method, seeds in one.results.items()} == {method: [1, 3] for method in METHODS}
    assert one.differing == {}


def test_a_method_may_change_what_its_preset_sets(tmp_path: Path) -> None:
    assert PRESETS["smoke"].options["adversarial-lr"] == "2e-4"
    write_result(tmp_path, "afd", 0, EPOCHS, settings={"adversarial_lr": 2e-4})
    write_result(tmp_path, "afd-fast", 0, EPOCHS)
    (one,), left_out = collect(tmp_path)
    assert left_out == []
    assert list(one.results) == ["afd", "afd-fast"]
    write_result(tmp_path, "afd", 1, EPOCHS, settings={"adversarial_lr": 3e-4})
    assert len(collect(tmp_path)[0]) == 2


def test_scores(tmp_path: Path) -> None:
    write_result(tmp_path, "vanilla", 0, EPOCHS)
    write_result(tmp_path, "offline-logit", 0, EPOCHS)
    (one,), _ = collect(tmp_path)
    assert one.curve_names() == ["0 test_resnet", "1 test_vit", "mean of the models", "ensemble"]
    assert [one.scores("vanilla", name)[0] for name in one.curve_names()] == [12, 22, 17, 28]
    assert [one.scores("vanilla", name, best=True)[0] for name in one.curve_names()] == [12, 22, 17, 30]
    # The frozen teacher learned nothing, and a mean of one model is not a mean of both.
    assert [one.scores("offline-logit", name) for name in one.curve_names()] == [{0: 12}, {}, {}, {0: 28}]
    assert one.scores("afd", "ensemble") == {}


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"settings": {"lr": 0.3}}, {"lr": 0.3}),
        ({"settings": {"temperature": 4.0}}, {"temperature": 4.0}),
        ({"data": {**DATA, "fingerprint": "other"}}, {"data_fingerprint": "other"}),
        ({"data": {**DATA, "evaluation_images": 99}}, {"data_evaluation_images": 99}),
        ({"launch": ["accelerate", "launch"]}, {"launch": "accelerate launch"}),
    ],
)
def test_another_schedule_is_another_comparison(
    tmp_path: Path, change: dict[str, Any], differing: dict[str, Any]
) -> None:
    for method in ("vanilla", "afd"):
        write_result(tmp_path, method, 0, EPOCHS)
        write_result(tmp_path, method, 1, EPOCHS, **change)
    found, left_out = collect(tmp_path)
    assert left_out == []
    seeds = {tuple(one.results["afd"]): one.differing for one in found}
    assert seeds[1,] == differing
    assert {key: seeds[0,][key] for key in differing} != differing
    assert all(one.results.keys() == {"vanilla", "afd"} for one in found)


def test_images_that_each_seed_draws_for_itself_are_one_comparison(tmp_path: Path) -> None:
    """Runs of one seed have the same images; those of other seeds have others of the same data."""
    few = {"max_train_samples": 1000}
    for method in ("vanilla", "afd"):
        for seed in (0, 1):
            data = {**DATA, "fingerprint": f"drawn by {seed}"}
            write_result(tmp_path, method, seed, EPOCHS, settings=few, data=data)
    (one,), left_out = collect(tmp_path)
    assert left_out == []
    assert list(one.results["afd"]) == list(one.results["vanilla"]) == [0, 1]
    write_result(tmp_path, "logit", 1, EPOCHS, settings=few, data={**DATA, "fingerprint": "of other images"})
    assert sorted(list(one.results) for one in collect(tmp_path)[0]) == [
        ["logit"],
        ["vanilla", "afd"],
        ["vanilla", "afd"],
    ]


def test_settings_that_change_no_weight_tell_no_schedules_apart(tmp_path: Path) -> None:
    write_result(tmp_path, "afd", 0, EPOCHS)
    write_result(tmp_path, "afd", 1, EPOCHS, settings={"num_workers": 3, "keep_checkpoints": 5, "compile": True})
    # Stating a default changes nothing either.
    write_result(tmp_path, "afd", 2, EPOCHS, settings={"cutmix": 0.0, "batch_size": 128, "mixed_precision": "no"})
    (one,), _ = collect(tmp_path)
    assert list(one.results["afd"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("about", "machine"),
    [
        ({"precision": "bf16"}, "in bf16 on Z80"),
        ({"processor": "6502"}, "in fp32 on 6502"),
        ({"processor": None}, "in fp32 on a processor that was not recorded"),
        ({"device": "NVIDIA H100"}, "in fp32 on NVIDIA H100"),
        ({"precision": "bf16", "settings": {"mixed_precision": "bf16"}}, "in bf16 on Z80"),
    ],
)
def test_results_of_several_processors_or_precisions_are_refused(
    tmp_path: Path, about: dict[str, Any], machine: str
) -> None:
    write_result(tmp_path, "afd", 0, EPOCHS)
    write_result(tmp_path, "vanilla", 1, EPOCHS, **about)
    with pytest.raises(UserError) as error:
        collect(tmp_path)
    assert str(error.value) == (
        f"--tabulate: {tmp_path}: smoke/tiny-afd-0.json was computed in fp32 on Z80, smoke/tiny-vanilla-1.json "
        f"{machine}: give the results of each processor and precision a folder of their own"
    )


def test_another_schedule_may_be_of_another_machine(tmp_path: Path) -> None:
    write_result(tmp_path, "afd", 0, EPOCHS)
    write_result(tmp_path, "afd", 0, EPOCHS, pair="r20+r20", precision="bf16")
    found, left_out = collect(tmp_path)
    assert (len(found), left_out) == (2, [])


def test_on_a_gpu_the_processor_does_not_matter(tmp_path: Path) -> None:
    write_result(tmp_path, "afd", 0, EPOCHS, device="NVIDIA H100", processor="Z80")
    write_result(tmp_path, "afd", 1, EPOCHS, device="NVIDIA H100", processor="6502")
    assert len(collect(tmp_path)[0]) == 1


def test_evaluations_may_be_rare(tmp_path: Path) -> None:
    path = write_result(tmp_path, "afd", 0, EPOCHS, settings={"epochs": 5, "evaluate_every_epochs": 3})
    about = json.loads(path.read_text())
    for record, epoch in zip(about["epochs"], (3, 5), strict=True):
        record["epoch"] = epoch
    path.write_text(json.dumps(about))
    (one,), left_out = collect(tmp_path)
    assert left_out == []
    assert one.any_result.evaluated == [3, 5]
    about["epochs"].pop()
    path.write_text(json.dumps(about))
    write_result(tmp_path, "vanilla", 0, EPOCHS)
    assert collect(tmp_path)[1] == ["smoke/tiny-afd-0.json: unfinished: 3 of 5 epochs"]


def test_presets_and_pairs_have_comparisons_of_their_own(tmp_path: Path) -> None:
    for preset, pair in (("paper", "tiny"), ("smoke", "r20+r20"), ("smoke", "tiny")):
        write_result(tmp_path, "afd", 0, EPOCHS, pair=pair, preset=preset, file=f"{preset}{pair}.json")
    found, _ = collect(tmp_path)
    assert [(one.preset, one.pair) for one in found] == [("smoke", "r20+r20"), ("smoke", "tiny"), ("paper", "tiny")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"settings": {"epochs": 3}}, "unfinished: 2 of 3 epochs"),
        ({"settings": {"epochs": 1}}, "damaged: 2 evaluations, its settings say 1"),
        ({"settings": {"method": "logit"}}, "foreign: its method is logit, that of afd/0 is afd"),
        ({"settings": {"seed": 4}}, "foreign: its seed is 4, that of afd/0 is 0"),
        ({"method": "gan"}, "foreign: there is no method 'gan' here"),
        ({"pair": "r20+r21"}, "foreign: there is no pair 'r20+r21' here"),
        ({"preset": "tpu"}, "foreign: there is no preset 'tpu' here"),
        ({"models": ["a", "b"]}, "foreign: its models are a and b, not those of tiny"),
        ({"config": {"speed": 3}}, "foreign: its settings are not this version's"),
        ({"data": {}}, "foreign: it does not say the fingerprint of its data"),
        ({"epochs": None}, "foreign: it is not a result of a comparison (it has no 'epochs')"),
        ({"command": ["rm"]}, "foreign: it does not say its command"),
        ({"epochs": [{"epoch": 1}, {}]}, "damaged: record 1 is not that of an epoch"),
        ({"epochs": [{"epoch": 2, "metrics": evaluation(1, 1, 1)}] * 2}, "damaged: record 1 is not that of epoch 1"),
        ({"epochs": [{"epoch": 1, "metrics": evaluation(1, 1)}] * 2}, "damaged: record 1 is not that of an epoch of 2"),
        ({"epochs": [{"epoch": 1, "metrics": evaluation(1, 1, 1, 1)}] * 2}, "damaged: record 1 is not that of epoch 1"),
        ({"epochs": [{"epoch": 1, "metrics": evaluation(1, 101, 1)}] * 2}, "damaged: record 1 is not that of epoch 1"),
        ({"epochs": [{"epoch": 1, "metrics": evaluation(1, float("nan"), 1)}] * 2}, "damaged: record 1 is not that of"),
    ],
)
def test_what_no_table_can_hold_is_left_out(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    write_result(tmp_path, "vanilla", 0, EPOCHS)
    path = write_result(tmp_path, "afd", 0, EPOCHS, file="afd.json")
    if "settings" in change:
        path = write_result(tmp_path, "afd", 0, EPOCHS, file="afd.json", **change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (one,), (line,) = collect(tmp_path)
    assert line.startswith(f"smoke/afd.json: {reason}")
    assert "\n" not in line
    assert list(one.results) == ["vanilla"]


@pytest.mark.parametrize("content", [b"", b'{"preset": "smo', b"\xff\xfe", b"[1]", b"3"])
def test_damaged_and_foreign_files_are_left_out(tmp_path: Path, content: bytes) -> None:
    write_result(tmp_path, "vanilla", 0, EPOCHS)
    (tmp_path / "notes.json").write_bytes(content)
    (one,), (line,) = collect(tmp_path)
    assert line.startswith("notes.json: ")
    assert list(one.results) == ["vanilla"]


def test_a_run_that_is_there_twice(tmp_path: Path) -> None:
    write_result(tmp_path, "vanilla", 0, EPOCHS)
    shutil.copy(write_result(tmp_path, "afd", 0, EPOCHS), tmp_path / "smoke" / "zz.json")
    (one,), left_out = collect(tmp_path)
    assert left_out == ["smoke/zz.json: the same run as smoke/tiny-afd-0.json"]
    assert list(one.results["afd"]) == [0]
    write_result(tmp_path, "afd", 0, EPOCHS[::-1], file="zz.json")
    (one,), left_out = collect(tmp_path)
    assert [line.split(":")[0] for line in left_out] == ["smoke/tiny-afd-0.json", "smoke/zz.json"]
    assert list(one.results) == ["vanilla"]


def test_runs_without_a_result_are_named(tmp_path: Path) -> None:
    write_result(tmp_path, "vanilla", 0, EPOCHS)
    for method in ("vanilla", "afd", "logit"):
        place = tmp_path / "runs" / "smoke" / "tiny" / method / "0"
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"config": {"epochs": 9}}))
    (tmp_path / "runs/smoke/tiny/afd/0/metrics.jsonl").write_text('{"event": "step"}\n{"event": "epoch"}\n')
    _, left_out = collect(tmp_path)
    assert left_out == [
        "runs/smoke/tiny/afd/0: unfinished: 1 of 9 epochs",
        "runs/smoke/tiny/logit/0: unfinished: its records cannot be read",
    ]


def test_the_folder_of_a_preset_is_enough(tmp_path: Path) -> None:
    write_result(tmp_path, "vanilla", 0, EPOCHS)
    (one,), _ = collect(tmp_path / "smoke")
    assert list(one.results) == ["vanilla"]


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no finished run: name"):
        collect(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"1 left out, the first is sweep\.json: foreign"):
        collect(tmp_path)
