"""What an error line suggests and quotes."""

from __future__ import annotations

import pytest

from feature_gan_kd.utils.errors import closest, reason

OPTIMIZERS = ["adadelta", "adam", "adamax", "adamw", "nadam", "radam", "sgd"]


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("AdamW", OPTIMIZERS, "adamw"),
        ("SGD", OPTIMIZERS, "sgd"),
        ("RESNET18", ["resnet18", "resnet18d"], "resnet18"),
        ("Layer4", ["layer3", "layer4", "Layer4.0"], "layer4"),
        ("blok.0", ["Block.0", "head"], "Block.0"),
        ("learning_rate", ["lr", "min_lr"], "lr"),
        ("zzz", OPTIMIZERS, ""),
    ],
)
def test_the_closest_names(word: str, known: list[str], expected: str) -> None:
    assert closest(word, known) == expected


def test_at_most_three_names_the_closest_first() -> None:
    assert closest("adamx", OPTIMIZERS).split(", ")[0] in ("adamax", "adam", "adamw")
    assert len(closest("adamx", OPTIMIZERS).split(", ")) == 3
    assert len(closest("adamx", OPTIMIZERS, 1).split(", ")) == 1


def test_a_reason_is_one_short_line() -> None:
    assert reason(ValueError("two\n  lines.")) == "two lines"
    assert reason(ValueError()) == "ValueError"
    assert reason(KeyError("image")) == "'image' is missing"
    assert reason(ValueError("cannot read <_io.BytesIO object at 0x7f00>")) == "cannot read"
    assert reason(ValueError("x" * 300)) == "x" * 197 + "..."
