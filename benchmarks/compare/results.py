"""Result files read back and sorted: runs of one schedule together, and what cannot stand in a table left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.presets import METHODS, PAIRS, PRESETS
from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.utils.errors import UserError

DATA = ("fingerprint", "train_images", "evaluation_images")  # what tells one data set from another
ENSEMBLE, MEAN = "ensemble", "mean of the models"


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        preset: name of its preset.
        pair: name of its models.
        method: name of its method.
        seed: of its weights and data.
        schedule: everything else that decides what it gives, by name: settings and data.
        epochs: the records of its epochs.
        about: all of its file.
    """

    preset: str
    pair: str
    method: str
    seed: int
    schedule: Mapping[str, Any]
    epochs: list[Mapping[str, Any]]
    about: Mapping[str, Any]

    @property
    def evaluated(self) -> list[int]:
        """The epochs after which it was evaluated."""
        return [epoch["epoch"] for epoch in self.epochs]

    def curves(self) -> dict[str, list[float]]:
        """Top-1 % by evaluation, of every model that learned, of their mean and of the ensemble.

        A run with a frozen model has no mean: it would be that of fewer models than in other runs.
        """
        curves = {
            f"{k} {name}": [epoch["accuracy"][k] for epoch in self.epochs]
            for k, name in enumerate(PAIRS[self.pair])
            if k not in self.about["frozen"]
        }
        if not self.about["frozen"]:
            curves[MEAN] = [math.fsum(values) / len(values) for values in zip(*curves.values(), strict=True)]
        return {**curves, ENSEMBLE: [epoch["ensemble"] for epoch in self.epochs]}


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in method and seed alone.

    Attributes:
        preset: name of their preset.
        pair: name of their models.
        differing: what tells their schedule from those of other comparisons of the same preset and pair, by name.
        results: theirs, by method and seed; the methods in the order of `METHODS`, the seeds rising.
    """

    preset: str
    pair: str
    differing: Mapping[str, Any]
    results: Mapping[str, Mapping[int, Result]]

    @property
    def any_result(self) -> Result:
        """One of them, not of an offline method where there is another."""
        everything = [result for of_method in self.results.values() for result in of_method.values()]
        return min(everything, key=lambda result: len(result.about["frozen"]))

    def whose(self) -> list[str]:
        """The names of the curves."""
        return list(self.any_result.curves())

    def curves(self, method: str, whose: str) -> dict[int, list[float]]:
        """Top-1 % by evaluation, by seed; none where the method has no such curve."""
        curves = {seed: result.curves() for seed, result in self.results.get(method, {}).items()}
        return {seed: one[whose] for seed, one in curves.items() if whose in one}

    def scores(self, method: str, whose: str, *, best: bool = False) -> dict[int, float]:
        """Top-1 % by seed, after the last epoch or after the best evaluated one."""
        return {seed: max(curve) if best else curve[-1] for seed, curve in self.curves(method, whose).items()}


def collect(folder: Path) -> tuple[list[Comparison], list[str]]:
    """The results in the folder of a comparison, or in that of one of its presets.

    Returns:
        The comparisons, and a line on everything that is in none of them: unfinished runs, damaged files, files of
        another origin.

    Raises:
        UserError: where there is no result.
    """
    if not folder.is_dir():
        raise UserError(f"--tabulate: {folder} is no folder: name the --output-dir of a comparison")
    results: dict[str, Result] = {}
    left_out: list[str] = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        name = str(path.relative_to(folder))
        try:
            results[name] = _read(path)
        except UserError as error:
            left_out.append(f"{name}: {error}")
    left_out += _repeated(results)
    left_out += _unfinished(folder, results.values())
    if not results:
        why = f" ({len(left_out)} left out, the first is {left_out[0]})" if left_out else ""
        raise UserError(f"--tabulate: {folder} has no finished run{why}: name the --output-dir of a comparison")
    return _compared(results.values()), left_out


def _read(path: Path) -> Result:
    """Raises UserError with the reason where a file cannot stand in a table."""
    try:
        about = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError("damaged: it is no whole JSON file") from None
    wanted = {"preset": str, "pair": str, "method": str, "seed": int, "models": list, "frozen": list, "config": dict}
    wanted |= {"data": dict, "versions": dict, "command": list, "epochs": list}
    for key, kind in wanted.items():
        if not isinstance(about, dict) or not isinstance(about.get(key), kind):
            raise UserError(f"foreign: no result of a comparison (it has no {key!r})")
    known: dict[str, Mapping[str, Any]] = {"preset": PRESETS, "pair": PAIRS, "method": METHODS}
    for key in known:
        if about[key] not in known[key]:
            raise UserError(f"foreign: there is no {key} {about[key]!r} here")
    if tuple(about["models"]) != PAIRS[about["pair"]]:
        raise UserError(f"foreign: its models are {' and '.join(map(str, about['models']))}, not {about['pair']}'s")
    if "--output-dir" not in about["command"] or not all(isinstance(word, str) for word in about["command"]):
        raise UserError("foreign: it does not say its command")
    for name in DATA:
        if name not in about["data"]:
            raise UserError(f"foreign: it does not say the {name} of its data")
    schedule = _schedule(about)
    due = [
        epoch
        for epoch in range(1, schedule["epochs"] + 1)
        if epoch % schedule["evaluate_every_epochs"] == 0 or epoch == schedule["epochs"]
    ]
    _check_epochs(about["epochs"], len(about["models"]), due)
    names = ("preset", "pair", "method", "seed")
    return Result(**{name: about[name] for name in names}, schedule=schedule, epochs=about["epochs"], about=about)


def _schedule(about: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that neither the method nor the seed sets, and the data."""
    try:
        settings = DistillConfig.from_dict(about["config"]).defining()
    except UserError as error:
        raise UserError(f"foreign: its settings are not this version's ({error})") from None
    settings["frozen"] = " ".join(map(str, about["frozen"])) or None
    settings["feature_layers"] = " ".join(map(str, about.get("feature_layers") or ())) or None
    expected = {name.replace("-", "_"): value for name, value in METHODS[about["method"]].items()}
    for name, value in {**expected, "seed": str(about["seed"])}.items():
        found = settings.pop(name)
        if not _says(value, found):
            wanted = value or "on"
            raise UserError(f"foreign: its {name} is {found}, that of {about['method']}/{about['seed']} is {wanted}")
    # What one method sets is in the others as the preset has it, or else its default: that tells no schedules apart.
    usual = {**DistillConfig().to_dict(), **PRESETS[about["preset"]].options}
    for name in {name for options in METHODS.values() for name in options}:
        key = name.replace("-", "_")
        if key in settings and _says(usual.get(name, usual.get(key)), settings[key]):
            del settings[key]
    data = {f"data_{name}": about["data"][name] for name in DATA}
    schedule = {**settings, **data, "launch": " ".join(about.get("launch", ())) or None}
    return {name: value for name, value in schedule.items() if value is not None}


def _says(option: Any, found: Any) -> bool:
    """Whether a setting's value is that of an option on the command line; one without a value switches it on."""
    if not isinstance(option, str):
        return bool(found is True if option == () else found == option)
    return str(found) == option or (isinstance(found, float) and found == float(option))


def _check_epochs(epochs: list[Any], models: int, due: list[int]) -> None:
    """Args: `due` are the epochs after which the run has to be evaluated."""
    for number, epoch in enumerate(epochs, 1):
        try:
            values, place = [*epoch["accuracy"], epoch["ensemble"]], epoch["epoch"]
            whole = all(0 <= value <= 100 for value in values)
        except (KeyError, TypeError):
            raise UserError(f"damaged: record {number} is not that of an epoch") from None
        expected = due[min(number, len(due)) - 1]
        if number > len(due):
            raise UserError(f"damaged: {len(epochs)} evaluations, its settings say {len(due)}")
        if not whole or len(values) != models + 1 or place != expected:
            raise UserError(f"damaged: record {number} is not that of epoch {expected} of {models} models")
    if len(epochs) < len(due):
        raise UserError(f"unfinished: {epochs[-1]['epoch'] if epochs else 0} of {due[-1]} epochs")


def _repeated(results: dict[str, Result]) -> list[str]:
    """Takes out of the results by file what is there twice: one of two equal files, both of two different ones."""
    left_out = []
    by_run: dict[tuple[str, ...], list[str]] = {}
    for name, one in results.items():
        by_run.setdefault((*_key(one), one.method, str(one.seed)), []).append(name)
    for names in by_run.values():
        first = results[names[0]]
        if any(results[name].epochs != first.epochs for name in names):
            left_out += [f"{name}: one run with different figures in {len(names)} files" for name in names]
        else:
            left_out += [f"{name}: the same run as {names[0]}" for name in names[1:]]
            names = names[1:]
        for name in names:
            del results[name]
    return left_out


def _unfinished(folder: Path, results: Iterable[Result]) -> list[str]:
    """A line on every run that was begun and has no result."""
    finished = {(one.preset, one.pair, one.method, str(one.seed)) for one in results}
    lines = []
    for path in sorted(folder.glob("runs/*/*/*/*/config.json")):
        if path.parts[-5:-1] in finished:
            continue
        try:
            wanted = json.loads(path.read_text())["config"]["epochs"]
            records = path.with_name("metrics.jsonl").read_text().splitlines()
            state = f"{sum(json.loads(line)['event'] == 'epoch' for line in records)} of {wanted} epochs"
        except (OSError, ValueError, KeyError, TypeError):
            state = "its records cannot be read"
        lines.append(f"{path.parent.relative_to(folder)}: unfinished: {state}")
    return lines


def _key(result: Result) -> tuple[str, str, str]:
    return result.preset, result.pair, json.dumps(result.schedule, sort_keys=True)


def _compared(results: Iterable[Result]) -> list[Comparison]:
    groups: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for one in results:
        preset, pair, text = _key(one)
        groups.setdefault((preset, pair), {}).setdefault(text, []).append(one)
    presets, pairs = list(PRESETS), list(PAIRS)
    found = []
    for preset, pair in sorted(groups, key=lambda key: (presets.index(key[0]), pairs.index(key[1]))):
        alike = [group for _, group in sorted(groups[preset, pair].items())]
        schedules = [group[0].schedule for group in alike]
        for group, schedule in zip(alike, schedules, strict=True):
            found.append(Comparison(preset, pair, _differing(schedule, schedules), _by_method(group)))
    return found


def _differing(schedule: Mapping[str, Any], others: list[Mapping[str, Any]]) -> dict[str, Any]:
    names = sorted({name for one in others for name in one})
    return {name: schedule.get(name) for name in names if any(one.get(name) != schedule.get(name) for one in others)}


def _by_method(results: list[Result]) -> dict[str, dict[int, Result]]:
    return {
        method: {one.seed: one for one in sorted(results, key=lambda one: one.seed) if one.method == method}
        for method in METHODS
        if any(one.method == method for one in results)
    }
