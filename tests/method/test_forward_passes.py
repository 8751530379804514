"""What learners and sources see where a batch holds two views of each image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from tests.helpers.small_models import GroupNormModel

PLAIN = {"aa": "rand-m9", "source_view": "plain"}


def test_learners_see_the_first_view_and_sources_the_second() -> None:
    """One source is frozen, the other teaches with its averaged weights."""
    models = [GroupNormModel(k).double() for k in (2, 4, 6)]
    distiller = OnlineAdversarialDistiller(
        models,
        num_classes=5,
        image_size=8,
        method="logit",
        topology=[(0, 1), (1, 2)],
        frozen=[0],
        model_ema=0.9,
        targets="ema",
        **PLAIN,
    )
    views = torch.randn(6, 6, 8, 8, dtype=torch.float64)
    seen, plain = views[:, :3], views[:, 3:]
    labels = torch.arange(6) % 5
    with torch.no_grad():
        learned = [model(seen) for model in models]
        taught = [model(plain) for model in models]  # before the first update a mean is the model itself
    metrics = distiller.group.training_step(views, labels)
    for source, learner in ((0, 1), (1, 2)):
        target = (taught[source] / 3).softmax(1)
        kl = 9 * F.kl_div((learned[learner] / 3).log_softmax(1), target, reduction="batchmean")
        torch.testing.assert_close(metrics[f"kl/{learner}"], kl, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(metrics[f"cross_entropy/{learner}"], F.cross_entropy(learned[learner], labels))


def test_in_ones_own_loop_all_see_the_same() -> None:
    models = [GroupNormModel(2), GroupNormModel(4)]
    views = {"frozen": [0], "num_classes": 5, "image_size": 8, "method": "logit"}
    with_views = OnlineAdversarialDistiller(models, **views, **PLAIN)
    images = torch.rand(6, 3, 8, 8)
    logits = [model(images) for model in models]
    kl = F.kl_div((logits[1] / 3).log_softmax(1), (logits[0] / 3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(with_views.training_step(images, torch.arange(6) % 5)["kl/1"], 9 * kl)


def test_a_view_of_the_sources_needs_sources_that_have_one() -> None:
    with pytest.raises(UserError, match=r"^source_view: plain is for sources that are frozen or teach with averaged"):
        OnlineAdversarialDistiller([GroupNormModel(2), GroupNormModel(4)], num_classes=5, image_size=8, **PLAIN)
