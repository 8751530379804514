"""CUDA graphs: a whole update is given to the GPU as one piece, in place of a thousand kernels one by one (ours)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from feature_gan_kd.distributed.collectives import world_size
from feature_gan_kd.method.step import AdversarialStep, Metrics
from feature_gan_kd.optim.gradients import has_state
from feature_gan_kd.utils.errors import UserError, reason

WARM_UPS = 3
"""Updates of each kind and size that run as usual, before the next is recorded."""

MOST = 16
"""Recordings that are held at a time; each has memory for a batch of its own. Further sizes run as usual."""

_PLAIN = frozenset({bool, int, float, str})


class Recorder(Protocol):
    """What records the launches of a function."""

    def warming_up(self) -> AbstractContextManager[None]:
        """Around what runs as usual, and will be recorded later."""
        ...

    def forget(self) -> None:
        """All that was recorded so far will not be used any more."""
        ...

    def record(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Records without running.

        Args:
            function: answers a tensor of any shape.

        Returns:
            The answer, in memory that stays, and what fills it anew.
        """
        ...


class GpuRecorder:
    """torch's CUDA graphs, all in one pool of memory: they never run at the same time.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.forget()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """On the stream of the recordings, which libraries prepare themselves for."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            usual.wait_stream(self._stream)

    def forget(self) -> None:
        """A pool without recordings cannot be recorded into again."""
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, which read images ahead, may go on with what they do.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), recording:
            answer = function()
        return answer, graph.replay


@dataclass
class Recording:
    """One recorded update.

    Attributes:
        inputs: the images and labels that it reads.
        rates: of every parameter group of every optimiser, the learning rate that it reads.
        names: of the metrics.
        values: (metrics,) that it writes.
        replay: runs it.
    """

    inputs: list[Tensor]
    rates: list[Tensor]
    names: list[str]
    values: Tensor
    replay: Callable[[], None]


class CudaGraphs:
    """Takes the updates of a step from recordings, one for each kind of update and size of a batch.

    A recording reads and writes the memory that it was made with, and does what Python decided then. So what it depends
    on is looked at before it is used: where a parameter, a buffer or an optimiser's state lies elsewhere now, a module
    was switched between training and evaluation, or a plain value of a module or an optimiser was changed, all
    recordings are made anew. Learning rates may change at will.

    Args:
        step: whose updates; every optimiser of it is fused.
        recorder: of launches.
    """

    def __init__(self, step: AdversarialStep, recorder: Recorder) -> None:
        self.step = step
        self.recordings: dict[Hashable, Recording] = {}
        self._recorder = recorder
        self._runs: Counter[Hashable] = Counter()
        self._depends_on: list[Any] = []

    def __call__(self, images: Tensor, labels: Tensor) -> Metrics:
        """Updates everything by one batch, as `AdversarialStep` does.

        Raises:
            UserError: as there, and where an update cannot be recorded.
        """
        self.step.set_modes()
        if self._forget_if_changed():
            self._runs.clear()  # what changed may be done in another way the first time
        inputs = [images, labels]
        kind = self.step.kind, *((x.shape, x.dtype, x.stride()) for x in inputs)
        if self.step.measures or not (kind in self.recordings or self._may_record(kind)):
            self._runs[kind] += 1
            with self._recorder.warming_up():
                metrics = self.step(images, labels)
            self._forget_if_changed()
            return metrics
        if kind not in self.recordings:
            self.recordings[kind] = self._record(inputs)
            self._depends_on = self._what_it_depends_on()  # Python ran once more
        return self._replay(self.recordings[kind], inputs)

    def _may_record(self, kind: Hashable) -> bool:
        # An optimiser whose first update was skipped has no state yet, and would look at the next.
        ready = all(has_state(update.optimizer) for update in self.step.optimizer_groups.values())
        return ready and self._runs[kind] >= WARM_UPS and len(self.recordings) < MOST

    def _record(self, inputs: list[Tensor]) -> Recording:
        images, labels = (x.clone() for x in inputs)
        rates = [torch.zeros((), dtype=torch.float32, device=images.device) for _ in self._groups()]
        names: list[str] = []

        def update() -> Tensor:
            metrics = self.step(images, labels)
            names.extend(metrics)
            dtype = torch.promote_types(torch.float32, next(iter(metrics.values())).dtype)
            return torch.stack([value.to(dtype) for value in metrics.values()])

        number = self.step.number
        try:
            with self._reading(rates):
                values, replay = self._recorder.record(update)
        except RuntimeError as error:
            # What ended the recording first; leaving it fails, too, and says less.
            while isinstance(error.__context__, RuntimeError):
                error = error.__context__
            if "out of memory" in str(error):
                raise torch.OutOfMemoryError(str(error)) from error
            raise UserError(
                f"cuda_graphs: an update cannot be recorded ({reason(error)}): most often a model reads from the "
                "device or copies to it in its forward pass; train without cuda_graphs"
            ) from error
        finally:
            self.step.number = number
        return Recording([images, labels], rates, names, values, replay)

    def _replay(self, recording: Recording, inputs: list[Tensor]) -> Metrics:
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        for rate, group in zip(recording.rates, self._groups(), strict=True):
            rate.fill_(group["lr"])
        recording.replay()
        self.step.number += 1
        # The next replay writes over them.
        return dict(zip(recording.names, recording.values.clone().unbind(), strict=True))

    def _groups(self) -> list[dict[str, Any]]:
        return [group for update in self.step.optimizer_groups.values() for group in update.optimizer.param_groups]

    @contextmanager
    def _reading(self, rates: list[Tensor]) -> Iterator[None]:
        """Optimisers read their learning rates on the device, and may be recorded."""
        with ExitStack() as stack:
            for group, rate in zip(self._groups(), rates, strict=True):
                stack.callback(_put_back, group, dict(group))
                group.update(lr=rate, capturable=True)
            yield

    def _forget_if_changed(self) -> bool:
        found = self._what_it_depends_on()
        changed = found != self._depends_on
        if changed:
            self._depends_on = found
            self.recordings.clear()
            self._recorder.forget()
        return changed

    def _what_it_depends_on(self) -> list[Any]:
        """Addresses of all tensors that an update uses besides its batch, and what Python decides by."""
        found: list[Any] = []
        for root in (*self.step.models, *self.step.connections):
            for module in root.modules():
                found += [value for value in vars(module).values() if type(value) in _PLAIN]
                tensors = (*module._parameters.values(), *module._buffers.values())
                found += [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        for update in self.step.optimizer_groups.values():
            for state in update.optimizer.state.values():
                found += [value.data_ptr() for value in state.values() if isinstance(value, Tensor)]
        for group in self._groups():
            found += [value for key, value in group.items() if key not in ("params", "lr", "initial_lr")]
        return found + [counted.data_ptr() for counted in self.step.guard.tensors()]


def for_gpu(step: AdversarialStep, device: torch.device) -> CudaGraphs:
    """Recordings of a step's updates on a GPU.

    Args:
        step: whose updates.
        device: that it runs on.

    Raises:
        UserError: for another device, several processes, or an optimiser that torch does not fuse.
    """
    if device.type != "cuda":
        raise UserError(f"cuda_graphs: the device is {device}, expected a CUDA GPU: train without cuda_graphs")
    if world_size() > 1:
        raise UserError(f"cuda_graphs: {world_size()} processes, expected one: train without cuda_graphs")
    check(step)
    return CudaGraphs(step, GpuRecorder(device))


def check(step: AdversarialStep) -> None:
    """Raises UserError for an optimiser that reads its state on the host."""
    for kind, update in step.optimizer_groups.items():
        if not all(group.get("fused") for group in update.optimizer.param_groups):
            raise UserError(
                f"cuda_graphs: torch has no fused {type(update.optimizer).__name__} ({kind} loss), which reads nothing "
                "on the host: choose momentum, adam or adamw, or train without cuda_graphs"
            )


def _put_back(group: dict[str, Any], values: dict[str, Any]) -> None:
    group.clear()
    group.update(values)
