"""What models were trained on and with what result: checkpoints keep it, model cards state it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_gan_kd.config.settings import BestMetric
from feature_gan_kd.models.normalisation import Normalisation
from feature_gan_kd.training.history import History
from feature_gan_kd.utils.errors import UserError

BUNDLED_NAME = "bundled digits"


@dataclass(frozen=True)
class RunProvenance:
    """What the models were last trained on.

    Attributes:
        data: name of the training data, or its type where it was given as an object.
        data_names: names of the training data (None: the bundled digits) and of the evaluation data (None: taken from
            the training data); None where one of them was given as an object.
        class_names: by class index, where the data have names.
        normalisation: of the images; None where they were floats of which it was not stated.
        license: of the weights, as the user stated it.
        history: of the training.
    """

    data: str
    data_names: tuple[str | None, str | None] | None
    class_names: list[str] | None
    normalisation: Normalisation | None
    license: str | None
    history: History

    @classmethod
    def of_fit(
        cls,
        given: tuple[Any, Any],
        class_names: list[str] | None,
        normalisation: Normalisation | None,
        license: str | None,
        best_metric: BestMetric = "accuracy",
    ) -> RunProvenance:
        """That of a training which begins.

        Args:
            given: training and evaluation data as `fit` was given them.
            class_names: see the attribute; normalisation and license likewise.
            normalisation: of the images.
            license: of the weights.
            best_metric: by which the best epoch of each model is chosen.
        """
        history = History(best_metric=best_metric)
        return cls(title_of_data(given[0]), names_of_data(*given), class_names, normalisation, license, history)

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunProvenance:
        """The inverse of `to_dict`, after JSON."""
        names, known = values["data_names"], values["normalisation"]
        return cls(
            **{
                **values,
                "data_names": None if names is None else tuple(names),
                "normalisation": known and Normalisation(tuple(known["mean"]), tuple(known["std"])),
                "history": History(**values["history"]),
            }
        )

    def reopenable_data(self) -> tuple[str | None, str | None]:
        """The names of training and evaluation data, by which they can be opened again.

        Raises:
            UserError: where one of them was given as an object.
        """
        if self.data_names is None:
            raise UserError(
                f"evaluate: the training data was a {self.data} object, which a checkpoint does not hold: give data"
            )
        return self.data_names


def names_of_data(train_data: Any, eval_data: Any) -> tuple[str | None, str | None] | None:
    """The names of training and evaluation data as in `RunProvenance.data_names`."""
    if not all(data is None or isinstance(data, (str, Path)) for data in (train_data, eval_data)):
        return None
    train, evaluation = (None if data is None else str(data) for data in (train_data, eval_data))
    return train, evaluation


def title_of_data(data: Any) -> str:
    """The data's name, or its type where it is an object."""
    if data is None:
        return BUNDLED_NAME
    return str(data) if isinstance(data, (str, Path)) else type(data).__name__
