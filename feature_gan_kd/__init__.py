"""Online adversarial knowledge distillation of feature maps for timm models and any torch module."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.utils.errors import DivergedError, Interrupted, UserError
from feature_gan_kd.utils.version import __version__

if TYPE_CHECKING:
    from feature_gan_kd.distiller import OnlineAdversarialDistiller
    from feature_gan_kd.models.peer import Peer
    from feature_gan_kd.training.callbacks import Callback, EarlyStopping
    from feature_gan_kd.training.history import History


__all__ = [
    "Callback",
    "DistillConfig",
    "DivergedError",
    "EarlyStopping",
    "Edge",
    "History",
    "Interrupted",
    "OnlineAdversarialDistiller",
    "Peer",
    "UserError",
    "__version__",
]

# torch and timm load with the first use of these: `--help` and bad options must answer at once.
_LAZY = {
    "Callback": "feature_gan_kd.training.callbacks",
    "EarlyStopping": "feature_gan_kd.training.callbacks",
    "History": "feature_gan_kd.training.history",
    "OnlineAdversarialDistiller": "feature_gan_kd.distiller",
    "Peer": "feature_gan_kd.models.peer",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
