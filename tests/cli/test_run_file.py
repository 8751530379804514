"""`train --config`: the same run from YAML, TOML, JSON, Python and a run's own `config.json`; options override it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from feature_gan_kd import DistillConfig, OnlineAdversarialDistiller, UserError
from feature_gan_kd.cli import main
from feature_gan_kd.cli.main import parse

SETTINGS = {
    "image_size": 32,
    "epochs": 1,
    "batch_size": 64,
    "max_train_samples": 64,
    "max_eval_samples": 20,
    "lr": 0.05,
}
RUN = {
    "models": [
        {"model": "test_resnet", "feature_layers": -1},
        {"model": "test_vit", "optimizer": "adamw", "lr": 1e-3, "model_args": {"global_pool": "token"}},
    ],
    "topology": "complete",
    "train_data": None,
    "output_dir": "from-file",
    "progress": False,
    "config": SETTINGS,
}
TOML = """
topology = "complete"
output_dir = "from-toml"
progress = false
[[models]]
model = "test_resnet"
feature_layers = -1
[[models]]
model = "test_vit"
optimizer = "adamw"
lr = 1e-3
model_args = {global_pool = "token"}
[config]
image_size = 32
epochs = 1
batch_size = 64
max_train_samples = 64
max_eval_samples = 20
lr = 0.05
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    return tmp_path


def weights(run: str | Path) -> list[dict[str, Tensor]]:
    return [load_file(Path(run, "networks", name, "model.safetensors")) for name in ("0-test_resnet", "1-test_vit")]


def same(run: str, other: str) -> bool:
    return all(
        one.keys() == another.keys() and all(bool((one[key] == another[key]).all()) for key in one)
        for one, another in zip(weights(run), weights(other), strict=True)
    )


@pytest.mark.filterwarnings("ignore:discriminator .* teaches nothing:UserWarning")
def test_one_run_from_every_kind_of_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--config", "run.json"])
    (here / "run.toml").write_text(TOML)
    main(["train", "--config=run.toml"])
    assert same("from-file", "from-toml")
    assert capsys.readouterr() == ("", "")  # progress: false is --quiet
    about = json.loads((here / "from-file" / "config.json").read_text())
    assert about["topology"] == [[0, 1], [1, 0]]
    assert about["models"][1]["model_args"] == {"global_pool": "token"}
    # Its own record is a run file, for the command and in Python.
    main(["train", "--config", "from-file/config.json", "--output-dir", "again", "--quiet"])
    assert same("from-file", "again")
    distiller = OnlineAdversarialDistiller.from_config("from-file/config.json")
    distiller.fit(output_dir="python", progress=False)
    assert same("from-file", "python")
    recorded = [json.loads((here / run / "config.json").read_text()) for run in ("from-file", "again", "python")]
    for one in recorded:
        del one["command"]
    assert recorded[0] == recorded[1] == recorded[2]
    # And it goes on with what it says.
    main(["train", "--config", "run.json", "--resume"])
    # The options, typed out.
    words = (
        "--models test_resnet test_vit --topology complete --feature-layers 0:-1 --optimizer 1:adamw --lr 0.05 1:1e-3"
    )
    options = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    main(["train", *words.split(), *options, "--quiet", "--output-dir", "typed"])
    assert same("from-file", "typed")


def call(*words: str) -> Any:
    """What a command would be run with, by parameter."""
    return parse(["train", "--config", "run.json", *words]).keywords  # type: ignore[attr-defined]


def test_what_the_command_gets() -> None:
    given = call()
    assert given["models"].models == ("test_resnet", "test_vit")
    assert given["models"].own == {1: {"optimizer": "adamw", "lr": 1e-3, "model_args": {"global_pool": "token"}}}
    assert given["models"].feature_layers == ("0:-1",)
    assert given["models"].topology == "complete"
    assert given["run"].output_dir == Path("from-file")
    assert given["output"].quiet
    assert given["config"] == DistillConfig(**SETTINGS)


@pytest.mark.parametrize(
    ("words", "own", "lr"),
    [
        ("--lr 0.2", {"optimizer": "adamw"}, 0.2),  # for all models
        ("--lr 1:0.2", {"optimizer": "adamw", "lr": 0.2}, 0.05),
        ("--lr 0.2 1:0.3", {"optimizer": "adamw", "lr": 0.3}, 0.2),
        ("--optimizer sgd", {"lr": 1e-3}, 0.05),
    ],
)
def test_options_override_what_models_have(words: str, own: dict[str, Any], lr: float) -> None:
    given = call(*words.split())
    assert {key: value for key, value in given["models"].own[1].items() if key != "model_args"} == own
    assert given["config"].lr == lr


def test_options_override_the_rest() -> None:
    words = "--models a b c --epochs 7 --output-dir x --data d --topology star --no-quiet --in-chans 1"
    given = call(*words.split())
    assert (given["models"].models, given["models"].own, given["models"].feature_layers) == (("a", "b", "c"), {}, ())
    assert (given["config"].epochs, given["config"].batch_size) == (7, 64)
    assert (given["models"].data, given["models"].topology, given["models"].in_chans) == ("d", "star", 1)
    assert given["run"].output_dir == Path("x")
    assert not given["output"].quiet
    assert call("--feature-layers", "1:0")["models"].feature_layers == ("1:0",)


def test_an_option_that_fits_the_file_alone() -> None:
    """A batch of 64 has at most 64 parts, and the default batch more."""
    with pytest.raises(UserError, match="grad_accum_steps: 100 parts of a batch of 64"):
        call("--grad-accum-steps", "100")
    assert call("--grad-accum-steps", "200", "--batch-size", "256")["config"].grad_accum_steps == 200


@pytest.mark.parametrize(
    ("layers", "own", "words"),
    [
        (None, [None, None], ()),
        ([-1, "a.b"], [None, None], ("-1", "a.b")),
        ({"1": "a"}, [None, None], ("1:a",)),
        ({"1": "a"}, [[0, 1], None], ("0:0", "0:1", "1:a")),
        ("a", [None, 2], ("0:a", "1:2")),
    ],
)
def test_layers_of_all_and_of_single_models(
    layers: Any, own: Sequence[Any], words: tuple[str, ...], here: Path
) -> None:
    models = [{"model": "m", "feature_layers": one} for one in own]
    (here / "run.json").write_text(json.dumps({**RUN, "models": models, "feature_layers": layers}))
    assert sorted(call()["models"].feature_layers) == sorted(words)


@pytest.mark.parametrize(
    ("file", "words", "line"),
    [
        ({**RUN, "modles": 1}, "", "run.json, line 1: there is no key 'modles', the closest are models"),
        (
            {**RUN, "config": {"epochs": "3"}},
            "",
            "run.json, line 1: epochs: '3' is not allowed, expected a whole number",
        ),
        ({"models": ["a", "b"]}, "", "train: missing --output-dir, expected feature-gan-kd train --output-dir PATH"),
        ({**RUN, "models": ["a"]}, "", "--models: 1 named, at least 2 are needed"),
        (RUN, "--lr 2:0.1", "--lr: 2:0.1 is for model 2, there are 0 to 1"),
        ({**RUN, "models": [None, "b"]}, "", "run.json, line 1: models: None is not allowed"),
        ({**RUN, "versions": {}, "models": [{"model": None}, "b"]}, "", "run.json: model 0 is no name but a module"),
        ({"config": {}, "versions": {}}, "--output-dir x", "run.json: its run was trained on an object"),
        ({**RUN, "feature_layers": {"0": 1}}, "", "--feature-layers: those of model 0 are given twice"),
        ({**RUN, "topology": "ring"}, "", "--topology: 'ring' is unknown"),
    ],
)
def test_mistakes(file: Any, words: str, line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run.json").write_text(json.dumps(file))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "run.json", *words.split()])
    assert stop.value.code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.removeprefix("feature-gan-kd: error: ").startswith(line)
    assert [path.name for path in here.iterdir()] == ["run.json"]


# In Python.


def test_from_config_with_changes(here: Path) -> None:
    distiller = OnlineAdversarialDistiller.from_config(
        "run.json", lr=0.2, topology="cycle", config=DistillConfig(seed=3)
    )
    group = distiller.group
    assert (distiller.config.lr, distiller.config.seed, distiller.config.batch_size) == (0.2, 3, 64)
    assert [model.own_config(distiller.config).lr for model in group.peers] == [0.2, 0.2]
    assert [model.own_config(distiller.config).optimizer for model in group.peers] == ["momentum", "adamw"]
    assert group.num_classes == 10  # of the data, which the file names
    other = OnlineAdversarialDistiller.from_config(here / "run.json", models=["test_resnet", "test_vit"], num_classes=4)
    assert (other.group.num_classes, other.group.peers[1].settings) == (4, {})


def test_fit_takes_the_file_only_where_it_is_given_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr("feature_gan_kd.training.run.fit", lambda *arguments: taken.append(arguments[1:4]))
    whole = {
        **RUN,
        "train_data": "a",
        "eval_data": "b",
        "unlabeled_data": "u",
        "license": "mit",
        "log_with": ["tensorboard"],
        "num_classes": 3,
    }
    (here / "run.json").write_text(json.dumps(whole))
    distiller = OnlineAdversarialDistiller.from_config("run.json")
    distiller.fit()
    distiller.fit("c", output_dir="x", license="cc0-1.0")
    distiller.fit(eval_data="d", unlabeled_data="v")
    assert [(train, evaluation) for train, evaluation, _ in taken] == [("a", "b"), ("c", None), ("a", "d")]
    assert [options.output_dir for *_, options in taken] == ["from-file", "x", "from-file"]
    assert [options.unlabeled_data for *_, options in taken] == ["u", None, "v"]
    assert [options.license for *_, options in taken] == ["mit", "cc0-1.0", "mit"]
    assert all(options.log_with == ("tensorboard",) and not options.progress for *_, options in taken)


def test_a_record_of_objects(here: Path) -> None:
    models = [{"model": "test_resnet"}, {"model": "test_vit"}]
    about = {"models": models, "versions": {}, "num_classes": 3, "config": {"image_size": 32}}
    (here / "run.json").write_text(json.dumps(about))
    distiller = OnlineAdversarialDistiller.from_config("run.json")
    with pytest.raises(UserError, match=r"its run was trained on an object.*: give the training data"):
        distiller.fit()
    (here / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run.json: names no models: add the key models"):
        OnlineAdversarialDistiller.from_config("run.json")


def test_other_models_take_nothing_from_the_old_ones() -> None:
    """What the file says of a model by its position goes with it; a number of classes goes with the labels."""
    file = {**RUN, "frozen": [0], "feature_layers": "layer2", "num_classes": 7, "topology": [[0, 1]]}
    file["models"] = ["test_resnet", "test_vit"]
    Path("old.json").write_text(json.dumps(file))
    models = call("--config", "old.json", "--models", "test_vit", "test_vit")["models"]
    assert (models.frozen, models.feature_layers, models.topology, models.num_classes) == ((), (), "cycle", 7)
    kept = call("--config", "old.json")["models"]
    assert (kept.frozen, kept.feature_layers, kept.num_classes) == ((0,), ("layer2",), 7)
    assert call("--config", "old.json", "--no-labels")["models"].num_classes is None
    Path("old.json").write_text(json.dumps({**file, "train_data": "nowhere"}))
    distiller = OnlineAdversarialDistiller.from_config("old.json", models=["test_resnet", "test_vit"], labels=False)
    assert (distiller.group.frozen, distiller.group.modules.classes) == ((), [0, 0])
