"""The result file of one run: read back and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.presets import METHODS, PAIRS, PRESETS
from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.utils.errors import UserError

DATA = ("fingerprint", "train_images", "evaluation_images")  # what tells one data set from another
ENSEMBLE, MEAN = "ensemble", "mean of the models"
# What every result file has, and of which type.
_ENTRIES = {
    **{"preset": str, "pair": str, "method": str, "seed": int, "models": list, "frozen": list, "config": dict},
    **{"data": dict, "versions": dict, "precision": str, "command": list, "epochs": list},
}


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        preset: name of its preset.
        pair: name of its models.
        method: name of its method.
        seed: of its weights and data.
        settings: every setting, by name.
        schedule: the settings and data that other runs must share to be compared with this one, by name; those at
            their default are left out.
        epochs: the records of the evaluated epochs.
        contents: all of its file.
    """

    preset: str
    pair: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    schedule: Mapping[str, Any]
    epochs: list[Mapping[str, Any]]
    contents: Mapping[str, Any]

    @property
    def evaluated(self) -> list[int]:
        """The epochs after which it was evaluated."""
        return [epoch["epoch"] for epoch in self.epochs]

    def curves(self) -> dict[str, list[float]]:
        """Returns the accuracy (%) by evaluation of every learner, of the mean of the models and of the ensemble.

        A run with a frozen model has no mean, because it would be a mean of fewer models than in other runs.
        """
        curves = {
            f"{k} {name}": self._curve(str(k))
            for k, name in enumerate(self.contents["models"])
            if k not in self.contents["frozen"]
        }
        if not self.contents["frozen"]:
            curves[MEAN] = [math.fsum(values) / len(values) for values in zip(*curves.values(), strict=True)]
        return {**curves, ENSEMBLE: self._curve("ensemble")}

    def _curve(self, of: str) -> list[float]:
        return [epoch["metrics"][f"eval/accuracy/{of}"] for epoch in self.epochs]


def computed(contents: Mapping[str, Any]) -> str:
    """Says in which precision and on which device the run of a result file was computed."""
    device = contents.get("device", "cpu")
    name = contents.get("processor") if device == "cpu" else device
    return f"in {contents['precision']} on {name or 'a processor that was not recorded'}"


def read_result(path: Path) -> Result:
    """Reads a result file and checks that a table can hold it.

    Raises:
        UserError: with the reason where it cannot.
    """
    try:
        contents = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError("damaged: it is not a whole JSON file") from None
    _check_entries(contents)
    try:
        config = DistillConfig.from_dict(contents["config"])
    except UserError as error:
        raise UserError(f"foreign: its settings are not this version's ({error})") from None
    schedule, settings = _schedule(contents, config), config.to_dict()
    every, last = settings["evaluate_every_epochs"], settings["epochs"]
    due = [epoch for epoch in range(1, last + 1) if epoch % every == 0 or epoch == last]
    _check_epochs(contents["epochs"], len(contents["models"]), due)
    names = {name: contents[name] for name in ("preset", "pair", "method", "seed")}
    return Result(**names, settings=settings, schedule=schedule, epochs=contents["epochs"], contents=contents)


def _check_entries(contents: Any) -> None:
    """Raises UserError where a file is not the result of a run that this version knows."""
    for key, kind in _ENTRIES.items():
        if not isinstance(contents, dict) or not isinstance(contents.get(key), kind):
            raise UserError(f"foreign: it is not a result of a comparison (it has no {key!r})")
    known: dict[str, Mapping[str, Any]] = {"preset": PRESETS, "pair": PAIRS, "method": METHODS}
    for key in known:
        if contents[key] not in known[key]:
            raise UserError(f"foreign: there is no {key} {contents[key]!r} here")
    # A published model is called after its folder.
    if contents["models"] != [name.rpartition("/")[2] for name in PAIRS[contents["pair"]]]:
        models = " and ".join(map(str, contents["models"]))
        raise UserError(f"foreign: its models are {models}, not those of {contents['pair']}")
    if "--output-dir" not in contents["command"] or not all(isinstance(word, str) for word in contents["command"]):
        raise UserError("foreign: it does not say its command")
    for name in DATA:
        if name not in contents["data"]:
            raise UserError(f"foreign: it does not say the {name} of its data")


def _schedule(contents: Mapping[str, Any], config: DistillConfig) -> dict[str, Any]:
    """Returns the settings and data that tell schedules apart: without what the method and the seed set.

    The precision is left out, too: `results.collect` refuses to average over several.

    Raises:
        UserError: where the settings are not those of the method and the seed.
    """
    frozen, layers = contents["frozen"], contents.get("feature_layers") or ()
    values = {
        **config.to_dict(),
        "frozen": " ".join(map(str, frozen)) or None,
        "feature_layers": " ".join(map(str, layers)) or None,
    }
    of_method = _as_settings(METHODS[contents["method"]])
    for name, value in {**of_method, "seed": str(contents["seed"])}.items():
        # What single models have is not among the run's settings: the command says it.
        of_models = isinstance(value, tuple) and all(":" in word for word in value) and value
        if not (set(value) <= set(contents["command"]) if of_models else _agree(value, values[name])):
            run = f"{contents['method']}/{contents['seed']}"
            raise UserError(f"foreign: its {name} is {values[name]}, that of {run} is {value or 'on'}")
    chosen = {name: contents["config"][name] for name in ("method", "recipe") if name in contents["config"]}
    defaults = DistillConfig.from_dict(chosen).to_dict()
    given = (contents["config"].keys() & config.defining().keys()) | {"frozen", "feature_layers"}
    schedule = {name: values[name] for name in given if values[name] != defaults.get(name)}
    for name in (*of_method, "method", "seed", "mixed_precision"):
        schedule.pop(name, None)
    # Where one method sets something, the others have it as the preset gives it: that does not tell schedules apart.
    for name, value in _as_settings(PRESETS[contents["preset"]].options).items():
        if name in schedule and _agree(value, schedule[name]):
            del schedule[name]
    schedule |= {f"data_{name}": contents["data"][name] for name in DATA}
    schedule |= {"launch": " ".join(contents["launch"])} if contents.get("launch") else {}
    return schedule


def _as_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in options.items()}


def _agree(option: str | tuple[str, ...], value: Any) -> bool:
    """Returns whether a setting has the value that an option gives it; an option without a value switches it on."""
    if not isinstance(option, str):
        return bool(value is True if option == () else value == option)
    return str(value) == option or (isinstance(value, float) and value == float(option))


def _check_epochs(epochs: list[Any], models: int, due: list[int]) -> None:
    """Checks the records of the evaluated epochs; `due` are the epochs after which the run must be evaluated."""
    names = [f"eval/accuracy/{of}" for of in (*range(models), "ensemble")]
    for number, epoch in enumerate(epochs, 1):
        try:
            found = {name for name in epoch["metrics"] if name.startswith("eval/accuracy/")}
            place, is_whole = epoch["epoch"], all(0 <= epoch["metrics"][name] <= 100 for name in names)
        except (KeyError, TypeError):
            raise UserError(f"damaged: record {number} is not that of an epoch of {models} models") from None
        expected = due[min(number, len(due)) - 1]
        if number > len(due):
            raise UserError(f"damaged: {len(epochs)} evaluations, its settings say {len(due)}")
        if not is_whole or found != set(names) or place != expected:
            raise UserError(f"damaged: record {number} is not that of epoch {expected} of {models} models")
    if len(epochs) < len(due):
        raise UserError(f"unfinished: {epochs[-1]['epoch'] if epochs else 0} of {due[-1]} epochs")
