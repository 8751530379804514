"""What each method is, against the paper and its ablations."""

from __future__ import annotations

from typing import Any

import pytest

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.methods import METHODS

NONE = {"kl_weight": 0, "adversarial_weight": 0, "l1_weight": 0, "l2_weight": 0, "decay_only_update": False}
DIRECT = ("l1_weight", "l2_weight", "aligned_weight", "statistics_weight", "relation_weight")
NONE |= dict.fromkeys(DIRECT, 0)


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("afd", {"temperature": 3, "kl_weight": 1, "adversarial_weight": 1}),
        ("logit", {"temperature": 3, "kl_weight": 1}),
        ("dml", {"temperature": 1, "kl_weight": 1}),
        ("vanilla", {}),
        ("feature", {"adversarial_weight": 1}),
        ("l1", {"kl_weight": 1, "l1_weight": 1}),
        ("l1-only", {"l1_weight": 1}),
        ("l2", {"kl_weight": 1, "l2_weight": 1}),
        ("l2-only", {"l2_weight": 1}),
        ("pooled", {"kl_weight": 1, "l2_weight": 1, "max_grid": 1}),
        ("aligned", {"kl_weight": 1, "aligned_weight": 1}),
        ("statistics", {"kl_weight": 1, "statistics_weight": 1}),
        ("relation", {"kl_weight": 1, "relation_weight": 1}),
        ("zero-gradient", {"kl_weight": 1, "decay_only_update": True}),
    ],
)
def test_methods_are_loss_weights(method: Any, weights: dict[str, Any]) -> None:
    config = DistillConfig(method=method)
    expected = {**NONE, **weights}
    assert {name: getattr(config, name) for name in expected} == expected
    has_feature_loss = any(expected[name] for name in ("adversarial_weight", *DIRECT))
    assert config.has_feature_loss == has_feature_loss
    assert config.updates_extractors == (has_feature_loss or method == "zero-gradient")


def test_every_method_is_tested() -> None:
    assert len(METHODS) == 14
