"""What each method is, against the paper and its ablations."""

from __future__ import annotations

from typing import Any

import pytest

from feature_gan_kd.config.methods import METHODS, Objective


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("afd", {"temperature": 3, "logit_weight": 1, "adversarial_weight": 1}),
        ("logit", {"temperature": 3, "logit_weight": 1}),
        ("dml", {"temperature": 1, "logit_weight": 1}),
        ("vanilla", {}),
        ("feature", {"adversarial_weight": 1}),
        ("l1", {"logit_weight": 1, "l1_weight": 1}),
        ("l1-only", {"l1_weight": 1}),
        ("l2", {"logit_weight": 1, "l2_weight": 1}),
        ("l2-only", {"l2_weight": 1}),
        ("zero-gradient", {"logit_weight": 1, "feature_update": True}),
    ],
)
def test_methods_are_loss_weights(method: Any, weights: dict[str, Any]) -> None:
    objective = METHODS[method]
    assert objective == Objective(**weights)
    assert objective.has_feature_loss == any("weight" in name and "logit" not in name for name in weights)
    assert objective.updates_extractors == (objective.has_feature_loss or method == "zero-gradient")


def test_every_method_is_tested() -> None:
    assert len(METHODS) == 10
