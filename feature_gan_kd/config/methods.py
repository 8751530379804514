"""The methods: presets of the loss settings, as the settings in which each differs from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

MethodName = Literal[
    "afd",
    "logit",
    "dml",
    "vanilla",
    "feature",
    "l1",
    "l1-only",
    "l2",
    "l2-only",
    "pooled",
    "aligned",
    "statistics",
    "relation",
    "zero-gradient",
]

METHODS: Mapping[MethodName, Mapping[str, Any]] = {
    "afd": {},
    "logit": {"adversarial_weight": 0.0},
    "dml": {"adversarial_weight": 0.0, "temperature": 1.0},
    "vanilla": {"adversarial_weight": 0.0, "kl_weight": 0.0},
    "feature": {"kl_weight": 0.0},
    "l1": {"adversarial_weight": 0.0, "l1_weight": 1.0},
    "l1-only": {"adversarial_weight": 0.0, "kl_weight": 0.0, "l1_weight": 1.0},
    "l2": {"adversarial_weight": 0.0, "l2_weight": 1.0},
    "l2-only": {"adversarial_weight": 0.0, "kl_weight": 0.0, "l2_weight": 1.0},
    "pooled": {"adversarial_weight": 0.0, "l2_weight": 1.0, "max_grid": 1},
    "aligned": {"adversarial_weight": 0.0, "aligned_weight": 1.0},
    "statistics": {"adversarial_weight": 0.0, "statistics_weight": 1.0},
    "relation": {"adversarial_weight": 0.0, "relation_weight": 1.0},
    "zero-gradient": {"adversarial_weight": 0.0, "decay_only_update": True},
}

METHOD_WITHOUT_LABELS: MethodName = "aligned"
"""The method where the models learn without labels, and none is named."""
