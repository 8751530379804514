"""The exceptions that are no fault of the program: what the user can mend, and what asked it to stop."""

from __future__ import annotations

import re
import signal


class UserError(ValueError):
    """A mistake in the user's input: one line saying what, where, what was expected and what to do.

    The command line prints the line and exits with status 2; in Python it is an ordinary `ValueError`.
    """


class DivergedError(RuntimeError):
    """A training that cannot go on: losses or gradients stay infinite or undefined. The command line exits with 1."""


class Interrupted(KeyboardInterrupt):
    """A training that SIGTERM or Ctrl-C stopped between two updates, after its checkpoint was written.

    A `KeyboardInterrupt`, so it ends a notebook's cell as Ctrl-C does; the command line exits with 128 + `signal`.

    Args:
        number: of the signal.
        where: how far the training came, and where its checkpoint is.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int, where: str = "stopped") -> None:
        super().__init__(f"{signal.Signals(number).name}: {where}")
        self.signal = number


def reason(error: BaseException, most: int = 200) -> str:
    """What an exception says, on one line of at most `most` characters; its kind where it says nothing."""
    text = " ".join(re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error)).split()).rstrip(".")
    text = f"{text} is missing" if isinstance(error, KeyError) else text or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def not_installed(where: str, error: ImportError, extra: str) -> UserError:
    """What is said where a package of an extra is missing."""
    missing = str(error.name).partition(".")[0]
    return UserError(f"{where}: {missing} is not installed: pip install 'feature-gan-kd[{extra}]'")


def closest(word: str, known: list[str], count: int = 3) -> str:
    """The names in `known` nearest to `word`, joined for an error line (empty when none is near)."""
    import difflib

    word = re.sub("learning[-_]rate", "lr", word)  # as other programs call it
    return ", ".join(difflib.get_close_matches(word, known, n=count, cutoff=0.5))
