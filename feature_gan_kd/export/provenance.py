"""What networks were trained on and with what result: remembered in checkpoints, told on model cards."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.export import Publication, RebuildError, publish, publish_bare, publish_graph
from feature_gan_kd.models.build import Network
from feature_gan_kd.models.input_adapter import Normalisation
from feature_gan_kd.training.history import History
from feature_gan_kd.utils.errors import UserError

Which = Literal["last", "best"]
Format = Literal["safetensors", "onnx", "torch-export"]
BUNDLED = "bundled digits"


@dataclass(frozen=True)
class Lesson:
    """What the networks were last trained on, for their cards and for evaluating them again.

    Attributes:
        data: its name, or its type where it was given as an object.
        sources: the names of the training data (None: the bundled digits) and of the evaluation data (None: of the
            training data's own); None where one of them was given as an object.
        class_names: by class index, where the data have names.
        mean: per channel, what the images were normalised with.
        std: likewise.
        license: of the weights, as the user told.
        history: of the training.
    """

    data: str
    sources: tuple[str | None, str | None] | None
    class_names: list[str] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str | None
    history: History

    @property
    def normalisation(self) -> Normalisation:
        """Of the images, as the data gave them."""
        return Normalisation(self.mean, self.std)

    def to_dict(self) -> dict[str, Any]:
        """The lesson as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lesson:
        """The inverse of `to_dict`, after JSON."""
        return cls(
            **{
                **values,
                "sources": values["sources"] and tuple(values["sources"]),
                "mean": tuple(values["mean"]),
                "std": tuple(values["std"]),
                "history": History(**values["history"]),
            }
        )

    def remembered(self) -> tuple[str | None, str | None]:
        """The names of training and evaluation data.

        Raises:
            UserError: where they were objects.
        """
        if self.sources is None:
            raise UserError(f"evaluate: the {self.data} of the training is not there any more: give data")
        return self.sources


def sources_of(train_data: Any, eval_data: Any) -> tuple[str | None, str | None] | None:
    """The names of the data, if all of it was named."""
    train, own = (None if data is None else str(data) for data in (train_data, eval_data))
    named = all(data is None or isinstance(data, (str, Path)) for data in (train_data, eval_data))
    return (train, own) if named else None


def name_of(data: Any) -> str:
    """The data's name, or its type."""
    if data is None:
        return BUNDLED
    return str(data) if isinstance(data, (str, Path)) else type(data).__name__


def publication_of(
    networks: Sequence[Network],
    index: int,
    lesson: Lesson | None,
    config: DistillConfig,
    *,
    num_classes: int,
    in_chans: int,
    which: Which,
    license: str | None,
) -> Publication:
    """What the card and the config of network `index` are to say."""
    network = networks[index]
    record = lesson.history.epochs[-1] if lesson and lesson.history.epochs else None
    if record is not None and lesson is not None and which == "best":
        best = lesson.history.best[index]["epoch"]
        record = next(one for one in lesson.history.epochs if one["epoch"] == best)
    normalisation = network.normalisation or (lesson.normalisation if lesson else None)
    normalisation = normalisation or network.stated_normalisation(in_chans)
    return Publication(
        architecture=network.architecture,
        index=index,
        num_classes=num_classes,
        class_names=lesson.class_names if lesson else None,
        image_size=network.image_size,
        in_chans=in_chans,
        mean=normalisation.mean,
        std=normalisation.std,
        method=config.method,
        peers=[one.name for k, one in enumerate(networks) if k != index],
        data=lesson.data if lesson else "nothing yet",
        accuracy=record["accuracy"][index] if record else None,
        ensemble=record["ensemble"] if record else None,
        epochs=record["epoch"] if record else None,
        recipe=config.in_full(),
        which=which,
        license=license or (lesson.license if lesson else None),
        pretrained=network.pretrained,
        model_args=network.model_args,
    )


def write_network(network: Network, folder: Path, publication: Publication, form: Format = "safetensors") -> None:
    """Publishes a network; where timm cannot rebuild it from safetensors, says why and writes its bare weights.

    Args:
        network: any.
        folder: its place; its parents are made.
        publication: what config and card say.
        form: of what is written.

    Raises:
        UserError: where the folder holds other files or cannot be written, the logits are not finite, or a graph cannot
            be traced or computes anything else.
    """
    if form != "safetensors":
        publish_graph(network.module, folder, publication, form)
        return
    try:
        publish(network.module, folder, publication)
    except RebuildError as error:
        print(f"{error}; the bare weights are in {folder}", file=sys.stderr)
        publish_bare(network.module, folder, publication)
