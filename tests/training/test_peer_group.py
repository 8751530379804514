"""The memory of a distiller is freed with its last reference, and models may be of another floating-point type."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from tests.helpers.runs import AtStep, assert_same_run, build
from tests.helpers.small_models import GroupNormModel


class PowerCutError(Exception):
    """Stands for the power going off."""


def cut() -> None:
    raise PowerCutError


def update(distiller: OnlineAdversarialDistiller) -> None:
    distiller.training_step(torch.randn(6, 3, 8, 8), torch.arange(6))


def fit_and_evaluate(distiller: OnlineAdversarialDistiller) -> None:
    distiller.fit(epochs=1, progress=False)
    distiller.evaluate()


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("settings", [{}, {"log_gradients": True, "similarity_images": 20, "grad_accum_steps": 2}])
@pytest.mark.parametrize("act", [lambda distiller: None, update, fit_and_evaluate])
def test_a_dropped_distiller_is_freed_at_once(
    act: Callable[[OnlineAdversarialDistiller], None], settings: dict[str, Any]
) -> None:
    distiller = build(**settings)
    act(distiller)
    parts = [distiller, distiller.group, distiller.step, *distiller.models, *distiller.discriminators]
    parts += [group.optimizer for group in distiller.step.optimizer_groups.values()]
    parts += [parameter for module in distiller.models for parameter in module.parameters()]
    alive = [weakref.ref(part) for part in parts]
    assert len(alive) > 20
    del distiller, parts
    assert [one() for one in alive if one() is not None] == []


@pytest.mark.slow
@pytest.mark.usefixtures("without_collector")
def test_compiled_models_are_freed_at_once_too() -> None:
    """Without what compiling leaves to the collector: that happens once, not in every update."""
    distiller = build(compile=True)
    update(distiller)
    gc.collect()
    update(distiller)
    alive = [weakref.ref(parameter) for module in distiller.models for parameter in module.parameters()]
    del distiller
    assert [one() for one in alive if one() is not None] == []


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"similarity_images": 20, "log_gradients": True},
        {"grad_accum_steps": 2, "clip_grad": 0.5},
        {"method": "l1", "l2_weight": 0.5},
        {"joint_backward": True},
        {"adversarial_loss": "hinge", "optimizer": "lamb"},
    ],
    ids=str,
)
def test_float64_as_default(settings: dict[str, Any], tmp_path: Path) -> None:
    """An update on images of that type, and whole runs, whose images are float32, with a resume."""
    distiller = build(**settings)
    metrics = distiller.training_step(torch.randn(6, 3, 8, 8), torch.arange(6))
    assert all(value.isfinite() for value in metrics.values())
    assert {parameter.dtype for module in distiller.models for parameter in module.parameters()} == {torch.float64}
    settings = {**settings, "epochs": 2, "checkpoint_every_steps": None, "max_train_samples": 64}
    build(**settings).fit(output_dir=tmp_path / "whole", progress=False)
    with pytest.raises(PowerCutError):
        build(**settings).fit(output_dir=tmp_path / "run", progress=False, callbacks=[AtStep(3, cut)])
    history = build(**settings).fit(output_dir=tmp_path / "run", progress=False, resume=True)
    assert history.last["step"] == 4
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def own_models() -> list[nn.Module]:
    return [GroupNormModel(4), GroupNormModel(4)]


def update(distiller: OnlineAdversarialDistiller) -> None:
    distiller.training_step(torch.randn(4, 3, 8, 8), torch.arange(4))


@pytest.mark.parametrize("part", ["model", "discriminator"])
def test_parameters_that_are_replaced_after_building_are_refused(part: str) -> None:
    """The optimisers hold the old ones: the new would never be trained, without a word."""
    distiller = OnlineAdversarialDistiller(own_models(), image_size=8)
    update(distiller)
    module = distiller.models[1] if part == "model" else distiller.discriminators[0]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    update(distiller)  # the same parameters with other values
    module.load_state_dict(state, assign=True)
    with pytest.raises(UserError, match=r"was replaced after the distiller was built"):
        update(distiller)


def test_discriminators_that_are_frozen_after_building_are_refused() -> None:
    distiller = OnlineAdversarialDistiller(own_models(), image_size=8)
    distiller.discriminators.requires_grad_(False)
    with pytest.raises(UserError, match=r"^connection 0->1, tap 0: .* changed requires_grad after"):
        update(distiller)


def test_two_parameters_of_one_memory_are_shared() -> None:
    """After `assign=True` the parameters are others, but a student's step would change the frozen teacher."""
    teacher, student = own_models()
    student.load_state_dict(teacher.state_dict(), assign=True)
    with pytest.raises(UserError, match=r"^models: models 0 and 1 share 'features.0.weight'"):
        OnlineAdversarialDistiller([teacher, student], image_size=8, frozen=[0])


def test_a_number_of_classes_that_the_models_do_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"^num_classes: 4 is given, the models have 5 logits"):
        OnlineAdversarialDistiller(own_models(), image_size=8, num_classes=4)


class Folding(nn.Module):
    """Four patches of each image go through the layers as images of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes)."""
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return self.head(self.features(patches).mean((2, 3)).view(len(images), 4, 8).mean(1))


class Probabilities(GroupNormModel):
    """Its output is a softmax."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities (batch, classes)."""
        return super().forward(images).softmax(1)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Folding, r"layer 'features' outputs 8 maps for 2 images: name a layer that outputs one for each"),
        (lambda: Probabilities(4), r"it outputs probabilities, expected logits: leave out its last softmax"),
    ],
)
def test_what_is_no_map_or_no_logits_is_refused(model: Any, line: str) -> None:
    layers = {0: "features"} if model is Folding else None
    with pytest.raises(UserError, match=line):
        OnlineAdversarialDistiller([model(), GroupNormModel(4)], image_size=8, feature_layers=layers)


def test_a_named_layer_that_is_changed_in_place_is_refused() -> None:
    """The block adds to the output of its last norm in place: the map would be the block's, not the norm's."""
    models = [timm.create_model("test_resnet", num_classes=5) for _ in range(2)]
    with pytest.raises(UserError, match=r"a later layer changes the output of 'layer4.0.bn2' in place: name"):
        OnlineAdversarialDistiller(models, image_size=32, feature_layers={0: "layer4.0.bn2", 1: "layer4"})
