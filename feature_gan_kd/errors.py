"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in the user's input: one line saying what, where, what was expected and what to do.

    The command line prints the line and exits with status 2; in Python it is an ordinary `ValueError`.
    """


def closest(word: str, known: list[str], count: int = 3) -> str:
    """The names in `known` nearest to `word`, joined for an error line (empty when none is near)."""
    import difflib

    return ", ".join(difflib.get_close_matches(word, known, n=count, cutoff=0.5))
