"""The program: reads the arguments of a command, runs it, and reports a mistake in one line."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import getdoc
from pathlib import Path

from feature_gan_kd.cli import command_line
from feature_gan_kd.cli.arguments import Parser, option
from feature_gan_kd.cli.embed import embed
from feature_gan_kd.cli.evaluate import evaluate
from feature_gan_kd.cli.export import export
from feature_gan_kd.cli.inspect import inspect
from feature_gan_kd.cli.model_options import ModelOptions
from feature_gan_kd.cli.predict import predict
from feature_gan_kd.cli.probe import probe
from feature_gan_kd.cli.report import report
from feature_gan_kd.cli.run_file import OPTION_NAMES, add_run_file
from feature_gan_kd.cli.schema import schema
from feature_gan_kd.cli.train import DEMO, Run, train
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.utils.errors import DivergedError, Interrupted, UserError

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "predict": predict,
    "embed": embed,
    "probe": probe,
    "inspect": inspect,
    "report": report,
    "schema": schema,
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command.

    The exit status is 2 after a user's mistake and 1 after a training that diverged, with one line on stderr, and
    128 + signal after a signal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a character must not end a run
    typed = list(sys.argv[1:] if args is None else args)
    command_line.typed.set(typed)
    if "--quiet" in typed or not sys.stderr.isatty():
        for library in ("HF_DATASETS", "HF_HUB"):  # before they load: they draw bars of their own
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    plain, warnings.formatwarning = warnings.formatwarning, _one_line_warning
    try:
        parse(typed)()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # as after SIGPIPE
    except (UserError, DivergedError) as error:
        line = f"feature-gan-kd: error: {_as_option(' '.join(str(error).splitlines()))}"
        if _is_first_to_report(line):
            print(line, file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Interrupted as stop:
        if _is_main_process():
            launched = "launched as before, " if "LOCAL_RANK" in os.environ else ""
            print(
                f"feature-gan-kd: {stop}; {launched}continue it with\n{command_line.resume_command()}", file=sys.stderr
            )
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("feature-gan-kd: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        warnings.formatwarning = plain


def _is_main_process() -> bool:
    """Whether this is the one process of a launch that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def _is_first_to_report(line: str) -> bool:
    """Whether no other process of the launch has printed this line: all of them find most mistakes."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from feature_gan_kd.distributed.launch import is_first_to_report

    return is_first_to_report(line)


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats a warning of this package as one line, printed once; other warnings with their origin."""
    if not Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"feature-gan-kd: warning: {' '.join(str(message).split())}\n" if _is_main_process() else ""


def parse(args: list[str]) -> Callable[[], None]:
    """Reads the command and its options, and returns the call that runs it.

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
        # Usually an unset variable of the shell; as a path it would mean the working directory.
        if re.fullmatch("(--[^=]+=)?", arg):
            raise UserError(f"{arg.rstrip('=') or before}: its value is empty")
    if name in ("-h", "--help"):
        return functools.partial(print, _program_help())
    parser, words = Parser(name, COMMANDS[name]), args[1:]
    if {"-h", "--help"} & set(words):
        return functools.partial(print, parser.format_help(), end="")
    if name != "train":
        return parser.parse(words)
    if not {"--models", "--data", "--config"} & {word.split("=")[0] for word in words}:
        words = [*_demo_options(words), *words]
    return parser.parse(words, add_run_file)


def _demo_options(words: Sequence[str]) -> Sequence[str]:
    """The options of the demo, without its warm-up where the user gives one in epochs: only one of the two may be."""
    given = {word.split("=")[0].replace("_", "-") for word in words}
    at = DEMO.index("--warmup-fraction")
    return [*DEMO[:at], *DEMO[at + 2 :]] if "--warmup-epochs" in given else DEMO


def _program_help() -> str:
    """The help of the program: its commands."""
    lines = [f"  {name:<10}{(getdoc(command) or '').partition(chr(10))[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: feature-gan-kd COMMAND [--option value ...]",
            "",
            "Train several image models together; each learns from the others' class probabilities and feature maps.",
            "",
            "commands:",
            *lines,
            "",
            "feature-gan-kd COMMAND --help lists the options of a command; --version prints the version.",
        ]
    )


def _as_option(message: str) -> str:
    """Replaces the setting's name at the start of a line by its option."""
    name, colon, rest = message.partition(":")
    known = {spec.name for cls in (DistillConfig, ModelOptions, Run) for spec in dataclasses.fields(cls)}
    known.discard("labels")  # a line that begins so is about the labels of the images, not about the option
    name = OPTION_NAMES.get(name, name)
    return f"{option(name)}:{rest}" if colon and name in known else message
