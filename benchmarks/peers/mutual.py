"""`pytorch-dml` from PyPI: its own trainer for deep mutual learning, on batches that are ready in memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MutualLearning:
    """One epoch of its `DMLTrainer` over a list of one batch is one update.

    Args:
        models: to train.
        optimizers: one per model; None takes its default, Adam.
    """

    def __init__(self, models: Sequence[nn.Module], optimizers: list[torch.optim.Optimizer] | None) -> None:
        from pydml import DMLTrainer

        self.trainer = DMLTrainer(list(models), device=str(next(models[0].parameters()).device), optimizers=optimizers)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update of every model, without what it prints."""
        with contextlib.redirect_stderr(io.StringIO()):
            self.trainer.train_epoch([(images, labels)], epoch=1)
