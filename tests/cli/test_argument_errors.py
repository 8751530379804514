from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from feature_gan_kd.cli.argument_errors import explain_parse_error, option


@dataclass(frozen=True)
class Settings:
    target_dir: Path
    steps: int = 3
    rate: float | None = None
    names: tuple[str, ...] = ()
    shares: tuple[float, ...] | None = None
    kind: Literal["plain", "fancy"] = "plain"
    size: Literal[1, 3] = 3
    loud: bool = False


def command(source: Path, /, settings: Settings, count: int = 1) -> None:
    """A command with every kind of argument."""


USAGE = "feature-gan-kd do SOURCE --target-dir DIR [--option value ...]"
TOO_MANY = "do: 'y' is one argument too many, expected feature-gan-kd do SOURCE [--option value ...]"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("x --steps three", "--steps: 'three' is not allowed, expected a whole number"),
        ("x --steps=three", "--steps: 'three' is not allowed, expected a whole number"),
        ("x --steps", "--steps: its value is missing, expected a whole number"),
        ("x --steps --loud", "--steps: its value is missing, expected a whole number"),
        ("x --rate fast", "--rate: 'fast' is not allowed, expected a number"),
        ("x --shares 0.5 half 0.2", "--shares: 'half' is not allowed, expected a number, or several"),
        ("x --kind odd", "--kind: 'odd' is not allowed, expected one of plain, fancy"),
        ("x --size 2", "--size: '2' is not allowed, expected one of 1, 3"),
        ("x --target_dir", "--target-dir: its value is missing, expected a path"),
        ("x --count 2.5", "--count: '2.5' is not allowed, expected a whole number"),
        ("x --steps 3 --stps 3", "--stps: do has no such option, the closest are --steps, --shares, --size"),
        ("x --qqqqqqqq", "--qqqqqqqq: do has no such option"),
        ("x y --target-dir t", TOO_MANY),
        ("x --loud y --target-dir t", TOO_MANY),
        ("x --steps 3", f"do: missing --target-dir, expected {USAGE}"),
        ("", f"do: missing SOURCE and --target-dir, expected {USAGE}"),
    ],
)
def test_the_first_mistake_is_told(args: str, line: str) -> None:
    assert explain_parse_error("do", command, args.split()) == line


@pytest.mark.parametrize(
    "good",
    ["--steps -3", "--rate None", "--rate=1e-3", "--names a b", "--names", "--shares 0.1 0.9", "--no-loud", "--size 1"],
)
def test_what_is_right_is_passed_over(good: str) -> None:
    assert explain_parse_error("do", command, ["x", *good.split(), "--kind", "odd"]).startswith("--kind: 'odd'")


def test_options_are_spelled_with_hyphens() -> None:
    assert option("batch_size") == "--batch-size"
