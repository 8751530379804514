"""What models were trained on and with what result: remembered in checkpoints, told on model cards."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.export import ModelCardInfo, RebuildError, publish, publish_bare, publish_graph
from feature_gan_kd.models.build import PeerModel
from feature_gan_kd.models.input_adapter import Normalisation
from feature_gan_kd.training.history import History
from feature_gan_kd.utils.errors import UserError

Which = Literal["last", "best"]
Format = Literal["safetensors", "onnx", "torch-export"]
BUNDLED = "bundled digits"


@dataclass(frozen=True)
class RunProvenance:
    """What the models were last trained on, for their cards and for evaluating them again.

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
    def from_dict(cls, values: Mapping[str, Any]) -> RunProvenance:
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


def model_card_info(
    models: Sequence[PeerModel],
    index: int,
    provenance: RunProvenance | None,
    config: DistillConfig,
    *,
    num_classes: int,
    in_chans: int,
    which: Which,
    license: str | None,
) -> ModelCardInfo:
    """What the card and the config of model `index` are to say."""
    model = models[index]
    record = provenance.history.epochs[-1] if provenance and provenance.history.epochs else None
    if record is not None and provenance is not None and which == "best":
        best = provenance.history.best[index]["epoch"]
        record = next(one for one in provenance.history.epochs if one["epoch"] == best)
    normalisation = model.normalisation or (provenance.normalisation if provenance else None)
    normalisation = normalisation or model.timm_normalisation(in_chans)
    return ModelCardInfo(
        architecture=model.architecture,
        index=index,
        num_classes=num_classes,
        class_names=provenance.class_names if provenance else None,
        image_size=model.image_size,
        in_chans=in_chans,
        mean=normalisation.mean,
        std=normalisation.std,
        method=config.method,
        peers=[one.name for k, one in enumerate(models) if k != index],
        data=provenance.data if provenance else "nothing yet",
        accuracy=record["accuracy"][index] if record else None,
        ensemble=record["ensemble"] if record else None,
        epochs=record["epoch"] if record else None,
        recipe=config.resolved(),
        which=which,
        license=license or (provenance.license if provenance else None),
        pretrained=model.pretrained,
        model_args=model.model_args,
    )


def write_model(model: PeerModel, folder: Path, card_info: ModelCardInfo, form: Format = "safetensors") -> None:
    """Publishes a model; where timm cannot rebuild it from safetensors, says why and writes its bare weights.

    Args:
        model: any.
        folder: its place; its parents are made.
        publication: what config and card say.
        form: of what is written.

    Raises:
        UserError: where the folder holds other files or cannot be written, the logits are not finite, or a graph cannot
            be traced or computes anything else.
    """
    if form != "safetensors":
        publish_graph(model.module, folder, card_info, form)
        return
    try:
        publish(model.module, folder, card_info)
    except RebuildError as error:
        print(f"{error}; the bare weights are in {folder}", file=sys.stderr)
        publish_bare(model.module, folder, card_info)
