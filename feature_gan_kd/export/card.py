"""What a published network says of itself, and the model card that says it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCardData
from timm.models import model_entrypoint
from torch import nn

from feature_gan_kd.config.methods import METHODS, MethodName
from feature_gan_kd.utils.errors import UserError

# More names of classes than this are not read on a card; the config has them all.
_MOST_NAMES = 20
TAGS = ("timm", "image-classification", "knowledge-distillation")


@dataclass(frozen=True)
class Publication:
    """What a published folder says of its network.

    Attributes:
        architecture: timm's name without a tag; the user's own where timm did not build the network.
        index: of the network in its run, from 0.
        num_classes: size of the logits.
        class_names: by class index, where the data have names.
        image_size: side of the square images, in pixels.
        in_chans: channels of the images.
        mean: per channel, of pixels in [0, 1]: what images are normalised with.
        std: likewise.
        method: what the networks taught each other.
        peers: names of the other networks of the run.
        data: what it was trained on, as the user named it.
        accuracy: top-1 accuracy of this network on the evaluation images, in %.
        ensemble: that of the mean of all the run's logits, in %.
        epochs: passes over the training images that these weights have seen.
        recipe: every setting of the run, with what method and recipe chose; those that are None are left out.
        which: weights of the last epoch or of the best.
        license: given by the user.
        pretrained: the network started from pretrained weights, whose licence it inherits.
        model_args: keyword arguments that timm needs beyond those it records itself.

    Raises:
        UserError: at construction, where two of these contradict each other.
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
    data: str
    accuracy: float | None
    ensemble: float | None
    epochs: int | None
    recipe: dict[str, Any]
    which: Literal["last", "best"] = "last"
    license: str | None = None
    pretrained: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"class_names: {len(self.class_names)} names for {self.num_classes} classes: give one each")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_chans:
                raise UserError(f"{name}: {len(values)} values for {self.in_chans} channels: give one each")
        if self.method not in METHODS:
            raise UserError(f"method: {self.method!r} is not allowed, expected {' or '.join(METHODS)}")


def license_of(network: nn.Module, publication: Publication) -> str:
    """The user's licence, else that of the pretrained weights, else `unknown`; never a guess."""
    stated = publication.license or _source(network, publication).get("license") or "unknown"
    return str(stated).strip().lower()


Form = Literal["timm", "bare", "onnx", "torch-export"]


def model_card(network: nn.Module, publication: Publication, form: Form = "timm") -> str:
    """The card in Markdown, with the Hub's YAML front matter.

    Args:
        network: what is published.
        publication: what to say of it.
        form: what the folder holds: what timm loads, weights alone, or a graph.
    """
    front = ModelCardData(
        license=license_of(network, publication),
        library_name="timm" if form == "timm" else "onnx" if form == "onnx" else None,
        pipeline_tag="image-classification",
        tags=[tag for tag in TAGS if form == "timm" or tag != "timm"],
        datasets=[publication.data] if _is_hub_id(publication.data) else None,
        base_model=_source(network, publication).get("hf_hub_id") or None,
    )
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {publication.architecture}",
        f"A classifier of images of {publication.image_size} x {publication.image_size} pixels and "
        f"{publication.in_chans} channel{'s' * (publication.in_chans > 1)} into {publication.num_classes} classes"
        f"{_named(publication.class_names)}: network {publication.index + 1} of the {len(publication.peers) + 1} in "
        f"its run, with the weights of its {publication.which} epoch{_epochs(publication)}.",
        _results(publication),
        _method(publication),
        _usage(network, publication, form),
        _settings(publication),
        _license_section(network, publication),
        f"## Citation\n\n```bibtex\n{_DML if publication.method == 'dml' else _AFD}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _named(classes: list[str] | None) -> str:
    """The names of the classes, where there are not too many to be read."""
    names = [f"`{_cell(name).replace('`', '')}`" for name in classes or ()]
    return f" ({', '.join(names)})" if 0 < len(names) <= _MOST_NAMES else ""


def _epochs(publication: Publication) -> str:
    """Which epoch it was, and of how many."""
    done, planned = publication.epochs, publication.recipe.get("epochs")
    return "" if done is None else f" ({done} of {planned})" if planned else f" ({done})"


def _results(publication: Publication) -> str:
    rows = {"this network": publication.accuracy, "ensemble (mean of all logits)": publication.ensemble}
    cells = "\n".join(f"| {name} | {'-' if value is None else f'{value:.2f}'} |" for name, value in rows.items())
    table = f"## Results\n\n| on the evaluation images | top-1 accuracy, % |\n|---|---|\n{cells}"
    if publication.which == "best":
        table += "\n\nThe epoch was chosen by this network's accuracy on these same images: the number is optimistic."
    return table


def _method(publication: Publication) -> str:
    peers = ", ".join(f"`{peer}`" for peer in publication.peers) or "none"
    return (
        f"## Method\n\n`{publication.method}`: {_MEANING[publication.method]}\n\n"
        f"- Other networks of the run: {peers}\n- Data: {_shown(publication.data)}"
    )


def _usage(network: nn.Module, publication: Publication, form: Form) -> str:
    if form == "timm":
        return _timm_usage(network, publication)
    return _bare_usage(network, publication) if form == "bare" else _graph_usage(publication, form)


def _timm_usage(network: nn.Module, publication: Publication) -> str:
    cfg: Any = network.pretrained_cfg
    module = model_entrypoint(cfg["architecture"]).__module__
    needed = {"timm": None, "feature_gan_kd": "feature_gan_kd.models"}.get(module.split(".")[0], module)
    register = f"\nimport {needed}  # registers the architecture with timm" if needed else ""
    mode = "RGB" if publication.in_chans == 3 else "L"
    named = '\nname = network.pretrained_cfg["label_names"][logits.argmax()]' if publication.class_names else ""
    return f"""## Loading

```python
import timm{register}

network = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()  # on the Hub: "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
logits = network(transform(image).unsqueeze(0))  # image: a PIL image of mode {mode}{named}
```"""


def _bare_usage(network: nn.Module, publication: Publication) -> str:
    kind = type(network)
    return f"""## Loading

timm does not rebuild this network: these are its weights alone, for its own class.

```python
from safetensors.torch import load_file

network = {kind.__name__}(...)  # {kind.__module__}.{kind.__qualname__}, built as it was for training
network.load_state_dict(load_file("model.safetensors"))
```

Its input: pixels in [0, 1], minus {list(publication.mean)}, divided by {list(publication.std)}, per channel."""


def _graph_usage(publication: Publication, form: Form) -> str:
    read = {
        "onnx": """import onnxruntime

network = onnxruntime.InferenceSession("model.onnx")
(logits,) = network.run(None, {"images": images})  # images: float32 (n, channels, height, width)""",
        "torch-export": """import torch

network = torch.export.load("model.pt2").module()  # reads code: trust who gave you the file
logits = network(images)  # images: float32 (n, channels, height, width)""",
    }[form]
    size = publication.image_size
    return f"""## Loading

```python
{read}
```

Its input: {size} x {size} pixels in [0, 1], minus {list(publication.mean)}, divided by {list(publication.std)}, per
channel. `config.json` has this and the names of the classes, which the file carries, too."""


def _settings(publication: Publication) -> str:
    settings = {key: value for key, value in publication.recipe.items() if value is not None}
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in settings.items())
    return f"## Settings\n\n| setting | value |\n|---|---|\n{rows}"


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _license_section(network: nn.Module, publication: Publication) -> str:
    source = _source(network, publication)
    known = license_of(network, publication)
    lines = [f"## Licence\n\n`{known}`"]
    if source:
        origin = source.get("hf_hub_id") or "pretrained weights"
        lines.append(f"Training started from {origin}, whose licence is `{source.get('license') or 'unknown'}`.")
    if known == "unknown":
        lines.append("No licence is known: the publisher is asked to state one before others use these weights.")
    return "\n\n".join(lines)


def _source(network: nn.Module, publication: Publication) -> Mapping[str, Any]:
    """timm's record of the pretrained weights that the network started from; empty where there were none."""
    cfg = getattr(network, "pretrained_cfg", None)
    return cfg if publication.pretrained and isinstance(cfg, Mapping) else {}


def _is_hub_id(data: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", data) is not None and not os.path.exists(data)


def _shown(data: str) -> str:
    """The data's name; of a place on this machine only its last part, since a card is public."""
    return Path(data).name if os.path.isabs(data) or os.path.exists(data) else data


_MEANING: dict[MethodName, str] = {
    "afd": "Each network learned the softened predictions of its source network (KL divergence), and its feature "
    "extractor learned to make a discriminator take its last feature map for the source's. The discriminators "
    "served training alone and are not part of these weights.",
    "logit": "Each network learned, beside the labels, the softened predictions of its source network (KL divergence "
    "at a temperature). Feature maps were not compared.",
    "dml": "Each network learned, beside the labels, the predictions of its source network (KL divergence at "
    "temperature 1). Feature maps were not compared.",
    "vanilla": "Each network learned from the labels alone, by cross-entropy. The networks did not teach each other: "
    "this is the baseline of the methods in which they do.",
    "feature": "Each network's feature extractor learned to make a discriminator take its last feature map for its "
    "source network's. Predictions were not compared, and the discriminators are not part of these weights.",
    "l1": "Each network learned the softened predictions of its source network (KL divergence) and was pulled to its "
    "last feature map by the mean absolute difference. No discriminator took part.",
    "l1-only": "Each network's last feature map was pulled to its source network's by the mean absolute difference. "
    "Predictions were not compared and no discriminator took part.",
    "l2": "Each network learned the softened predictions of its source network (KL divergence) and was pulled to its "
    "last feature map by the mean squared difference. No discriminator took part.",
    "l2-only": "Each network's last feature map was pulled to its source network's by the mean squared difference. "
    "Predictions were not compared and no discriminator took part.",
    "zero-gradient": "Each network learned the softened predictions of its source network (KL divergence), and its "
    "feature extractor took Adam's steps on a zero gradient, so that only their weight decay acted. This is a control "
    "for adversarial distillation: no discriminator took part.",
}
_AFD = """@inproceedings{chung2020feature,
  title     = {Feature-map-level Online Adversarial Knowledge Distillation},
  author    = {Chung, Inseop and Park, SeongUk and Kim, Jangho and Kwak, Nojun},
  booktitle = {International Conference on Machine Learning},
  year      = {2020},
  note      = {arXiv:2002.01775}
}"""
_DML = """@inproceedings{zhang2018deep,
  title     = {Deep Mutual Learning},
  author    = {Zhang, Ying and Xiang, Tao and Hospedales, Timothy M. and Lu, Huchuan},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2018},
  note      = {arXiv:1706.00384}
}"""
