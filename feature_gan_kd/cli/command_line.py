"""How this program was called, and the lines that call it again."""

from __future__ import annotations

import contextvars
import shlex
import shutil
import sys
from pathlib import Path

# The arguments of the present command, as they were typed.
typed: contextvars.ContextVar[list[str]] = contextvars.ContextVar("typed")


def own_command(*args: str) -> str:
    """The line that runs this program again with other arguments."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return shlex.join([sys.executable, "-m", "feature_gan_kd", *args])
    found = name != "feature-gan-kd" or shutil.which(name) == sys.argv[0]
    return shlex.join(["feature-gan-kd" if found else sys.argv[0], *args])


def resume_command() -> str:
    """The line that lets the present run go on."""
    return own_command(*(arg for arg in typed.get() if arg not in ("--resume", "--no-resume")), "--resume")
