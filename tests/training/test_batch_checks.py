"""What `training_step` takes, and the line that refuses everything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.training.batch_checks import mark_bad_labels
from tests.helpers.small_models import GroupNormModel

IMAGES, LABELS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def build(**settings: Any) -> OnlineAdversarialDistiller:
    torch.manual_seed(0)
    return OnlineAdversarialDistiller([GroupNormModel(4), GroupNormModel(6)], image_size=8, lr=0.01, **settings)


CLASSES = build().group.num_classes
MULTI_HOT = torch.zeros(6, CLASSES).index_fill(1, torch.tensor([0, 2]), 1.0)
REFUSED = {
    "a list of images": (IMAGES.tolist(), LABELS, r"^images: list is given, expected a tensor of floats"),
    "bytes": (IMAGES.byte(), LABELS, r"^images: torch.uint8 is given, expected floats: divide pixels by 255"),
    "four channels": (torch.randn(6, 4, 8, 8), LABELS, r"^images: they have the shape \(6, 4, 8, 8\), expected"),
    "one image": (IMAGES[0], LABELS[:1], r"^images: they have the shape \(3, 8, 8\)"),
    "another size": (torch.randn(6, 3, 9, 9), LABELS, r"^images: 9x9 pixels, the distiller was built for .* 8x8"),
    "no image": (IMAGES[:0], LABELS[:0], r"^images: the batch is empty"),
    "a sparse tensor": (IMAGES.to_sparse(), LABELS, r"^images: a sparse tensor is given"),
    "a list of labels": (IMAGES, LABELS.tolist(), r"^labels: list is given, expected class indices \(6,\)"),
    "-2": (
        IMAGES,
        LABELS.clone().index_fill_(0, torch.tensor(2), -2),
        r"^labels: image 2 has the label -2.*-1 for none",
    ),
    "-100": (IMAGES, LABELS.clone().index_fill_(0, torch.tensor(4), -100), r"^labels: image 4 has the label -100"),
    "too large": (IMAGES, LABELS + CLASSES, r"^labels: image 0 has the label 5, expected 0 to 4, or -1 for none$"),
    "one-hot integers": (IMAGES, F.one_hot(LABELS, CLASSES), r"^labels: torch.int64 of shape \(6, 5\) is given"),
    "multi-hot": (IMAGES, MULTI_HOT, r"^labels: row 0 is no distribution \(its sum is 2\)"),
    "floats": (IMAGES, LABELS.float(), r"^labels: torch.float32 of shape \(6,\) is given, expected class indices"),
    "too few": (IMAGES, LABELS[:4], r"^labels: torch.int64 of shape \(4,\) is given"),
    "truth values": (IMAGES, LABELS > 0, r"^labels: torch.bool"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_and_nothing_changes(name: str) -> None:
    images, labels, line = REFUSED[name]
    distiller = build()
    before = [parameter.clone() for model in distiller.models for parameter in model.parameters()]
    with pytest.raises(UserError, match=line) as said:
        distiller.training_step(images, labels)
    assert "\n" not in str(said.value)
    after = [parameter for model in distiller.models for parameter in model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_probabilities_of_ones_own_are_not_smoothed() -> None:
    distiller = build(smoothing=0.1)
    assert distiller.training_step(IMAGES, LABELS)["cross_entropy/0"] > 0
    with pytest.raises(UserError, match=r"^smoothing: 0.1 would smooth labels that are probabilities already"):
        distiller.training_step(IMAGES, F.one_hot(LABELS, CLASSES).float())


def test_decoupled_logits_ask_for_class_indices() -> None:
    distiller = build(logit_loss="decoupled")
    assert distiller.training_step(IMAGES, LABELS)["kl/0"] > 0
    with pytest.raises(UserError, match=r"^logit_loss: decoupled asks for one class of each image, and the labels are"):
        distiller.training_step(IMAGES, F.one_hot(LABELS, CLASSES).float())


def test_class_weights_need_training_images() -> None:
    with pytest.raises(UserError, match=r"^class_weights: only fit counts the training images"):
        build(class_weights=True).training_step(IMAGES, LABELS)


@pytest.mark.parametrize("labels", [LABELS.int(), LABELS.to(torch.uint8), F.one_hot(LABELS, CLASSES).float()])
def test_other_forms_of_the_same_labels_are_the_same(labels: torch.Tensor) -> None:
    one, other = build().training_step(IMAGES, LABELS), build().training_step(IMAGES, labels)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("wrong", [-2, -100, 10])
def test_a_wrong_label_on_a_device_skips_the_update_and_is_counted(wrong: int, parts: int) -> None:
    """There the value cannot be read without waiting: the images of wrong labels become NaN."""
    distiller = build(grad_accum_steps=parts)
    before = [parameter.clone() for parameter in distiller.models[0].parameters()]
    labels = LABELS.clone().index_fill_(0, torch.tensor(3), wrong)
    metrics = distiller.group.training_step(*mark_bad_labels(IMAGES, labels, CLASSES))
    assert metrics["skipped"] == 1
    assert distiller.group.skipped_steps().skipped == 1
    assert all(map(torch.equal, before, distiller.models[0].parameters()))
    assert distiller.group.training_step(*mark_bad_labels(IMAGES, LABELS, CLASSES))["skipped"] == 0


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_an_update_without_gradients_is_refused(off: Any) -> None:
    distiller = build()
    with off(), pytest.raises(UserError, match=r"^training_step: gradients are off"):
        distiller.training_step(IMAGES, LABELS)


def test_images_must_be_what_is_stated_of_them() -> None:
    """Bytes as floats, or pixels from -1 to 1, with a mean of 0 and a deviation of 1."""
    pixels = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(0))
    for wrong in (255 * pixels, 2 * pixels - 1):
        with pytest.raises(UserError, match=r"^mean: with mean 0 0 0, std 1 1 1 undone, the images hold values from"):
            build(mean=[0.0], std=[1.0]).training_step(wrong, LABELS)
    assert build(mean=[0.0], std=[1.0]).training_step(pixels, LABELS)["skipped"] == 0
    assert build(mean=[0.5], std=[0.5]).training_step(2 * pixels - 1, LABELS)["skipped"] == 0
