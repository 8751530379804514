"""The schema agrees with what run files and `DistillConfig` take and refuse, and with what runs write."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from feature_gan_kd import DistillConfig, UserError
from feature_gan_kd.cli import main
from feature_gan_kd.config.run_file import read_run_file
from feature_gan_kd.config.schema import run_file_schema, settings_schema
from tests.helpers.runs import build

ROOT = Path(__file__).parents[2]
SCHEMA, FILE = settings_schema(), run_file_schema()


def test_the_file_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise: feature-gan-kd schema > docs/config.schema.json."""
    main(["schema"])
    assert (ROOT / "docs" / "config.schema.json").read_text() == capsys.readouterr().out


def test_every_setting_is_described() -> None:
    jsonschema.Draft202012Validator.check_schema(FILE)
    assert FILE["$defs"]["settings"] == SCHEMA
    assert list(SCHEMA["properties"]) == [spec.name for spec in dataclasses.fields(DistillConfig)]
    assert all(len(one["description"]) > 10 for one in SCHEMA["properties"].values())


def test_what_a_run_writes_is_valid(tmp_path: Path) -> None:
    build(epochs=1, milestones=(0.5, 0.75), clip_grad=1.0).fit(output_dir=tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    jsonschema.validate(written, FILE)
    jsonschema.validate(written["config"], SCHEMA)
    jsonschema.validate(DistillConfig().to_dict(), SCHEMA)
    old = ROOT / "benchmarks" / "results" / "cifar100-r20-r32-15-epochs" / "config.json"
    jsonschema.validate(json.loads(old.read_text())["config"], SCHEMA)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "magic"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"lr": 0},
        {"lr": None},
        {"lr": "fast"},
        {"momentum": 1.5},
        {"warmup_fraction": 0.95},
        {"milestones": [0.0, 0.5]},
        {"milestones": 0.5},
        {"pretend": True},
        {"compile": 1},
        {"optimizer": 3},
    ],
)
def test_both_refuse_it(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        DistillConfig.from_dict(settings)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(settings, SCHEMA)


@pytest.mark.parametrize(
    "settings", [{}, {"lr": 1}, {"milestones": [0.5, 1]}, {"scheduler": "poly"}, {"temperature": 2.5}]
)
def test_both_take_it(settings: dict[str, Any]) -> None:
    DistillConfig.from_dict(settings)
    jsonschema.validate(settings, SCHEMA)


PAIR = ["a", "b"]


@pytest.mark.parametrize(
    "values",
    [
        {"modles": PAIR},
        {"lr": 0.1},
        {"image_size": 32},
        {"version": 2},
        {"models": "a"},
        {"models": [{"model": "a", "epochs": 3}, "b"]},
        {"models": [{"model": "a", "lr": 0}, "b"]},
        {"models": [{"lr": 1}, "b"]},
        {"topology": [[0]]},
        {"feature_layers": 1.5},
        {"in_chans": 2},
        {"train_data": 3},
        {"config": {"epochs": 0}},
    ],
)
def test_both_refuse_the_file(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(UserError):
        read_run_file(tmp_path / "run.json")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, FILE)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"version": 1, "models": PAIR, "topology": "star", "train_data": None, "config": {"lr": 1}},
        {"models": [{"model": "a", "lr": 0.1, "betas": [0.5, 0.5], "feature_layers": [0, "x"]}, "b"]},
        {"topology": [[0, 1]], "feature_layers": {"0": -1}, "frozen": [0], "log_with": ["wandb"]},
    ],
)
def test_both_take_the_file(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(values))
    read_run_file(tmp_path / "run.json")
    jsonschema.validate(values, FILE)
