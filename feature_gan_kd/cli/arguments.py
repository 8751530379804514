"""A command's arguments: declared by its function, parsed by argparse, refused in one line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import itertools
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.fields import field_docs
from feature_gan_kd.config.methods import METHODS
from feature_gan_kd.config.recipes import RECIPES
from feature_gan_kd.config.settings import SECTIONS
from feature_gan_kd.config.validation import ValueType
from feature_gan_kd.utils.errors import UserError, closest

Command = Callable[..., None]
Given = dict[str, Any]  # values for all models
Own = dict[int, dict[str, Any]]  # values for single ones
Complete = Callable[[Given, Own], tuple[Given, Own]]

_METAVARS = {int: "N", float: "FLOAT", str: "NAME", Path: "PATH"}
# In characters: help lists more choices than fit in the text instead.
_LONGEST_CHOICES = 30


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a command.

    Attributes:
        name: of the function's parameter or the dataclass's field.
        type: of its value.
        help: what it is; names the default where the default is None.
        default: of the value; MISSING where the argument is required.
        is_positional: whether it is given by its place instead of `--name`.
        per_peer: whether `K:VALUE` gives it to model K alone; a switch takes the positions of models.
        is_setting: whether it is a setting of a run, which methods and recipes may change.
        short: a second name of one letter, as `-o`.
    """

    name: str
    type: ValueType
    help: str
    default: Any
    is_positional: bool = False
    per_peer: bool = False
    is_setting: bool = False
    short: str | None = None

    @property
    def is_required(self) -> bool:
        """Whether the command cannot do without it."""
        return self.default is dataclasses.MISSING

    @property
    def label(self) -> str:
        """How errors call it."""
        return self.name.upper() if self.is_positional else option(self.name)

    @property
    def usage(self) -> str:
        """How it is written."""
        if self.is_positional:
            return f"[{self.label} ...]" if self.type.is_list else self.label
        if self.type.scalar is bool:
            return f"--[no-]{self.label[2:]}{' [K ...]' * self.per_peer}"
        metavar = f"{{{','.join(map(str, self.type.choices))}}}"
        if not self.type.choices or len(metavar) > _LONGEST_CHOICES:
            metavar = _METAVARS[self.type.scalar]
        return f"{self.label} {'[K:]' * self.per_peer}{metavar}{' ...' if self.type.is_list or self.per_peer else ''}"

    def describe(self) -> str:
        """The help text with the default, and with the presets that change it."""
        if self.is_required or self.default is None or self.default == ():
            return self.help
        presets: dict[str, list[str]] = {}
        for preset, values in [*METHODS.items(), *RECIPES.items()]:
            if self.is_setting and self.name in values:
                presets.setdefault(_show(values[self.name]), []).append(preset)
        changed = "".join(f", {'/'.join(names)} {value}" for value, names in presets.items())
        return f"{self.help} (default: {_show(self.default)}{changed})"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def option(name: str) -> str:
    """The option of a setting: `--batch-size` of `batch_size`."""
    return f"--{name.replace('_', '-')}"


def groups_of(command: Command) -> dict[str, list[Argument]]:
    """The arguments of a command, by the title of their group.

    A parameter is an argument, a positional one where the parameter is positional-only. A parameter that is a dataclass
    is a group of options, one for each field; a `DistillConfig` is a group for each section. `Annotated` with a tuple
    of names leaves out all other fields; with a text, as "-o", it gives an option a second name of one letter.

    Args:
        command: a function whose docstring describes its parameters under `Args`; its dataclasses have a docstring
            below each field.
    """
    docs = dict(re.findall(r"^    (\w+): (.+(?:\n     +.+)*)", inspect.getdoc(command) or "", re.MULTILINE))
    groups: dict[str, list[Argument]] = {"Arguments": [], "Options": []}
    for parameter, hint, only in _parameters(command):
        if dataclasses.is_dataclass(hint):
            for section in SECTIONS if hint is DistillConfig else (hint,):
                groups[str(section.__doc__).rstrip(".")] = _fields(section, only)
        else:
            positional = parameter.kind is parameter.POSITIONAL_ONLY
            default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
            text = " ".join(docs[parameter.name].split())
            groups["Arguments" if positional else "Options"].append(
                Argument(parameter.name, ValueType.from_hint(hint), text, default, positional, short=only)
            )
    return {title: arguments for title, arguments in groups.items() if arguments}


def _parameters(command: Command) -> Iterator[tuple[inspect.Parameter, Any, Any]]:
    """Each parameter, its type, and what `Annotated` says of it: the names of its fields, or its short name."""
    hints = typing.get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        annotated = typing.get_origin(hints[name]) is typing.Annotated
        hint, only = typing.get_args(hints[name]) if annotated else (hints[name], None)
        yield parameter, hint, only


def _fields(section: Any, only: tuple[str, ...] | None) -> list[Argument]:
    hints, docs = typing.get_type_hints(section), field_docs(section)
    return [
        Argument(
            spec.name,
            ValueType.from_hint(hints[spec.name]),
            docs[spec.name],
            spec.default,
            per_peer=spec.metadata.get("per_peer", False),
            is_setting=section in SECTIONS,
        )
        for spec in dataclasses.fields(section)
        if spec.name in docs and (only is None or spec.name in only)
    ]


@dataclasses.dataclass(frozen=True)
class _OfPeer:
    """What was given as `K:VALUE`: `value` for model `peer` alone."""

    peer: int
    value: Any


class _HelpFormatter(argparse.HelpFormatter):
    """Shows every argument as its `usage` writes it, which argparse holds as the metavar."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return str(action.metavar)


class _Switch(argparse.BooleanOptionalAction):
    """`--name` and `--no-name`, with positions of models where `nargs` allows them."""

    def __init__(self, *, metavar: str, nargs: str | int = 0, **details: Any) -> None:
        super().__init__(**details)
        self.metavar, self.nargs = metavar, nargs

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        on = not str(option_string).startswith("--no-")
        wrong = next((word for word in values or [] if not word.isdecimal()), None)
        if wrong is not None:
            raise argparse.ArgumentError(self, f"{wrong!r} is not allowed, expected positions of models, such as 0")
        of_peers = [_OfPeer(int(k), on) for k in values or []]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), of_peers or [on]])


class Parser:
    """Parses the arguments of a command.

    Args:
        name: of the command.
        command: its function.
    """

    def __init__(self, name: str, command: Command) -> None:
        self.name = name
        self.command = command
        self.groups = groups_of(command)
        self.arguments = [one for group in self.groups.values() for one in group]
        positional = [one.usage for one in self.arguments if one.is_positional]
        required = [one.usage for one in self.arguments if one.is_required and not one.is_positional]
        others = ["[--option value ...]"] if len(positional) + len(required) < len(self.arguments) else []
        self.usage = " ".join(["feature-gan-kd", name, *positional, *required, *others])

    def format_help(self) -> str:
        """The help of the command."""
        return self._argparser([one.name for one in self.arguments]).format_help()

    def parse(self, words: Sequence[str], complete: Complete | None = None) -> Callable[[], None]:
        """The call that the words ask for.

        Args:
            words: what was typed.
            complete: adds values that were not typed.

        Raises:
            UserError: for a missing or wrong value, an unknown option, an argument too many or missing, in this order.
        """
        words = [re.sub(r"^--[^=]+", lambda match: match[0].replace("_", "-"), word) for word in words]
        # Between options, argparse assigns positional arguments too early: the words it does not know are ours.
        options = [one.name for one in self.arguments if not one.is_positional]
        try:
            known, loose = self._argparser(options).parse_known_args(words)
        except argparse.ArgumentError as error:
            raise UserError(f"{str(error.argument_name).partition('/')[0]}: {error.message}") from None
        given, own = _split_by_peer(self.arguments, vars(known))
        for one in self.arguments:
            if given.get(one.name, one) is None:
                raise UserError(f"{one.label}: its value is missing, expected {one.type.describe_item()}")
        for word in loose:
            if word.startswith("--") and word != "--":
                unknown = word.partition("=")[0]
                near = closest(unknown, list(map(option, options)))
                raise UserError(f"{unknown}: {self.name} has no such option{near and f', the closest are {near}'}")
        given |= self._positional([word for word in loose if word != "--"])
        given, own = complete(given, own) if complete else (given, own)
        missing = [one.label for one in self.arguments if one.is_required and one.name not in given]
        if missing:
            raise UserError(f"{self.name}: missing {' and '.join(missing)}, expected {self.usage}")
        return self._bind(given, own)

    def _positional(self, words: list[str]) -> dict[str, Any]:
        """The values of the positional arguments; a list takes all that are left."""
        given: dict[str, Any] = {}
        for one in self.arguments:
            if one.is_positional and words:
                taken = len(words) if one.type.is_list else 1
                values = tuple(map(one.type.scalar, words[:taken]))
                given[one.name], words = values if one.type.is_list else values[0], words[taken:]
        if words:
            raise UserError(f"{self.name}: {words[0]!r} is one argument too many, expected {self.usage}")
        return given

    def _bind(self, given: Given, own: Own) -> Callable[[], None]:
        """The call of the command with these values, those of a dataclass's fields in a dataclass.

        What was given for single models is the field `own` of the dataclass that has it.
        """
        given = given | ({"own": own} if own else {})
        positional, named = [], {}
        for parameter, hint, only in _parameters(self.command):
            if dataclasses.is_dataclass(hint):
                fields = {spec.name for spec in dataclasses.fields(hint) if only is None or spec.name in only}
                named[parameter.name] = typing.cast(Any, hint)(**{key: given[key] for key in given if key in fields})
            elif parameter.name in given and parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(given[parameter.name])
            elif parameter.name in given:
                named[parameter.name] = given[parameter.name]
        return functools.partial(self.command, *positional, **named)

    def _argparser(self, names: Sequence[str]) -> argparse.ArgumentParser:
        """A parser of the arguments with these names."""
        parser = argparse.ArgumentParser(
            usage=self.usage,
            description=(inspect.getdoc(self.command) or "").partition("\n")[0],
            formatter_class=_HelpFormatter,
            argument_default=argparse.SUPPRESS,  # so that the result holds what was typed, and nothing else
            allow_abbrev=False,
            exit_on_error=False,
            add_help=False,
        )
        for title, arguments in self.groups.items():
            group = parser.add_argument_group(title)
            for one in arguments:
                usage = f"{one.short}, {one.usage}" if one.short else one.usage
                details: dict[str, Any] = {"help": one.describe().replace("%", "%%"), "metavar": usage}
                if one.type.scalar is bool:
                    details["action"] = _Switch
                    details["nargs"] = "*" if one.per_peer else 0
                elif one.per_peer:
                    details["type"] = functools.partial(_convert_of_peer, one.type)
                    details["nargs"] = "*"
                    details["action"] = "append"  # each occurrence by itself: a later one may be for another model
                elif not one.is_positional:
                    # An option without its value gets None, which no word can give: `parse` explains it.
                    details["type"] = functools.partial(_convert, one.type)
                    details["nargs"] = "*" if one.type.is_list else "?"
                if one.name in names:
                    names_of = [one.name] if one.is_positional else [one.label, *([one.short] if one.short else [])]
                    group.add_argument(*names_of, **details)
        return parser


def _convert(expected: ValueType, word: str, whom: str = "") -> Any:
    try:
        value = expected.scalar(word)
    except ValueError:
        value = None
    if not expected.accepts_item(value):
        raise argparse.ArgumentTypeError(f"{word!r} is not allowed{whom}, expected {expected.describe_item()}")
    return value


def _convert_of_peer(expected: ValueType, word: str) -> Any:
    found = re.fullmatch(r"(\d+):(.*)", word)
    if found is None:
        return _convert(expected, word)
    return _OfPeer(int(found[1]), _convert(expected, found[2], f" for model {found[1]}"))


def _split_by_peer(arguments: Sequence[Argument], known: dict[str, Any]) -> tuple[Given, Own]:
    """Separates the values for all models from those for single ones; lists become tuples.

    Where an option is given several times, the last value for all models counts, and the last for each single one.

    Raises:
        UserError: for two values of one setting in one occurrence of its option.
    """
    given: Given = {}
    own: Own = {}
    for one in arguments:
        if one.name not in known:
            continue
        value = known[one.name]
        if not (one.per_peer or one.type.scalar is bool):
            given[one.name] = tuple(value) if isinstance(value, list) else value
            continue
        for occurrence in value:
            for before, word in itertools.pairwise(occurrence if one.type.is_list else []):
                if isinstance(before, _OfPeer) and not isinstance(word, _OfPeer):
                    raise UserError(
                        f"{one.label}: {_show(word)} is for all models, behind {before.peer}:{_show(before.value)} for "
                        f"model {before.peer}: write {before.peer}: before each number of this model, and its numbers "
                        "behind those for all"
                    )
            for peer, items in _by_peer(occurrence).items():
                if len(items) > 1 and not one.type.is_list:
                    whom = "all models" if peer is None else f"model {peer}"
                    raise UserError(f"{one.label}: {' and '.join(map(_show, items))} are given for {whom}: give one")
                values = given if peer is None else own.setdefault(peer, {})
                values[one.name] = tuple(items) if one.type.is_list else items[0]
            if not occurrence:
                given[one.name] = None
    return given, own


def _by_peer(words: Sequence[Any]) -> dict[int | None, list[Any]]:
    """The values of one occurrence of an option by model; None for all models."""
    found: dict[int | None, list[Any]] = {}
    for word in words:
        peer, value = (word.peer, word.value) if isinstance(word, _OfPeer) else (None, word)
        found.setdefault(peer, []).append(value)
    return found
