"""What every command has in common: its arguments are read, and its mistakes are one line each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from feature_gan_kd.cli import command_line
from feature_gan_kd.cli.argument_errors import explain_parse_error, option
from feature_gan_kd.cli.evaluate import evaluate
from feature_gan_kd.cli.export import export
from feature_gan_kd.cli.inspect import inspect
from feature_gan_kd.cli.options import ModelOptions
from feature_gan_kd.cli.predict import predict
from feature_gan_kd.cli.report import report
from feature_gan_kd.cli.schema import schema
from feature_gan_kd.cli.train import DEMO, Run, train
from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.utils.errors import DivergedError, Interrupted, UserError

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "predict": predict,
    "inspect": inspect,
    "report": report,
    "schema": schema,
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line on stderr and exit status 2, a training that
    cannot go on one line and 1, a signal exit status 128 + signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without some character must not end a run
    typed = list(sys.argv[1:] if args is None else args)
    command_line.typed.set(typed)
    if "--quiet" in typed or not sys.stderr.isatty():
        for library in ("HF_DATASETS", "HF_HUB"):  # before they are loaded: they draw bars of their own
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    plain, warnings.formatwarning = warnings.formatwarning, _one_line_warning
    try:
        parse(typed)()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads this has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as SIGPIPE would have it
    except (UserError, DivergedError) as error:
        line = f"feature-gan-kd: error: {_as_option(' '.join(str(error).splitlines()))}"
        if _first_to_say(line):
            print(line, file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted as stop:
        if _speaks():
            launched = "launched as before, " if "LOCAL_RANK" in os.environ else ""
            print(
                f"feature-gan-kd: {stop}; {launched}it goes on with\n{command_line.resume_command()}", file=sys.stderr
            )
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("feature-gan-kd: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = plain


def _speaks() -> bool:
    """Whether this is the one process of a launch that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def _first_to_say(line: str) -> bool:
    """Whether no other process of the same launch has said this: most mistakes are found by all of them."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from feature_gan_kd.distributed.launch import is_first_to_report

    return is_first_to_report(line)


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of this package as one line, printed once; those of others with their origin."""
    if not Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"feature-gan-kd: warning: {' '.join(str(message).split())}\n" if _speaks() else ""


def parse(args: list[str]) -> Callable[[], None]:
    """The command with its options, ready to run.

    Raises:
        UserError: for a command or an option that is not there, or a bad value.
    """
    from feature_gan_kd.utils.version import __version__

    if args == ["--version"]:
        return functools.partial(print, __version__)
    name = args[0] if args else ""
    if name not in COMMANDS and name not in ("-h", "--help"):
        wrong = f"{name!r} is not allowed" if name else "none is named"
        raise UserError(f"command: {wrong}, expected {', '.join(COMMANDS)} or --help")
    for before, arg in itertools.pairwise(args):
        # Most often an unset variable of the shell; as a path it would mean the present folder.
        if re.fullmatch("(--[^=]+=)?", arg):
            raise UserError(f"{arg.rstrip('=') or before}: its value is empty")
    given = args[1:]
    if name == "train" and not {"--models", "--data"} & {arg.split("=")[0] for arg in args}:
        args = [name, *DEMO, *given]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {key: _deferred(function) for key, function in COMMANDS.items()}, prog="feature-gan-kd", args=args
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_own_message(stop) or explain_parse_error(name, COMMANDS[name], given)) from None
    return command


def _deferred(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same signature, but what it gives is the call: errors of parsing and of running stay apart."""

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(function, *args, **kwargs)

    return bind


def _own_message(stop: SystemExit) -> str | None:
    """The message of the `UserError` that made tyro stop, such as that of a setting outside its bounds."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, UserError):
        error = error.__context__
    return None if error is None else str(error)


def _as_option(message: str) -> str:
    """A line that begins with a setting's name begins with its option instead."""
    name, colon, rest = message.partition(":")
    known = {spec.name for cls in (DistillConfig, ModelOptions, Run) for spec in dataclasses.fields(cls)}
    return f"{option(name)}:{rest}" if colon and name in known else message
