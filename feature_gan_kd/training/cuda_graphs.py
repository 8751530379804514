"""CUDA graphs: records whole updates and replays each in one launch, in place of a thousand kernel launches (ours).

Small models are limited by launches: the GPU finishes a kernel before Python has launched the next. A CUDA graph is a
fixed list of kernels with fixed arguments, so a replay reads and writes the memory of the recording, and repeats what
Python decided while it was recorded. This module makes sure that both are still right when a recording is replayed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from feature_gan_kd.distributed.collectives import world_size
from feature_gan_kd.method.loss_sums import Metrics
from feature_gan_kd.method.step import AdversarialStep
from feature_gan_kd.optim.gradients import has_state
from feature_gan_kd.utils.errors import UserError, reason
from feature_gan_kd.utils.memory import BatchTooLargeError

WARM_UPS = 3
"""Updates of each kind and batch size that run without a recording before the next one is recorded.

What happens only the first time must not be recorded: libraries allocate workspaces and choose kernels, optimisers
allocate their state, torch.compile compiles. Three is the number that torch's own examples use.
"""

MAX_GRAPHS = 16
"""Recordings kept at a time. Each has its own memory for a batch; updates of further sizes run without a recording."""

_PLAIN_TYPES = frozenset({bool, int, float, str})


class Recorder(Protocol):
    """Records the kernel launches of a function; tests put another one in place of the GPU's."""

    def warming_up(self) -> AbstractContextManager[None]:
        """A context for updates that run without a recording, and will be recorded later."""
        ...

    def forget(self) -> None:
        """Releases the memory of all recordings; none of them will be replayed."""
        ...

    def record(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Records a function without running its kernels.

        Args:
            function: returns a tensor of any shape.

        Returns:
            That tensor, whose memory stays, and a function that replays the recording and so fills it anew.
        """
        ...


class GpuRecorder:
    """torch's CUDA graphs. All share one memory pool, which is safe since no two of them run at the same time.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.forget()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """See `Recorder`. Runs on the stream of the recordings, since libraries keep their workspaces per stream."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)  # the batch may still be on its way to the device
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            usual.wait_stream(self._stream)

    def forget(self) -> None:
        """See `Recorder`. Takes a new pool: torch does not record into a pool whose graphs are all deleted."""
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads, which read images ahead, may go on using the device meanwhile.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), recording:
            output = function()
        return output, graph.replay


@dataclass
class Recording:
    """One recorded update.

    Attributes:
        inputs: the images and labels that it reads; each batch is copied into them.
        learning_rates: on the device, one for each parameter group of each optimiser; each update copies its own.
        names: of the metrics.
        values: (metrics,) that it writes.
        replay: runs it.
    """

    inputs: list[Tensor]
    learning_rates: list[Tensor]
    names: list[str]
    values: Tensor
    replay: Callable[[], None]


class CudaGraphs:
    """Replays the updates of a step from recordings, one for each kind of update and each batch size.

    Before each update everything is compared that a recording depends on besides its batch and the learning rates: the
    addresses of parameters, buffers and optimiser states, and plain values (bool, int, float, str) of modules and
    optimisers, by which Python decides what to launch: training or evaluation mode, a dropout rate, a weight decay.
    Where one of them differs, all recordings are dropped and made anew.

    Args:
        step: whose updates; every optimiser of it is fused.
        recorder: records them.
    """

    def __init__(self, step: AdversarialStep, recorder: Recorder) -> None:
        self.step = step
        self.recordings: dict[Hashable, Recording] = {}
        self._recorder = recorder
        self._warm_ups: Counter[Hashable] = Counter()
        self._dependencies: list[Any] = []

    def __call__(self, images: Tensor, labels: Tensor) -> Metrics:
        """Updates everything by one batch, as `AdversarialStep` does.

        Raises:
            UserError: as there, and where an update cannot be recorded.
        """
        # The step would do it, but only when it runs; the modes decide whether a recording may be replayed.
        self.step.set_modes()
        if self._drop_if_changed():
            # Other memory or another mode may mean other kernels, whose libraries prepare themselves again.
            self._warm_ups.clear()
        inputs = [images, labels]
        kind = self.step.graph_key, *((x.shape, x.dtype, x.stride()) for x in inputs)
        # Updates that measure gradient statistics are rare and launch other kernels: not worth a recording.
        if self.step.measures_gradients or not (kind in self.recordings or self._can_record(kind)):
            self._warm_ups[kind] += 1
            with self._recorder.warming_up():
                metrics = self.step(images, labels)
            # A model may change plain values in its forward pass, such as a counter. That is no change from outside.
            self._drop_if_changed()
            return metrics
        if kind not in self.recordings:
            self.recordings[kind] = self._record(inputs)
            self._dependencies = self._find_dependencies()  # recording ran the Python code of the models once more
        return self._replay(self.recordings[kind], inputs)

    def _can_record(self, kind: Hashable) -> bool:
        # An optimiser makes its state in its first step. Where that was skipped, because a value was not finite, the
        # next step reads on the host whether to step, which cannot be recorded.
        ready = all(has_state(group.optimizer) for group in self.step.optimizer_groups.values())
        return ready and self._warm_ups[kind] >= WARM_UPS and len(self.recordings) < MAX_GRAPHS

    def _record(self, inputs: list[Tensor]) -> Recording:
        # A replay reads the addresses of the recording, so the batch needs a buffer that stays.
        images, labels = (x.clone() for x in inputs)
        learning_rates = [torch.zeros((), dtype=torch.float32, device=images.device) for _ in self._parameter_groups()]
        names: list[str] = []

        def update() -> Tensor:
            metrics = self.step(images, labels)
            names.extend(metrics)
            # One tensor: a replay's metrics are then copied by one kernel.
            dtype = torch.promote_types(torch.float32, next(iter(metrics.values())).dtype)
            return torch.stack([value.to(dtype) for value in metrics.values()])

        number = self.step.number
        try:
            with self._learning_rates_on_device(learning_rates):
                values, replay = self._recorder.record(update)
        except RuntimeError as error:
            raise _explain(error) from error
        finally:
            self.step.number = number  # nothing was updated: recorded kernels do not run
        return Recording([images, labels], learning_rates, names, values, replay)

    def _replay(self, recording: Recording, inputs: list[Tensor]) -> Metrics:
        for buffer, given in zip(recording.inputs, inputs, strict=True):
            buffer.copy_(given)
        for on_device, group in zip(recording.learning_rates, self._parameter_groups(), strict=True):
            on_device.fill_(group["lr"])
        recording.replay()
        self.step.number += 1
        # A clone, since the next replay overwrites the values.
        return dict(zip(recording.names, recording.values.clone().unbind(), strict=True))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return [group for own in self.step.optimizer_groups.values() for group in own.optimizer.param_groups]

    @contextmanager
    def _learning_rates_on_device(self, learning_rates: list[Tensor]) -> Iterator[None]:
        """Lets optimisers read their learning rates on the device while an update is recorded.

        A number of Python would become a constant of the recording, and the schedules change it in every update.
        """
        with ExitStack() as stack:
            for group, rate in zip(self._parameter_groups(), learning_rates, strict=True):
                stack.callback(_restore_group, group, dict(group))
                group.update(lr=rate, capturable=True)
            yield

    def _drop_if_changed(self) -> bool:
        """Drops all recordings if anything that they depend on has changed; returns whether it has."""
        found = self._find_dependencies()
        changed = found != self._dependencies
        if changed:
            self._dependencies = found
            self.recordings.clear()
            self._recorder.forget()
        return changed

    def _find_dependencies(self) -> list[Any]:
        """Addresses of all tensors that an update uses besides its batch, and the plain values that Python reads."""
        found: list[Any] = [self.step.grad_accum_steps]
        for root in (*self.step.models, *self.step.connections):
            for module in root.modules():
                found += [value for value in vars(module).values() if type(value) in _PLAIN_TYPES]
                tensors = (*module._parameters.values(), *module._buffers.values())
                found += [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        for group in self.step.optimizer_groups.values():
            for state in group.optimizer.state.values():
                found += [value.data_ptr() for value in state.values() if isinstance(value, Tensor)]
        for settings in self._parameter_groups():
            found += [value for key, value in settings.items() if key not in ("params", "lr", "initial_lr")]
        return found + [counter.data_ptr() for counter in self.step.guard.tensors()]


def graphs_on_gpu(step: AdversarialStep, device: torch.device) -> CudaGraphs:
    """Makes the updates of a step run from recordings on a GPU.

    Args:
        step: whose updates.
        device: where it runs.

    Raises:
        UserError: for another device, several processes, or an optimiser that torch does not fuse.
    """
    if device.type != "cuda":
        raise UserError(f"cuda_graphs: the device is {device}, expected a CUDA GPU: train without cuda_graphs")
    if world_size() > 1:
        raise UserError(f"cuda_graphs: {world_size()} processes, expected one: train without cuda_graphs")
    check_optimizers(step)
    return CudaGraphs(step, GpuRecorder(device))


def check_optimizers(step: AdversarialStep) -> None:
    """Raises UserError for an optimiser that reads its state on the host, which cannot be recorded."""
    for name, group in step.optimizer_groups.items():
        if not all(settings.get("fused") for settings in group.optimizer.param_groups):
            raise UserError(
                f"cuda_graphs: torch has no fused {type(group.optimizer).__name__} ({name} loss), and others read "
                "their state on the host: choose momentum, adam or adamw, or train without cuda_graphs"
            )


def _explain(error: RuntimeError) -> Exception:
    """What a failed recording is reported as."""
    # Leaving a failed recording raises another error, which says less than the first.
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    if "out of memory" in str(error):
        return BatchTooLargeError(str(error))
    return UserError(
        f"cuda_graphs: an update cannot be recorded ({reason(error)}): most often a model reads from the device or "
        "copies to it in its forward pass; train without cuda_graphs"
    )


def _restore_group(group: dict[str, Any], values: dict[str, Any]) -> None:
    group.clear()
    group.update(values)
