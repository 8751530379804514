"""What models were trained on and with what result: checkpoints keep it, model cards state it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data
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
        evaluated: `fingerprint` of the images that the models were evaluated on, and the `settings` that chose them,
            as JSON values.
        crop_pct: of the images that the models were evaluated on, see `Data`; None where it is not known.
        idle_settings: that did not act on the training images.
        unlabeled: name of the images without labels that were trained on besides, or their type; None for none.
        evaluated_on: name of the evaluation data, or its type; None where it was taken from the training data.
    """

    data: str
    data_names: tuple[str | None, str | None] | None
    class_names: list[str] | None
    normalisation: Normalisation | None
    license: str | None
    history: History
    evaluated: dict[str, Any] | None = None
    crop_pct: float | None = None
    idle_settings: list[str] = field(default_factory=list)
    unlabeled: str | None = None
    evaluated_on: str | None = None

    @classmethod
    def of_fit(
        cls, given: tuple[Any, Any, Any], data: Data, license: str | None, config: DistillConfig
    ) -> RunProvenance:
        """That of a training which begins.

        Args:
            given: training, evaluation and unlabelled data as `fit` was given them.
            data: the same, opened.
            license: of the weights.
            config: of the training.
        """
        train, evaluation, unlabeled = given
        names = names_of_data(train, evaluation)
        return cls(
            title_of_data(train),
            None if names is None else (names[0], names[1]),
            data.class_names,
            data.normalisation,
            license,
            History(best_metric=config.best_metric),
            {"fingerprint": data.evaluation_fingerprint, "settings": config.data_settings()},
            data.crop_pct,
            data.idle_settings,
            None if unlabeled is None else title_of_data(unlabeled),
            None if evaluation is None else title_of_data(evaluation),
        )

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

    def check_evaluated(self, fingerprint: str, settings: Mapping[str, Any]) -> None:
        """Checks that images which were opened again by their names are those that the models were evaluated on.

        A fifth that was held out of a folder would be another one after the folder grew, with images that were trained
        on; and a relative path leads elsewhere from another folder.

        Args:
            fingerprint: of the images.
            settings: that chose them; other ones than those of the training ask for other images.

        Raises:
            UserError: where they are others.
        """
        if self.data_names is None or self.evaluated is None:
            return
        if self.evaluated["settings"] != dict(settings) or self.evaluated["fingerprint"] == fingerprint:
            return
        train, evaluation = self.data_names
        raise UserError(
            f"evaluate: {title_of_data(evaluation or train)} does not give the images that the models were evaluated "
            "on in their training: files were added or changed, or the path leads elsewhere from this folder: restore "
            "them, or give data to evaluate on others"
        )


def names_of_data(*given: Any) -> tuple[str | None, ...] | None:
    """The names of data as in `RunProvenance.data_names`; None where one of them was given as an object."""
    if not all(data is None or isinstance(data, (str, Path)) for data in given):
        return None
    return tuple(None if data is None else str(data) for data in given)


def title_of_data(data: Any) -> str:
    """The data's name, or its type where it is an object."""
    if data is None:
        return BUNDLED_NAME
    return str(data) if isinstance(data, (str, Path)) else type(data).__name__
