"""A command's arguments: what is refused, with which line, and what reaches the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from feature_gan_kd.cli.arguments import Parser, option
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Settings."""

    target_dir: Path
    """Where it goes."""
    steps: int = 3
    """How many."""
    rate: float | None = None
    """How fast (default: as fast as it goes)."""
    names: tuple[str, ...] = ()
    """Of whom."""
    shares: tuple[float, ...] | None = None
    """Of each."""
    kind: Literal["plain", "fancy"] = "plain"
    """Which."""
    size: Literal[1, 3] = 3
    """How large."""
    loud: bool = False
    """How loud."""


SEEN: list[Any] = []


def command(source: Path, /, settings: Settings, count: int = 1) -> None:
    """Do something.

    Args:
        source: From where.
        count: How often.
    """
    SEEN[:] = [source, settings, count]


def short(settings: Annotated[Settings, ("target_dir", "loud")]) -> None:
    """Use two settings."""


def several(first: Path, others: tuple[Path, ...] = (), /) -> None:
    """Use several.

    Args:
        first: The first.
        others: The others.
    """
    SEEN[:] = [first, others]


USAGE = "feature-gan-kd do SOURCE --target-dir PATH [--option value ...]"


def refused(args: str) -> str:
    with pytest.raises(UserError) as error:
        Parser("do", command).parse(args.split())
    return str(error.value)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("x --steps three", "--steps: 'three' is not allowed, expected a whole number"),
        ("x --steps=three", "--steps: 'three' is not allowed, expected a whole number"),
        ("x --steps", "--steps: its value is missing, expected a whole number"),
        ("x --steps --loud", "--steps: its value is missing, expected a whole number"),
        ("x --rate fast", "--rate: 'fast' is not allowed, expected a number"),
        ("x --shares 0.5 half 0.2", "--shares: 'half' is not allowed, expected a number"),
        ("x --kind odd", "--kind: 'odd' is not allowed, expected one of plain, fancy"),
        ("x --size 2", "--size: '2' is not allowed, expected one of 1, 3"),
        ("x --target_dir", "--target-dir: its value is missing, expected a path"),
        ("x --count 2.5", "--count: '2.5' is not allowed, expected a whole number"),
        ("x --steps 3 --stps 3", "--stps: do has no such option, the closest are --steps, --shares, --size"),
        ("x --qqqqqqqq", "--qqqqqqqq: do has no such option"),
        ("x y --target-dir t", f"do: 'y' is one argument too many, expected {USAGE}"),
        ("x --loud y --target-dir t", f"do: 'y' is one argument too many, expected {USAGE}"),
        ("x --steps 3", f"do: missing --target-dir, expected {USAGE}"),
        ("", f"do: missing SOURCE and --target-dir, expected {USAGE}"),
    ],
)
def test_a_mistake_is_one_line(args: str, line: str) -> None:
    assert refused(args) == line


@pytest.mark.parametrize(
    ("args", "changed"),
    [
        ("--steps -3", {"steps": -3}),
        ("--rate=1e-3", {"rate": 1e-3}),
        ("--names a b", {"names": ("a", "b")}),
        ("--names", {"names": ()}),
        ("--shares 0.1 0.9", {"shares": (0.1, 0.9)}),
        ("--loud --no-loud", {"loud": False}),
        ("--loud", {"loud": True}),
        ("--size 1 --kind fancy", {"size": 1, "kind": "fancy"}),
    ],
)
def test_the_command_gets_what_was_typed(args: str, changed: dict[str, Any]) -> None:
    Parser("do", command).parse(["x", *args.split(), "--target_dir", "t"])()
    assert [Path("x"), Settings(Path("t"), **changed), 1] == SEEN


def test_a_positional_list_takes_all_that_are_left() -> None:
    Parser("several", several).parse(["a", "b", "c"])()
    assert [Path("a"), (Path("b"), Path("c"))] == SEEN


def test_the_help_has_groups_defaults_and_plain_metavars() -> None:
    text = " ".join(Parser("do", command).format_help().split())
    assert text.startswith(f"usage: {USAGE} Do something.")
    assert "--steps N How many. (default: 3)" in text
    assert "--rate FLOAT How fast (default: as fast as it goes)." in text
    assert "--kind {plain,fancy} Which. (default: plain)" in text
    assert "--[no-]loud How loud. (default: off)" in text
    assert "None" not in text


def test_a_command_shows_only_what_it_uses() -> None:
    text = Parser("short", short).format_help()
    assert "--loud" in text.replace("[no-]", "")
    assert "--steps" not in text


def test_options_are_spelled_with_hyphens() -> None:
    assert option("batch_size") == "--batch-size"
