"""Run files: what they say, and that every mistake is one line with the line of the file."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.recipes import RECIPES_BY_KIND
from feature_gan_kd.config.run_file import RunFile, read_run_file
from feature_gan_kd.config.schema import run_file_schema
from feature_gan_kd.utils.errors import UserError
from tests.helpers.pages import blocks

FULL = """\
version: 1
models:
  - resnet18
  - {model: test_vit, pretrained: true, optimizer: adamw, lr: 5e-4, betas: [0.8, 0.9], feature_layers: [-1, blocks.3]}
  - {model: local-dir:net, frozen: true, model_args: {global_pool: max}}
topology: [[0, 1], [2, 0]]
feature_layers: {0: layer2}
num_classes: 10
train_data: data
unlabeled_data: photos
output_dir: runs/one
log_with: [tensorboard]
config:
  lr: 1
  milestones: [0.5]
"""


def read(folder: Path, text: str, name: str = "run.yaml") -> RunFile:
    (folder / name).write_text(text)
    return read_run_file(folder / name)


def test_everything_that_it_may_say(tmp_path: Path) -> None:
    file = read(tmp_path, FULL)
    assert file.arguments == {"num_classes": 10, "topology": [(0, 1), (2, 0)], "feature_layers": {0: "layer2"}}
    assert file.peers == [
        {"model": "resnet18"},
        {
            **{"model": "test_vit", "pretrained": True, "feature_layers": [-1, "blocks.3"]},
            **{"optimizer": "adamw", "lr": 5e-4, "betas": (0.8, 0.9)},
        },
        {"model": "local-dir:net", "frozen": True, "model_args": {"global_pool": "max"}},
    ]
    assert file.settings == {"lr": 1.0, "milestones": (0.5,)}
    assert file.fit == {
        **{"train_data": "data", "unlabeled_data": "photos"},
        **{"output_dir": "runs/one", "log_with": ("tensorboard",)},
    }
    assert not file.is_record


def test_only_what_it_says(tmp_path: Path) -> None:
    assert read(tmp_path, "{}", "run.json") == RunFile(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a, b]\nmodles: 3\n", "line 2: there is no key 'modles', the closest are models"),
        ("a: 1\nlr: 0.1\n", "line 1: there is no key 'a'"),
        ("topology: star\nlr: 0.1\n", "line 2: lr is a setting: put it below config"),
        ("image_size: 32\n", "line 1: image_size is a setting: put it below config"),
        ("taps: 1\n", "line 1: there is no key 'taps'"),
        (
            "config:\n  epochs: 3\n  learning_rate: 1\n",
            "line 3: config: there is no key 'learning_rate', the closest are lr",
        ),
        ("config:\n  epochs: three\n", "line 2: epochs: 'three' is not allowed, expected a whole number"),
        ("config:\n  epochs: 0\n", "line 2: epochs: 0 is not allowed, expected a finite number at least 1"),
        ("config:\n  lr: yes\n", "line 2: lr: 'yes' is not allowed, expected a number"),
        ("config: 3\n", "line 1: config: 3 is not allowed, expected names of settings"),
        ("version: 2\n", "line 1: version 2 is another one, this program reads 1"),
        ("version: one\n", "line 1: version 'one' is another one"),
        ("version: true\n", "line 1: version True is another one"),
        ("models: resnet18\n", "line 1: models: 'resnet18' is not allowed, expected a list of models"),
        ("models:\n - a\n - 3\n", "line 3: models: 3 is not allowed, expected a name, or arguments of a Peer"),
        ("models:\n - a\n - lr: 3\n", "line 3: models: model 1 has no name, expected the key model"),
        ("models:\n - a\n - model: b\n   lrr: 3\n", "line 4: models: there is no key 'lrr', the closest are lr"),
        ("models:\n - model: b\n   epochs: 3\n", "line 3: epochs is shared by all models: put it below config"),
        ("models:\n - model: b\n   image_size: 3\n", "line 3: image_size is shared by all models"),
        ("models:\n - model: b\n   lr: -3\n", "line 3: lr: -3.0 is not allowed, expected a finite number above 0"),
        ("models:\n - model: b\n   frozen: 1\n", "line 3: frozen: 1 is not allowed, expected true or false"),
        (
            "models:\n - model: b\n   model_args: 1\n",
            "line 3: model_args: 1 is not allowed, expected arguments for timm",
        ),
        (
            "models:\n - model: b\n   feature_layers: []\n",
            "line 3: feature_layers: [] is not allowed, expected a layer",
        ),
        ("feature_layers: {a: b}\n", "line 1: feature_layers: 'a' is not allowed, expected positions of models"),
        ("feature_layers: 1.5\n", "line 1: feature_layers: 1.5 is not allowed, expected a layer"),
        ("topology: [[0, 1], [2]]\n", "line 1: topology: [2] is not allowed, expected a name or a list of"),
        ("topology: 3\n", "line 1: topology: 3 is not allowed, expected a name or a list of [source, learner]"),
        ("in_chans: 2\n", "line 1: in_chans: 2 is not allowed, expected one of 1, 3"),
        ("num_classes: 1\n", "line 1: num_classes: 1 is not allowed, expected a finite number at least 2"),
        ("frozen: [-1]\n", "line 1: frozen: (-1,) is not allowed"),
        ("train_data: 3\n", "line 1: train_data: 3 is not allowed, expected a name or None"),
        ("log_with: tensorboard\n", "line 1: log_with: 'tensorboard' is not allowed, expected a list of names"),
        ("resume: 1\n", "line 1: resume: 1 is not allowed, expected true or false"),
    ],
)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/run.yaml, {message}")


def test_a_mistake_in_toml_and_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.toml, line 2: config: there is no key 'lrr'"):
        read(tmp_path, "[config]\nlrr = 3\n", "run.toml")
    with pytest.raises(UserError, match=r"run.json, line 3: config: there is no key 'lrr'"):
        read(tmp_path, json.dumps({"config": {"lrr": 3}}, indent=1), "run.json")


def record(tmp_path: Path, **settings: Any) -> RunFile:
    """What a run with these settings records."""
    config = DistillConfig(**settings).to_dict()
    return read(tmp_path, json.dumps({"config": config, "versions": {}, "train_data": None}), "config.json")


def test_another_method_brings_its_presets_to_a_recorded_run(tmp_path: Path) -> None:
    """All settings stand in the file; those that the method had preset make room, those that were set do not."""
    file = record(tmp_path, method="afd", temperature=2.5, recipe="paper")
    assert DistillConfig(**file.settings_with({"lr": 0.2})) == DistillConfig(temperature=2.5, recipe="paper", lr=0.2)
    changed = DistillConfig(**file.settings_with({"method": "dml", "recipe": "finetune"}))
    assert changed == DistillConfig(method="dml", temperature=2.5, recipe="finetune")
    assert (changed.adversarial_weight, changed.epochs) == (0, 30)
    back = record(tmp_path, method="vanilla", recipe="finetune").settings_with({"method": "afd", "recipe": "paper"})
    assert DistillConfig(**back) == DistillConfig(method="afd", recipe="paper")


def test_what_a_person_wrote_stays_with_another_method(tmp_path: Path) -> None:
    file = read(tmp_path, "config: {method: afd, adversarial_weight: 1.0, epochs: 300}\n")
    changed = DistillConfig(**file.settings_with({"method": "logit", "recipe": "finetune"}))
    assert (changed.adversarial_weight, changed.epochs) == (1.0, 300)


def test_what_a_file_cannot_hold(tmp_path: Path) -> None:
    about = {"models": [{"model": "a"}, {"model": None}], "versions": {}}
    file = read(tmp_path, json.dumps(about), "config.json")
    with pytest.raises(UserError, match=r"config.json: model 1 is no name but a module"):
        file.peers_with({})
    with pytest.raises(UserError, match=r"config.json: its run was trained on an object.*: give the training data"):
        file.check_data(())
    file.check_data(["train_data"])
    read(tmp_path, "{}").check_data(())


def test_the_page_shows_a_file_that_is_read(tmp_path: Path) -> None:
    """With every key that there is."""
    page = Path(__file__).parents[2] / "docs" / "run-files.md"
    (text,) = [block.code for block in blocks(page) if "version: 1" in block.code]
    file = read(tmp_path, textwrap.dedent(text))
    keys = {"version", "models", "config", *file.arguments, *file.fit}
    recorded = set(run_file_schema()["dependentRequired"]) | {"versions"}
    assert keys == set(run_file_schema()["properties"]) - recorded


def test_a_recipe_by_the_kind_of_model(tmp_path: Path) -> None:
    """The record has for each model what the recipe gave to its kind; another recipe takes it back."""
    peers = [{"model": "a", **RECIPES_BY_KIND["scratch"]["batch-norm"]}, {"model": "b", "lr": 0.5}]
    about = {"models": peers, "config": DistillConfig(recipe="scratch").to_dict(), "versions": {}, "train_data": None}
    file = read(tmp_path, json.dumps(about), "config.json")
    assert file.peers_with({"epochs": 3}) == peers
    assert file.peers_with({"recipe": "paper"}) == [{"model": "a"}, {"model": "b", "lr": 0.5}]
    assert DistillConfig(**file.settings_with({"recipe": "paper"})) == DistillConfig(recipe="paper")
    other = record(tmp_path, recipe="paper").settings_with({"recipe": "scratch"})
    assert not {"lr", "optimizer", "weight_decay"} & other.keys()  # or they would count more than the kinds' own


def test_a_warm_up_in_the_other_unit_replaces_that_of_the_file(tmp_path: Path) -> None:
    file = read(tmp_path, "config: {warmup_fraction: 0.1, epochs: 10}\n")
    assert DistillConfig(**file.settings_with({"warmup_epochs": 2.0})).warmup_fraction == 0.2
    other = read(tmp_path, "config: {warmup_epochs: 1, epochs: 10}\n")
    assert DistillConfig(**other.settings_with({"warmup_fraction": 0.3})).warmup_fraction == 0.3
