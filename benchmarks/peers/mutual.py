"""`pytorch-dml` from PyPI: its trainer for deep mutual learning, on a batch that is ready in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MutualLearning:
    """Runs one epoch of its `DMLTrainer` over a list of one batch as one update.

    Args:
        models: those to train.
        optimizers: one per model; None uses its default, Adam.
    """

    def __init__(self, models: Sequence[nn.Module], optimizers: list[torch.optim.Optimizer] | None) -> None:
        from pydml import DMLTrainer

        self.trainer = DMLTrainer(list(models), device=str(next(models[0].parameters()).device), optimizers=optimizers)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Updates every model once, without printing."""
        with contextlib.redirect_stderr(io.StringIO()):
            self.trainer.train_epoch([(images, labels)], epoch=1)
