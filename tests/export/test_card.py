"""The model card: its front matter, its licence and its words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

import feature_gan_kd.models  # noqa: F401  registers cifar_resnet20
from feature_gan_kd.config.methods import METHODS
from feature_gan_kd.export import ModelCardInfo, publish
from feature_gan_kd.export.card import license_of, model_card
from feature_gan_kd.utils.errors import UserError

Describe = Callable[..., ModelCardInfo]


@pytest.fixture(scope="module")
def model() -> Any:
    model: Any = timm.create_model("test_resnet", num_classes=10)
    model.pretrained_cfg = {**model.pretrained_cfg, "license": "CC-BY-NC-4.0", "hf_hub_id": "timm/test_resnet.x"}
    return model


def test_front_matter(model: nn.Module, describe: Describe) -> None:
    data = ModelCard(model_card(model, describe("test_resnet", license="MIT"))).data
    results = data.eval_results or []
    assert {one.metric_type: one.metric_value for one in results} == {
        "accuracy": 0.71234,
        "f1": 0.705,
        "cross_entropy": 1.25,
    }
    assert {(one.dataset_name, one.dataset_type) for one in results} == {("uoft-cs/cifar100", "uoft-cs/cifar100")}
    assert {key: value for key, value in data.to_dict().items() if key != "model-index"} == {
        "datasets": ["uoft-cs/cifar100"],
        "library_name": "timm",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "image-classification", "knowledge-distillation"],
    }


def test_a_pretrained_model_names_its_base(model: nn.Module, describe: Describe) -> None:
    text = model_card(model, describe("test_resnet", pretrained=True))
    assert ModelCard(text).data.base_model == "timm/test_resnet.x"
    assert "started from timm/test_resnet.x, whose licence is `CC-BY-NC-4.0`" in text


@pytest.mark.parametrize(
    ("given", "pretrained", "source", "expected"),
    [
        ("MIT", False, "apache-2.0", "mit"),
        ("mit", True, "cc-by-nc-4.0", "mit"),
        (None, True, "cc-by-nc-4.0", "cc-by-nc-4.0"),
        (None, True, None, "unknown"),
        (None, True, "unknown", "unknown"),
        (None, False, "apache-2.0", "unknown"),
    ],
)
def test_licence(describe: Describe, given: str | None, pretrained: bool, source: str | None, expected: str) -> None:
    model: Any = timm.create_model("test_resnet", num_classes=10)
    model.pretrained_cfg = {**model.pretrained_cfg, "license": source}
    card_info = describe("test_resnet", license=given, pretrained=pretrained)
    assert license_of(model, card_info) == expected
    text = model_card(model, card_info)
    assert ModelCard(text).data.license == expected
    assert ("The publisher should state one" in text) == (expected == "unknown")


def test_licence_of_a_module_that_timm_did_not_build(describe: Describe) -> None:
    assert license_of(nn.Linear(2, 2), describe("mine", pretrained=True)) == "unknown"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("uoft-cs/cifar100", True),
        ("bundled digits", False),
        ("../images/cifar100", False),
        ("cifar100", False),
        ("here/there", False),
        ("a" * 5000, False),
    ],
)
def test_only_a_hub_name_is_a_data_set_of_the_hub(
    model: nn.Module,
    describe: Describe,
    data: str,
    named: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "there").mkdir(parents=True)
    datasets = ModelCard(model_card(model, describe("test_resnet", data=data))).data.datasets
    assert datasets == ([data] if named else None)


def test_a_folder_of_this_machine_is_shown_by_its_name_alone(
    model: nn.Module, describe: Describe, tmp_path: Path
) -> None:
    (tmp_path / "birds").mkdir()
    text = model_card(model, describe("test_resnet", data=str(tmp_path / "birds")))
    assert "- Data: birds\n" in text
    assert str(tmp_path) not in text


def test_numbers_peers_and_settings(model: nn.Module, describe: Describe) -> None:
    text = model_card(model, describe("test_resnet", index=1))
    assert "| this model | 71.23 | 70.50 | 1.2500 |\n| ensemble (mean of all logits) | 73.50 | 72.25 | 1.1250 |" in text
    assert "model 1, counted from 0, of the 3 in its run, with the weights of its last epoch (3 of 300)." in text
    assert "`resnet18`, `test_vit`" in text
    assert "| lr | 0.1 |\n| milestones | 0.5, 0.75 |\n| epochs | 300 |" in text
    assert "clip_grad" not in text
    assert "optimistic" not in text


def test_what_is_not_known_and_what_was_chosen(model: nn.Module, describe: Describe) -> None:
    assert "chosen by its top-1 accuracy on these same images, so the figures are optimistic" in model_card(
        model, describe("test_resnet", which="best")
    )
    assert "## Results" not in model_card(model, describe("test_resnet", scores={}, ensemble={}))


def test_a_card_of_ones_own_loop_claims_only_what_was_seen(model: nn.Module, describe: Describe) -> None:
    nothing: dict[str, Any] = {"data": None, "scores": {}, "ensemble": {}, "epochs": None}
    text = model_card(model, describe("test_resnet", **nothing, recipe={"lr": 0.1}))
    assert "model 0, counted from 0, of the 3 in its run, after 40 updates." in text
    assert "- Data: given by a training loop of the publisher's own" in text
    text = model_card(model, describe("test_resnet", **nothing, recipe={}, updates=0))
    assert "before any training in it." in text
    assert "The model was not trained in this run." in text
    assert not {"## Settings", "Data:", "epoch"} & set(re.findall("## Settings|Data:|epoch", text))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_explained_and_cited(model: nn.Module, describe: Describe, method: str) -> None:
    text = model_card(model, describe("test_resnet", method=method))
    meaning = re.search(rf"^`{method}`: (.*)$", text, flags=re.MULTILINE)
    assert meaning is not None
    assert meaning[1].count(". ") == 1
    assert meaning[1].endswith(".")
    assert ("arXiv:1706.00384" if method == "dml" else "arXiv:2002.01775") in text


def test_another_logit_term_is_told(model: nn.Module, describe: Describe) -> None:
    """Of a model that learned by it."""
    recipe = {"logit_loss": "decoupled", "lr": 0.1}
    said = "The logit term is another one than the paper's: decoupled."
    for learned, told in (
        (("labels", "logits", "adversarial"), True),
        (("labels", "logits"), True),
        (("labels",), False),
    ):
        assert (said in model_card(model, describe("test_resnet", recipe=recipe, learned=learned))) == told
    assert "The logit term" not in model_card(model, describe("test_resnet", learned=("labels", "logits")))


def test_classes_are_named_where_they_can_be_read(model: nn.Module, describe: Describe) -> None:
    text = model_card(model, describe("test_resnet", num_classes=2, class_names=["tri`angle", "W|ürfel"]))
    assert "3 channels into 2 classes (`triangle`, `W\\|ürfel`): model 0, counted" in text
    many = describe("test_resnet", num_classes=21, class_names=[f"class {k}" for k in range(21)])
    assert "3 channels into 21 classes: model" in model_card(model, many)
    bare = describe("test_resnet", class_names=None, in_chans=1, mean=(0.5,), std=(0.2,))
    text = model_card(model, bare)
    assert "1 channel into 10 classes: model" in text
    assert "mode L\n```" in text


def test_loading_as_the_card_says_gives_a_name(describe: Describe, tmp_path: Path) -> None:
    publish(timm.create_model("test_resnet", num_classes=10), tmp_path / "net", describe("test_resnet"))
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "net" / "README.md").read_text(), flags=re.DOTALL)
    known: dict[str, Any] = {"image": Image.new("RGB", (50, 40))}
    exec(code.replace("THIS_FOLDER", str(tmp_path / "net")), known)
    assert known["name"] in [f"class {index}" for index in range(10)]


def test_loading_names_the_import_that_registers(model: nn.Module, describe: Describe) -> None:
    ours = timm.create_model("cifar_resnet20", num_classes=10)
    assert "import timm\nimport feature_gan_kd.models " in model_card(ours, describe("cifar_resnet20"))
    assert "feature_gan_kd" not in model_card(model, describe("test_resnet"))


def test_bare(describe: Describe) -> None:
    text = model_card(nn.Linear(2, 2), describe("mine"), rebuildable=False)
    data = ModelCard(text).data
    assert data.library_name is None
    assert data.tags == ["image-classification", "knowledge-distillation"]
    assert "model = Linear(...)  # torch.nn.modules.linear.Linear" in text
    assert "load_state_dict" in text
    assert "create_model" not in text
    assert "minus [0.5, 0.4, 0.3], divided by [0.2, 0.21, 0.22]" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a"]}, "class_names: 1 names for 10 classes"),
        ({"mean": (0.5,)}, "mean: 1 values for 3 channels"),
        ({"std": (0.5,) * 4}, "std: 4 values for 3 channels"),
        ({"method": "adf"}, "method: 'adf' is not allowed"),
    ],
)
def test_card_info_that_contradicts_itself(describe: Describe, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe("test_resnet", **changes)
