"""Models that change tensors in place: their images, or the output of a layer that is tapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.models.in_place import check_in_place
from feature_gan_kd.models.tapped_model import Layout, Tap, TappedModel

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 3


class Net(nn.Module):
    """Two convolutions; `prepare` gets the images first."""

    def __init__(self, prepare: Callable[[Tensor, bool], Tensor] = lambda images, training: images) -> None:
        super().__init__()
        self.prepare = prepare
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, 1, 1)
        self.drop, self.head = nn.Dropout(0.5, inplace=True), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Any:
        images = self.prepare(images, self.training)
        return self.head(self.drop(self.second(self.norm(self.first(images)).relu())).mean((2, 3)))


def built(*models: nn.Module, **settings: Any) -> OnlineAdversarialDistiller:
    defaults: dict[str, Any] = {"image_size": 8, "num_classes": 3, "lr": 0.01, "feature_layers": "first"}
    return OnlineAdversarialDistiller(list(models), **{**defaults, **settings})


def shifted(in_place: bool, in_training: bool) -> Callable[[Tensor, bool], Tensor]:
    def prepare(images: Tensor, training: bool) -> Tensor:
        if in_training and not training:
            return images
        return images.sub_(2) if in_place else images - 2

    return prepare


@pytest.mark.parametrize("in_training", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_each_model_sees_the_images_as_they_were(in_training: bool, channels_last: bool) -> None:
    """Also where the images are changed in training alone: the numbers are those of a model that copies them."""
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        distiller = built(Net(shifted(in_place, in_training)), Net(), channels_last=channels_last)
        assert [one.adapter.copies for one in distiller.group.tapped] == [in_place, False]
        images = IMAGES.clone()
        torch.manual_seed(1)  # of the dropout
        metrics = distiller.training_step(images, LABELS)
        assert torch.equal(images, IMAGES)
        evaluated = distiller.evaluate(torch.utils.data.TensorDataset(IMAGES, LABELS))
        found.append(({name: float(value) for name, value in metrics.items()}, evaluated))
    assert found[0] == found[1]


def test_a_change_that_no_trial_showed() -> None:
    asleep = [True]
    distiller = built(Net(lambda images, _: images if asleep[0] else images.mul_(2)), Net(), channels_last=False)
    distiller.training_step(IMAGES.clone(), LABELS)
    asleep[0] = False
    with pytest.raises(UserError, match=r"^model 0 \(Net\): it changes its images in place"):
        distiller.training_step(IMAGES.clone(), LABELS)


def test_a_layer_that_training_alone_changes() -> None:
    with pytest.raises(UserError, match=r"^model 0 \(Net\): a later layer changes the output of 'second' in place"):
        built(Net(), Net(), feature_layers="second")
    assert built(Net(), Net(), feature_layers="drop").group.tapped[0].taps[0].layer == "drop"
    # A frozen model is never in training.
    built(Net(), Net(), feature_layers={0: "second", 1: "first"}, frozen=[0], mean=[0.5] * 3, std=[0.2] * 3)


class Remembering(Net):
    """Counts, keeps and replaces what it sees in training."""

    def __init__(self) -> None:
        super().__init__()
        self.passes, self.seen, self.table = 0, [1], {"a": 1}
        self.total: Tensor
        self.register_buffer("total", torch.zeros(2))
        self.plain = torch.zeros(2)

    def forward(self, images: Tensor) -> Any:
        if self.training:
            self.passes += 1
            self.seen.append(self.passes)
            self.table["b"] = self.passes
            self.plain += 1
            self.total = self.total + 1
        return super().forward(images)


def test_the_trial_changes_nothing() -> None:
    model = Remembering()
    model.norm.eval()
    tapped = TappedModel(model, [Tap("first", Layout.NCHW, 0, (6, 4, 4))], "model")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, buffers = [one.training for one in model.modules()], [id(one) for one in model.buffers()]
    generator, seen = torch.get_rng_state(), model.seen
    check_in_place(tapped, IMAGES, ["first"], learns=True)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert (model.passes, model.seen, model.table, model.plain.tolist()) == (0, [1], {"a": 1}, [0, 0])
    assert model.seen is seen
    assert [one.training for one in model.modules()] == modes
    assert [id(one) for one in model.buffers()] == buffers
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(one._forward_hooks for one in model.modules())
    model.train()
    model(IMAGES)
    assert (model.passes, model.seen, model.plain.tolist()) == (1, [1, 1], [1, 1])


def test_a_model_that_fails_in_training_has_its_own_line_there() -> None:
    def fail(images: Tensor, training: bool) -> Tensor:
        if training:
            raise RuntimeError("no batch")
        return images

    assert built(Net(fail), Net()).names == ["Net", "Net"]
