"""Exceptions that are not bugs of the program: mistakes of the user, divergence and interruptions."""

from __future__ import annotations

import re
import signal


class UserError(ValueError):
    """A mistake in the user's input. Its one line says what, where, what was expected and what to do.

    The command line prints the line and exits with status 2; in Python it is an ordinary `ValueError`.
    """


class DivergedError(RuntimeError):
    """Training cannot continue: losses or gradients stay infinite or undefined. The command line exits with 1."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C stopped training between two updates, after a checkpoint was written.

    It is a `KeyboardInterrupt`, so that it ends a notebook's cell as Ctrl-C does; the command line exits with
    128 + `signal`.

    Args:
        number: of the signal.
        where: how far training came, and where its checkpoint is.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int, where: str = "stopped") -> None:
        super().__init__(f"{signal.Signals(number).name}: {where}")
        self.signal = number


def reason(error: BaseException, most: int = 200) -> str:
    """Returns an exception's message on one line of at most `most` characters; its class where it has no message."""
    text = " ".join(re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error)).split()).rstrip(".")
    text = f"{text} is missing" if isinstance(error, KeyError) else text or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def not_installed(where: str, error: ImportError, extra: str) -> UserError:
    """Makes the error for a missing package, which the given extra of this package installs."""
    missing = str(error.name).partition(".")[0]
    return UserError(f"{where}: {missing} is not installed: pip install 'feature-gan-kd[{extra}]'")


# What other programs, timm's training script among them, call our settings.
_OTHER_NAMES = {
    "learning-rate": "lr",
    "ema": "model-ema",
    "model-ema-decay": "model-ema",
    "label-smoothing": "smoothing",
    "mixup-alpha": "mixup",
    "cutmix-alpha": "cutmix",
    "wd": "weight-decay",
    "bs": "batch-size",
    "opt": "optimizer",
    "opt-betas": "betas",
    "opt-eps": "eps",
    "sched": "scheduler",
    "drop": "drop-rate",
    "drop-path": "drop-path-rate",
    "auto-augment": "aa",
    "random-erasing": "reprob",
    "random-erase": "reprob",
    "vertical-flip": "vflip",
    "hflip": "augmentation",
    "train-interpolation": "interpolation",
    "class-weight": "class-weights",
    "bce": "bce-loss",
    "workers": "num-workers",
    "img-size": "image-size",
    "torchcompile": "compile",
    "amp": "mixed-precision",
    "log-interval": "log-every-steps",
    "checkpoint-hist": "keep-checkpoints",
    "decay-milestones": "milestones",
}


def closest(word: str, known: list[str], count: int = 3) -> str:
    """Returns the names in `known` closest to `word`, joined for an error line; empty if none is close.

    Letter case does not count. Where only the case is wrong, the name in its right case is the only answer.
    """
    import difflib

    word = word.lower()
    by_lower_case: dict[str, list[str]] = {}
    for name in known:
        by_lower_case.setdefault(name.lower(), []).append(name)
    for other, own in _OTHER_NAMES.items():
        pattern = rf"(?<![a-z]){other}$".replace("-", "[-_]")
        renamed = [re.sub(pattern, spelled, word) for spelled in (own, own.replace("-", "_"))]
        word = next((name for name in renamed if name != word and name in by_lower_case), word)
    close = [word] if word in by_lower_case else difflib.get_close_matches(word, by_lower_case, n=count, cutoff=0.5)
    return ", ".join([name for lower in close for name in by_lower_case[lower]][:count])
