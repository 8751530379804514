"""What a published model states about itself, and the model card that states it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData
from timm.models import model_entrypoint
from torch import nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.config.methods import METHODS, MethodName
from feature_gan_kd.export.card_texts import AFD_CITATION, DESCRIPTIONS, DML_CITATION
from feature_gan_kd.training.history import Which
from feature_gan_kd.utils.errors import UserError

ExportFormat = Literal["safetensors", "onnx", "torch-export"]
"""Weights that timm loads, or a graph of operations that runs without timm."""

# A card lists the names of at most so many classes; the config has them all.
_MAX_NAMES = 20
# Of each figure: its title, its name in the hub's model index, and its format.
_SCORES = {
    "accuracy": ("top-1 accuracy, %", "accuracy", ".2f"),
    "top5": ("top-5 accuracy, %", "top_5_accuracy", ".2f"),
    "macro_f1": ("macro F1, %", "f1", ".2f"),
    "cross_entropy": ("cross-entropy, nats", "cross_entropy", ".4f"),
}
_CLASSIFICATION, _FEATURES = "image-classification", "image-feature-extraction"  # tasks, as the hub names them


@dataclass(frozen=True)
class ModelCardInfo:
    """What a published folder states about its model.

    Attributes:
        architecture: timm's name without a tag; the user's own where timm did not build the model.
        index: of the model in its run, from 0.
        num_classes: size of the logits; 0 of a model without a classifier, which gives features.
        unlabeled: name of the images without labels that were trained on besides.
        evaluated_on: name of the evaluation data, where it is not taken from `data`.
        learned: the loss terms that this model learned by: `labels`, `logits` and the terms of feature maps; empty of a
            frozen model; None for all those of the method.
        by_neighbours: whether `scores` are those of nearest neighbours, as it does not know the classes of the images.
        class_names: by class index, where the data have names.
        image_size: side of the square images, in pixels.
        in_chans: channels of the images.
        mean: per channel, of pixels in [0, 1]: what images are normalised with.
        std: likewise.
        method: by which the models learned from each other.
        peers: names of the other models of the run.
        data: name of the training data, as the user gave it; None where the user's own loop gave them.
        scores: figures of this model on the evaluation images: `accuracy`, `top5` and `macro_f1` in %,
            `cross_entropy` in nats; empty where none was measured.
        ensemble: the same of the mean of all models' logits.
        epochs: passes over the training images that these weights have seen; None where they are not known.
        updates: updates that these weights have had; 0 for those that were not trained here.
        recipe: the settings in force, with the values that method and recipe chose; the card leaves out None.
        which: weights of the last epoch, of the best, or their running mean.
        license: as the user stated it.
        pretrained: whether the model started from pretrained weights, whose licence it inherits.
        model_args: keyword arguments that timm needs to rebuild the model, besides those that it records itself.
        crop_pct: share of each side of an image that evaluation kept.
        interpolation: how it resized images.

    Raises:
        UserError: where two of these contradict each other.
    """

    architecture: str
    index: int
    num_classes: int
    class_names: list[str] | None
    image_size: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: MethodName
    peers: list[str]
    data: str | None
    scores: dict[str, float]
    ensemble: dict[str, float]
    epochs: int | None
    updates: int
    recipe: dict[str, Any]
    which: Which = "last"
    unlabeled: str | None = None
    evaluated_on: str | None = None
    learned: tuple[str, ...] | None = None
    by_neighbours: bool = False
    license: str | None = None
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"class_names: {len(self.class_names)} names for {self.num_classes} classes: give one each")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_chans:
                raise UserError(f"{name}: {len(values)} values for {self.in_chans} channels: give one each")
        if self.method not in METHODS:
            raise UserError(f"method: {self.method!r} is not allowed, expected {' or '.join(METHODS)}")


def tags_of(card_info: ModelCardInfo) -> list[str]:
    """The tags of a model that timm loads, on the hub."""
    return ["timm", _task(card_info), "knowledge-distillation"]


def _task(card_info: ModelCardInfo) -> str:
    return _CLASSIFICATION if card_info.num_classes else _FEATURES


def license_of(model: nn.Module, card_info: ModelCardInfo) -> str:
    """The licence that the user stated, else that of the pretrained weights, else `unknown`."""
    stated = card_info.license or _pretrained_source(model, card_info).get("license") or "unknown"
    return str(stated).strip().lower()


def model_card(
    model: nn.Module, card_info: ModelCardInfo, format: ExportFormat = "safetensors", *, rebuildable: bool = True
) -> str:
    """Writes the card in Markdown, with the Hub's YAML front matter.

    Args:
        model: the published model.
        card_info: what the card states.
        format: of the published file.
        rebuildable: whether timm rebuilds the model from its weights; without it the folder holds weights alone.
    """
    for_timm = format == "safetensors" and rebuildable
    front = ModelCardData(
        license=license_of(model, card_info),
        library_name="timm" if for_timm else "onnx" if format == "onnx" else None,
        pipeline_tag=_task(card_info),
        tags=[tag for tag in tags_of(card_info) if for_timm or tag != "timm"],
        datasets=[card_info.data] if card_info.data and _is_hub_id(card_info.data) else None,
        base_model=_pretrained_source(model, card_info).get("hf_hub_id") or None,
        model_name=card_info.architecture if card_info.scores else None,
        eval_results=_eval_results(card_info) if card_info.scores else None,
    )
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {card_info.architecture}",
        f"{_what_it_is(card_info)}: model {card_info.index}, counted from 0, of the {len(card_info.peers) + 1} in "
        f"its run, {_which_weights(card_info)}.",
        _results_section(card_info),
        _method_section(card_info),
        _usage_section(model, card_info, format, rebuildable),
        _settings_section(card_info),
        _license_section(model, card_info),
        f"## Citation\n\n```bibtex\n{DML_CITATION if card_info.method == 'dml' else AFD_CITATION}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what_it_is(card_info: ModelCardInfo) -> str:
    images = (
        f"images of {card_info.image_size} x {card_info.image_size} pixels and {card_info.in_chans} "
        f"channel{'s' * (card_info.in_chans > 1)}"
    )
    if not card_info.num_classes:
        return f"A backbone without a classifier, which gives features of {images}"
    return f"A classifier of {images} into {card_info.num_classes} classes{_class_list(card_info.class_names)}"


def _class_list(classes: list[str] | None) -> str:
    """The names of the classes in parentheses; empty where they are unknown or too many."""
    names = [f"`{_cell(name).replace('`', '')}`" for name in classes or ()]
    return f" ({', '.join(names)})" if 0 < len(names) <= _MAX_NAMES else ""


def _epoch_count(card_info: ModelCardInfo) -> str:
    """Number of the epoch, and of all epochs of the run, in parentheses; empty where it is unknown."""
    done, planned = card_info.epochs, card_info.recipe.get("epochs")
    return f" ({done} of {planned})" if planned else f" ({done})"


def _which_weights(card_info: ModelCardInfo) -> str:
    if card_info.which == "ema":
        when = f"its last epoch{_epoch_count(card_info)}" if card_info.epochs else f"{card_info.updates} updates"
        return f"with the running mean of its weights (EMA) after {when}"
    if card_info.epochs is not None:
        return f"with the weights of its {card_info.which} epoch{_epoch_count(card_info)}"
    return f"after {card_info.updates} updates" if card_info.updates else "before any training in it"


def _eval_results(card_info: ModelCardInfo) -> list[EvalResult]:
    """The figures as the hub's model index has them: shares, not percentages."""
    data = card_info.evaluated_on or card_info.data or "data of the publisher's own"
    is_on_hub = _is_hub_id(data)
    return [
        EvalResult(
            task_type=_task(card_info),
            dataset_type=data if is_on_hub else _CLASSIFICATION,
            dataset_name=_public_name(data).strip("`"),
            metric_type=metric,
            metric_value=round(card_info.scores[name] / (1 if name == "cross_entropy" else 100), 6),
            metric_name=title.removesuffix(", %").removesuffix(", nats")
            + (" of nearest neighbours" if card_info.by_neighbours else ""),
        )
        for name, (title, metric, _) in _SCORES.items()
        if name in card_info.scores
    ]


def _results_section(card_info: ModelCardInfo) -> str:
    """The figures; empty where none was measured."""
    if not card_info.scores:
        return ""
    names = [name for name in _SCORES if name in card_info.scores]
    ensemble = "ensemble" if card_info.by_neighbours else "ensemble (mean of all logits)"
    rows = {"this model": card_info.scores, ensemble: card_info.ensemble}
    cells = "\n".join(
        f"| {title} | {' | '.join(f'{own[name]:{_SCORES[name][2]}}' if name in own else '-' for name in names)} |"
        for title, own in rows.items()
    )
    heads = " | ".join(_SCORES[name][0] for name in names)
    table = f"## Results\n\n| on the evaluation images | {heads} |\n|---|{'---|' * len(names)}\n{cells}"
    if card_info.by_neighbours:
        table += (
            "\n\nThe model has no classifier of these classes: each image was classified by its nearest neighbours "
            "among the others."
        )
    if card_info.which == "best":
        by = _SCORES[card_info.recipe.get("best_metric", "accuracy")][0].partition(",")[0]
        table += (
            f"\n\nThe best epoch of this model was chosen by its {by} on these same images, so the figures are "
            "optimistic. The ensemble is that of the same epoch."
        )
    return table


def _method_section(card_info: ModelCardInfo) -> str:
    peers = ", ".join(f"`{peer}`" for peer in card_info.peers) or "none"
    if not card_info.updates:
        return f"## Method\n\nThe model was not trained in this run.\n\n- Other models of the run: {peers}"
    data = "given by a training loop of the publisher's own" if card_info.data is None else _public_name(card_info.data)
    data += f", and {_public_name(card_info.unlabeled)} without labels" if card_info.unlabeled else ""
    data += f"; evaluated on {_public_name(card_info.evaluated_on)}" if card_info.evaluated_on else ""
    return (
        f"## Method\n\n`{card_info.method}`: {_description(card_info)}\n\n"
        f"- Other models of the run: {peers}\n- Data: {data}"
    )


def _description(card_info: ModelCardInfo) -> str:
    """What this model learned from: the text of the method, where all of its terms acted."""
    method, learned = DistillConfig(method=card_info.method), card_info.learned
    if learned is None:
        return DESCRIPTIONS[card_info.method]
    if not learned:
        return "This model was frozen, and did not learn."
    usual = ("labels", *(["logits"] if method.kl_weight else []), *method.feature_terms)
    ending = _changes_of_logits(card_info.recipe) if "logits" in learned else ""
    if set(learned) == set(usual):
        return DESCRIPTIONS[card_info.method] + ending
    maps = [term for term in learned if term not in ("labels", "logits")]
    parts = ["the labels"] * ("labels" in learned)
    parts += ["the softened predictions of its source model (KL divergence)"] * ("logits" in learned)
    parts += [f"its source model's feature maps ({', '.join(maps)})"] * bool(maps)
    given_up = "" if "labels" in learned else " No labels were used."
    return f"This model learned from {' and from '.join(parts)}.{given_up}{ending}"


def _changes_of_logits(recipe: Mapping[str, Any]) -> str:
    """A sentence on the logit term, with a space before it, where it is not the paper's."""
    own = {spec.name: recipe[spec.name] for spec in dataclasses.fields(LossSettings) if spec.name in recipe}
    words = LossSettings(**own).logit_term_words
    return f" The logit term is another one than the paper's: {', '.join(words)}." if words else ""


def _usage_section(model: nn.Module, card_info: ModelCardInfo, format: ExportFormat, rebuildable: bool) -> str:
    if format != "safetensors":
        return _graph_usage(card_info, format)
    return _timm_usage(model, card_info) if rebuildable else _bare_usage(model, card_info)


def _timm_usage(model: nn.Module, card_info: ModelCardInfo) -> str:
    cfg: Any = model.pretrained_cfg
    module = model_entrypoint(cfg["architecture"]).__module__
    needed = {"timm": None, "feature_gan_kd": "feature_gan_kd.models"}.get(module.split(".")[0], module)
    register = f"\nimport {needed}  # registers the architecture with timm" if needed else ""
    mode = {1: "L", 3: "RGB"}.get(card_info.in_chans)
    picture = "a PIL image" + (f" of mode {mode}" if mode else f"; the model takes {card_info.in_chans} channels")
    named = '\nname = model.pretrained_cfg["label_names"][logits.argmax()]' if card_info.class_names else ""
    given = "logits" if card_info.num_classes else "features"
    return f"""## Loading

```python
import timm{register}

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()  # on the Hub: "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
{given} = model(transform(image).unsqueeze(0))  # image: {picture}{named}
```"""


def _bare_usage(model: nn.Module, card_info: ModelCardInfo) -> str:
    kind = type(model)
    return f"""## Loading

timm cannot rebuild this model. The folder holds its weights alone: load them into the model's own class.

```python
from safetensors.torch import load_file

model = {kind.__name__}(...)  # {kind.__module__}.{kind.__qualname__}, built as for training
model.load_state_dict(load_file("model.safetensors"))
```

Input: pixels in [0, 1], minus {list(card_info.mean)}, divided by {list(card_info.std)}, per channel."""


def _graph_usage(card_info: ModelCardInfo, format: ExportFormat) -> str:
    read = {
        "onnx": """import onnxruntime

model = onnxruntime.InferenceSession("model.onnx")
(logits,) = model.run(None, {"images": images})  # images: float32 (n, channels, height, width)""",
        "torch-export": """import torch

model = torch.export.load("model.pt2").module()  # can run code: load only files that you trust
logits = model(images)  # images: float32 (n, channels, height, width)""",
    }[format]
    size = card_info.image_size
    return f"""## Loading

```python
{read}
```

Input: {size} x {size} pixels in [0, 1], minus {list(card_info.mean)}, divided by {list(card_info.std)}, per channel.
`config.json` states this and the names of the classes; the file itself contains both, too."""


def _settings_section(card_info: ModelCardInfo) -> str:
    settings = {key: value for key, value in card_info.recipe.items() if value is not None}
    if not settings:
        return ""
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in settings.items())
    return f"## Settings\n\n| setting | value |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _license_section(model: nn.Module, card_info: ModelCardInfo) -> str:
    source = _pretrained_source(model, card_info)
    known = license_of(model, card_info)
    lines = [f"## Licence\n\n`{known}`"]
    if source:
        origin = source.get("hf_hub_id") or "pretrained weights"
        lines.append(f"Training started from {origin}, whose licence is `{source.get('license') or 'unknown'}`.")
    if known == "unknown":
        lines.append("No licence is known. The publisher should state one before others use these weights.")
    return "\n\n".join(lines)


def _pretrained_source(model: nn.Module, card_info: ModelCardInfo) -> Mapping[str, Any]:
    """timm's configuration of the pretrained weights that the model started from; empty where there were none."""
    cfg = getattr(model, "pretrained_cfg", None)
    return cfg if card_info.pretrained and isinstance(cfg, Mapping) else {}


def _is_hub_id(data: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", data) is not None and not os.path.exists(data)


def _public_name(data: str) -> str:
    """The name of the data; of a path on this machine only its last part, since a card is public."""
    return Path(data).name if os.path.isabs(data) or os.path.exists(data) else data
