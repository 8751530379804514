"""YAML, TOML and JSON as plain values, with the line of every key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feature_gan_kd.config.document import Document, Place, read_document
from feature_gan_kd.utils.errors import UserError

YAML = """\
# a comment
models:
  - resnet18
  - model: test_vit
    lr: 5e-4
config: {epochs: 3, mixed_precision: no,
         milestones: [0.5, .75]}
license: null
"""
TOML = """\
license = "mit"  # a comment

[[models]]
model = "resnet18"

[[models]]
model = "test_vit"
lr = 5e-4

[models.model_args]
global_pool = "max"

[config]
epochs = 3
"""


def read(tmp_path: Path, name: str, text: str | bytes) -> Document:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_document(path)


def test_yaml(tmp_path: Path) -> None:
    document = read(tmp_path, "a.yaml", YAML)
    assert document.values == {
        "models": ["resnet18", {"model": "test_vit", "lr": 5e-4}],
        "config": {"epochs": 3, "mixed_precision": "no", "milestones": [0.5, 0.75]},
        "license": None,
    }
    assert document.lines[("models", 1, "lr")] == 5
    assert document.lines[("config", "milestones")] == 7


def test_toml(tmp_path: Path) -> None:
    document = read(tmp_path, "a.toml", TOML)
    assert document.values["models"][1] == {"model": "test_vit", "lr": 5e-4, "model_args": {"global_pool": "max"}}
    places: dict[Place, int] = {
        ("license",): 1,
        ("models", 0, "model"): 4,
        ("models", 1, "lr"): 8,
        ("models", 1, "model_args", "global_pool"): 11,
        ("config", "epochs"): 14,
    }
    assert {place: document.lines[place] for place in places} == places


def test_json_with_tabs(tmp_path: Path) -> None:
    values = {"config": {"lr": 1e-05, "epochs": 3}, "frozen": [0]}
    document = read(tmp_path, "a.json", json.dumps(values, indent="\t"))
    assert document.values == values
    assert document.lines[("config", "epochs")] == 4


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("1e-4", 1e-4),
        ("2E5", 2e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("nan", "nan"),
        (".inf", ".inf"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("0", 0),
    ],
)
def test_words_of_yaml(word: str, value: Any, tmp_path: Path) -> None:
    """As YAML 1.2 and JSON read them; by YAML 1.1, `no` is false and 1e-4 is a word."""
    found = read(tmp_path, "a.yaml", f"x: {word}\n").values["x"]
    assert (found, type(found)) == (value, type(value))


def test_an_anchor_is_a_value(tmp_path: Path) -> None:
    """And what is used a billion times is built once."""
    levels = "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 20))
    values = read(tmp_path, "a.yaml", f"a0: &a0 [1]\n{levels}").values
    assert values["a1"] == [[1]] * 9
    assert values["a19"][0] is values["a19"][8]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.yaml",
            "x: 1\ny: !!python/object/apply:os.system ['touch made']\n",
            "a.yaml, line 2: !!python/object/apply",
        ),
        ("a.yaml", "x: !!python/name:os.system\n", "a.yaml, line 1: !!python/name:os.system would build an object"),
        ("a.yaml", "x: !own 3\n", "a.yaml, line 1: !own would build an object"),
        ("a.yaml", "x: 1\nx: 2\n", "a.yaml, line 2: 'x' is given twice"),
        ("a.yaml", "? [1]\n: 2\n", "a.yaml, line 1: a key is no word"),
        ("a.yaml", "x: [1\ny: 2\n", "a.yaml, line 2: is not YAML"),
        ("a.yaml", "x: &a [*a]\n", "a.yaml, line 1: a value holds itself"),
        ("a.yaml", "x: 1\n---\ny: 2\n", "a.yaml, line 2: is not YAML"),
        ("a.yaml", "", "a.yaml: holds no names with values"),
        ("a.yaml", "- 1\n", "a.yaml: holds no names with values"),
        ("a.yaml", "\x00", "a.yaml: is not YAML"),
        ("a.yaml", "[" * 5000, "a.yaml: is not YAML"),
        ("a.json", '{"x": 1, "x": 2}', "a.json: is not JSON ('x' is given twice)"),
        ("a.json", '{"x": NaN}', "a.json: is not JSON (NaN is no number of JSON)"),
        ("a.json", '{"x": ', "a.json: is not JSON (Expecting value: line 1 column 7"),
        ("a.json", "3", "a.json: holds no names with values"),
        ("a.toml", "x = 1\nx = 2\n", "a.toml: is not TOML (Cannot overwrite a value (at line 2"),
        ("a.toml", b"x = '\xff'", "a.toml: is not text in UTF-8"),
        ("a.txt", "x: 1", "a.txt: is no run file by its name, expected .yaml, .yml, .toml, .json"),
    ],
)
def test_what_is_no_document(name: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, name, text)
    line = str(error.value).removeprefix(f"{tmp_path}/")
    assert line.startswith(message)
    assert "\n" not in line
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.yaml: cannot be read \(No such file or directory\): name a run file"):
        read_document(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").mkdir()
    with pytest.raises(UserError, match=r"b.yaml: cannot be read \(Is a directory\)"):
        read_document(tmp_path / "b.yaml")
