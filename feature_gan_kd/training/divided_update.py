"""Updates that fit into memory: where one does not, its batch is divided into more parts, and it runs again (ours)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from feature_gan_kd.distributed.collectives import all_reduce_sum, any_rank_async, rank, world_size
from feature_gan_kd.method.loss_sums import Metrics
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.utils.errors import UserError, reason
from feature_gan_kd.utils.memory import BatchTooLargeError, describe_batch, is_out_of_memory, out_of_memory
from feature_gan_kd.utils.random_state import RandomState

REHEARSALS = 2
"""Updates of each kind that several processes rehearse: in the second, the optimisers have made their state."""


class DividedUpdate:
    """Runs the updates of a step, in more parts from the first one on that does not fit into memory.

    The images of an update stay the same, and it starts again from the weights, buffers and random numbers that it
    started from. The number of parts is the step's `grad_accum_steps`.

    One process alone is told by the error itself. Several exchange values in every update, so one of them cannot stop
    in the middle of it: they rehearse the first updates of each kind without an exchange, and then agree.

    Args:
        step: whose updates.
        update: runs one; the step itself, or a replay of its recordings.
        full_precision: forward passes run in the precision of the weights: a lower one is among the remedies.
    """

    def __init__(
        self, step: AdversarialStep, update: Callable[[Tensor, Tensor], Metrics], *, full_precision: bool
    ) -> None:
        self._step = step
        self._update = update
        self._full_precision = full_precision
        self._rehearsals: Counter[Hashable] = Counter()

    def __call__(self, images: Tensor, labels: Tensor) -> Metrics:
        """Updates everything by one batch, as `AdversarialStep` does.

        Args:
            images: (batch, channels, height, width), this process's share.
            labels: (batch,) or (batch, classes).

        Raises:
            UserError: as there, and where memory does not suffice for one image at a time, or for the optimisers.
        """
        if world_size() > 1 and self._rehearsals[self._step.graph_key] < REHEARSALS:
            self._rehearse(images, labels)
        while True:
            random_state = RandomState(images.device)
            try:
                return self._update(images, labels)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if world_size() > 1 or not isinstance(error, BatchTooLargeError):
                    raise self._give_up(images, reason(error), divisible=True) from error
                said = reason(error)
            # Outside of the handler: the error held the activations of the failed attempt.
            random_state.restore()
            self._divide(images, said, len(images))

    def _rehearse(self, images: Tensor, labels: Tensor) -> None:
        """Finds a number of parts that fits on every process, without an update."""
        kind = self._step.graph_key
        while True:
            said = self._attempt(images, labels) if len(images) else None
            if not any_rank_async([said is not None])()[0]:
                self._rehearsals[kind] += 1
                return
            total = int(all_reduce_sum(torch.tensor(len(images), device=images.device)))
            self._divide(images, said or "it does not fit on another process", -(-total // world_size()))
            self._rehearsals.clear()

    def _attempt(self, images: Tensor, labels: Tensor) -> str | None:
        """Runs the passes of an update, and returns what torch says if memory runs out."""
        random_state = RandomState(images.device)
        try:
            self._step.rehearse(images, labels)
        except BatchTooLargeError as error:
            return reason(error)
        except UserError:
            pass  # the update itself will say it, unless it is only that this process is alone
        finally:
            random_state.restore()
        return None

    def _divide(self, images: Tensor, said: str, share: int) -> None:
        """Doubles the number of parts, on all processes alike.

        Args:
            images: that did not fit.
            said: by torch.
            share: largest number of images of a process.
        """
        parts = self._step.grad_accum_steps
        most = max(1, share // self._smallest_part())
        if parts >= most:
            raise self._give_up(images, said, divisible=False)
        self._step.grad_accum_steps = min(2 * parts, most)
        clear_device_cache(garbage_collection=True)
        if rank() == 0:
            print(
                f"memory: {describe_batch(images, parts)} does not fit on {images.device}: from now on a batch is "
                f"divided into {self._step.grad_accum_steps} parts, as by grad_accum_steps; an update keeps its images",
                file=sys.stderr,
            )

    def _smallest_part(self) -> int:
        """Number of images that a part must have: batch normalisation cannot train on one."""
        together = self._step.sync_batchnorm and world_size() > 1
        learners: list[nn.Module] = [self._step.models[k].module for k in self._step.learners]
        has_batch_norm = any(isinstance(m, _BatchNorm) and m.training for one in learners for m in one.modules())
        return 2 if has_batch_norm and not together else 1

    def _give_up(self, images: Tensor, said: str, *, divisible: bool) -> UserError:
        parts = self._step.grad_accum_steps
        remedies = [f"grad_accum_steps={2 * parts}", "a smaller batch_size"] if divisible else ["a smaller image_size"]
        remedies += ["mixed_precision=auto"] if self._full_precision else []
        return out_of_memory(images, parts, said, [*remedies, "grad_checkpointing"])
