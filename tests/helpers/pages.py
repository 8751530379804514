"""The code blocks of README.md, CONTRIBUTING.md and docs/*.md, by the rule that CONTRIBUTING.md states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Fences that are no code: directives of the documentation's generator.
_DIRECTIVE = re.compile(r"\{(toctree|include|literalinclude|eval-rst)\}")
# What an indented block of commands begins with; others are formulas and the form of messages.
_ALLOCATOR = r"(LD_PRELOAD=\S+ )?"
COMMAND = re.compile(_ALLOCATOR + r"(\.venv/bin/)?(feature-gan-kd|pytest|python|make|accelerate) ")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: of its fence; `indented` where it has none.
        code: its lines.
        needs: what the tests have not; None for a block that they run.
    """

    language: str
    code: str
    needs: str | None


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text()
    found = [
        (match.start(), match[1], match[2])
        for match in re.finditer(r"^```(\S*).*\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
        if not _DIRECTIVE.fullmatch(match[1])
    ]
    blanked = re.sub(r"^```(?:.*\n)*?```$", lambda fence: re.sub(r"\S", "x", fence[0]), text, flags=re.MULTILINE)
    for match in re.finditer(r"\n\n((?: {4}.*\n)+)", blanked):
        found.append((match.start(), "indented", re.sub(r"^ {4}", "", match[1], flags=re.MULTILINE)))
    made = []
    for _, language, code in sorted(found):
        first = code.splitlines()[0] if code.strip() else ""
        made.append(Block(language, code, first[8:] if first.startswith("# needs ") else None))
    return made


def commands(block: Block) -> list[str]:
    """The command lines of a block of shell, joined where a backslash continues them, without comments.

    What they load before the C library is left out: they are the same without it.
    """
    joined = re.sub(r"\\\n\s*", "", block.code)
    lines = [
        line.partition(" #")[0].strip() for line in joined.splitlines() if line.strip() and line.lstrip()[0] != "#"
    ]
    return [re.sub(f"^{_ALLOCATOR}", "", line) for line in lines]
