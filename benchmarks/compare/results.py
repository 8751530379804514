"""The results of a comparison: grouped by schedule, without what no table can hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.presets import METHODS, PAIRS, PRESETS
from benchmarks.compare.result_file import Result, computed, read_result
from feature_gan_kd.utils.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """Runs that differ only in method and seed.

    Attributes:
        preset: name of their preset.
        pair: name of their models.
        differing: the part of their schedule that differs from other comparisons of the same preset and pair, by name.
        results: by method and seed; the methods in the order of `METHODS`, the seeds ascending.
    """

    preset: str
    pair: str
    differing: Mapping[str, Any]
    results: Mapping[str, Mapping[int, Result]]

    @property
    def any_result(self) -> Result:
        """One of the results, of a method without a frozen model where there is one."""
        everything = [result for of_method in self.results.values() for result in of_method.values()]
        return min(everything, key=lambda result: len(result.contents["frozen"]))

    def curve_names(self) -> list[str]:
        """Returns the names of the curves: the models, their mean and the ensemble."""
        return list(self.any_result.curves())

    def curves(self, method: str, name: str) -> dict[int, list[float]]:
        """Returns the accuracy (%) by evaluation, by seed; nothing where the method has no such curve."""
        curves = {seed: result.curves() for seed, result in self.results.get(method, {}).items()}
        return {seed: one[name] for seed, one in curves.items() if name in one}

    def scores(self, method: str, name: str, *, best: bool = False) -> dict[int, float]:
        """Returns the accuracy (%) by seed, after the last epoch or after the best evaluated one."""
        return {seed: max(curve) if best else curve[-1] for seed, curve in self.curves(method, name).items()}


def collect(folder: Path) -> tuple[list[Comparison], list[str]]:
    """Reads the results in the folder of a comparison, or of one of its presets.

    Returns:
        The comparisons, and a line for everything that is in none of them: unfinished runs, damaged files, files of
        another origin.

    Raises:
        UserError: where there is no result, or results of one schedule come from several processors or precisions.
    """
    if not folder.is_dir():
        raise UserError(f"--tabulate: {folder} is not a folder: name the --output-dir of a comparison")
    results: dict[str, Result] = {}
    left_out: list[str] = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        name = str(path.relative_to(folder))
        try:
            results[name] = read_result(path)
        except UserError as error:
            left_out.append(f"{name}: {error}")
    _check_machines(folder, results)
    left_out += _drop_repeated(results)
    left_out += _unfinished(folder, results.values())
    if not results:
        why = f" ({len(left_out)} left out, the first is {left_out[0]})" if left_out else ""
        raise UserError(f"--tabulate: {folder} has no finished run{why}: name the --output-dir of a comparison")
    return _group(results.values()), left_out


def _check_machines(folder: Path, results: Mapping[str, Result]) -> None:
    """Raises UserError where runs of one schedule were computed on several processors or in several precisions.

    Their rounding differs, so that a difference between two methods would also be one between machines.
    """
    seen: dict[tuple[str, str, str], tuple[str, str]] = {}
    for name, result in results.items():
        machine = computed(result.contents)
        first, expected = seen.setdefault(_key(result), (name, machine))
        if machine != expected:
            raise UserError(
                f"--tabulate: {folder}: {first} was computed {expected}, {name} {machine}: "
                "give the results of each processor and precision a folder of their own"
            )


def _drop_repeated(results: dict[str, Result]) -> list[str]:
    """Removes repeated runs from the results by file: all but one of equal files, and every one of differing files."""
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
    """Returns a line for every run that was started and has no result."""
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
    """Preset, pair and schedule, without the fingerprint of images that each seed draws for itself."""
    schedule = dict(result.schedule)
    if result.settings.get("max_train_samples") is not None:
        del schedule["data_fingerprint"]
        schedule["data_name"] = Path(result.contents["data"]["name"]).name
    return result.preset, result.pair, json.dumps(schedule, sort_keys=True)


def _group(results: Iterable[Result]) -> list[Comparison]:
    """Sorts results into comparisons: by preset, pair and schedule.

    Where runs of one seed have other images, they are no pair: then the fingerprint tells comparisons apart.
    """
    by_key: dict[tuple[str, str, str], list[Result]] = {}
    for one in results:
        by_key.setdefault(_key(one), []).append(one)
    groups: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for (preset, pair, schedule), alike in by_key.items():
        fingerprints = {(one.seed, one.schedule["data_fingerprint"]) for one in alike}
        is_paired = len(fingerprints) == len({seed for seed, _ in fingerprints})
        for one in alike:
            own = schedule if is_paired else f"{schedule} {one.schedule['data_fingerprint']}"
            groups.setdefault((preset, pair), {}).setdefault(own, []).append(one)
    presets, pairs = list(PRESETS), list(PAIRS)
    found = []
    for preset, pair in sorted(groups, key=lambda key: (presets.index(key[0]), pairs.index(key[1]))):
        alike = [group for _, group in sorted(groups[preset, pair].items())]
        for group in alike:
            found.append(Comparison(preset, pair, _differing(group[0], [one[0] for one in alike]), _by_method(group)))
    return found


def _differing(result: Result, others: list[Result]) -> dict[str, Any]:
    """Returns what tells a result's schedule from the others', by name; a setting at its default has that value."""
    names = sorted({name for one in others for name in one.schedule})
    values = [{name: one.schedule.get(name, one.settings.get(name)) for name in names} for one in others]
    own = {name: result.schedule.get(name, result.settings.get(name)) for name in names}
    return {name: own[name] for name in names if any(one[name] != own[name] for one in values)}


def _by_method(results: list[Result]) -> dict[str, dict[int, Result]]:
    return {
        method: {one.seed: one for one in sorted(results, key=lambda one: one.seed) if one.method == method}
        for method in METHODS
        if any(one.method == method for one in results)
    }
