"""What processes exchange: sums of gradients, means of buffers, checks that all ranks hold the same weights.

`DistributedDataParallel` is not used. An update takes several gradients of one forward pass, and DDP reduces only the
first of them: it leaves the second unequal across processes, without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from feature_gan_kd.utils.errors import UserError

Made = TypeVar("Made")


def world_size() -> int:
    """Returns the number of processes that train together."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Returns the number of this process, in [0, world size)."""
    return torch.distributed.get_rank() if _is_distributed() else 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process exchanges nothing and counts as the only one: for what others need not take part in."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


_is_alone = False


def _is_distributed() -> bool:
    return not _is_alone and torch.distributed.is_available() and torch.distributed.is_initialized()


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sums a tensor of any shape over all processes, in place.

    Raises:
        UserError: if another process is gone.
    """
    if world_size() > 1:
        with explain_lost_process():
            torch.distributed.all_reduce(value)
    return value


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turns a failed exchange inside the block into one line that names the cause, a lost process.

    Raises:
        UserError: if the exchange fails.
    """
    try:
        yield
    except RuntimeError as error:
        cause = " ".join(str(error).split()).split(". ")[0]
        raise UserError(
            f"processes: another of the {world_size()} processes ended or cannot be reached ({cause}): see what "
            "it printed, then launch the run again with --resume"
        ) from error


def all_reduce_async(gradients: Sequence[Tensor | None]) -> Callable[[], None]:
    """Starts to sum gradients of any shape over all processes, without waiting for the result.

    Copies the gradients of each type into one flat bucket: one large all-reduce costs far less than hundreds of small
    ones, whose time is mostly latency.

    Args:
        gradients: in the same order on all ranks; None entries are left out and must be None on all ranks.

    Returns:
        A function that waits for the sums and writes them into the gradients.

    Raises:
        UserError: here or in the returned function, if another process is gone.
    """
    present = [gradient for gradient in gradients if gradient is not None] if world_size() > 1 else []
    buckets = []
    for dtype in sorted({gradient.dtype for gradient in present}, key=str):
        bucket = [gradient for gradient in present if gradient.dtype is dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        with explain_lost_process():
            buckets.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))

    def finish() -> None:
        for bucket, flat, work in buckets:
            with explain_lost_process():
                work.wait()
            pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, summed in zip(bucket, pieces, strict=True):
                gradient.copy_(summed.view(gradient.shape))

    return finish


def any_rank_async(flags: Sequence[bool]) -> Callable[[], list[bool]]:
    """Starts to ask which of the flags are set on any process; the exchange is on the host, so no device is waited for.

    Returns:
        A function that waits for the answer, the same on every process.

    Raises:
        UserError: there and here, where another process is gone.
    """
    if world_size() == 1:
        return lambda: list(flags)
    shared = torch.tensor(flags, dtype=torch.uint8, device="cpu")
    with explain_lost_process():
        work = torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=_host_group(), async_op=True)

    def finish() -> list[bool]:
        with explain_lost_process():
            work.wait()
        return [bool(flag) for flag in shared.tolist()]

    return finish


def _host_group() -> Any:
    """The group of all processes that exchanges tensors on the host; made once for each default group."""
    default = torch.distributed.group.WORLD
    if torch.distributed.get_backend() == "gloo":
        return default
    if _host_groups.get("default") is not default:
        _host_groups.update(default=default, gloo=torch.distributed.new_group(backend="gloo"))
    return _host_groups["gloo"]


_host_groups: dict[str, Any] = {}


def average_buffers(models: Iterable[nn.Module]) -> None:
    """Replaces floating-point buffers (batch normalisation's running statistics) by their mean over all processes.

    Raises:
        UserError: if another process is gone.
    """
    if world_size() == 1:
        return
    for model in models:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                all_reduce_sum(buffer).div_(world_size())


def broadcast_parameters(modules: Iterable[nn.Module]) -> None:
    """Copies the parameters and buffers of rank 0 to every process.

    Raises:
        UserError: if another process is gone.
    """
    if world_size() == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            with explain_lost_process():
                torch.distributed.broadcast(tensor.data, src=0)


def all_ranks_equal(values: Tensor) -> list[bool]:
    """Tells which of the whole numbers (n,) are the same on every process.

    Raises:
        UserError: if another process is gone.
    """
    # One all-reduce finds maximum and minimum: the largest of the complements is the complement of the smallest.
    both = torch.stack([values, ~values])
    if world_size() > 1:
        with explain_lost_process():
            torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    same: list[bool] = (both[0] == ~both[1]).tolist()
    return same


def check_ranks_equal(modules: Mapping[str, nn.Module]) -> None:
    """Compares the parameters of all processes by a checksum per module, in one small all-reduce.

    Args:
        modules: by the name that an error gives them; each has parameters.

    Raises:
        UserError: on every process, naming the first module whose parameters are not the same bits everywhere.
    """
    if world_size() == 1:
        return
    same = all_ranks_equal(torch.stack([_checksum(module) for module in modules.values()]))
    unequal = [name for name, equal in zip(modules, same, strict=True) if not equal]
    if unequal:
        raise UserError(
            f"processes: the weights of {unequal[0]} are not the same on all {world_size()} processes after this "
            "step: the run ended here; go on from its last checkpoint"
        )


def _checksum(module: nn.Module) -> Tensor:
    """Sums the bits of the parameters, read as whole numbers: unlike a sum of floats it shows every changed bit."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [parameter.detach().view(bits[parameter.element_size()]).sum() for parameter in module.parameters()]
    return torch.stack(sums).sum()


def on_main_process(write: Callable[[], object]) -> None:
    """Calls `write` on the main process (rank 0) alone, and passes its error on to all.

    Without that, the other processes would wait in their next exchange for one that has ended.

    Raises:
        UserError: on every process, if `write` raised it on the main process.
    """
    if world_size() == 1:
        write()
        return
    error: list[str | None] = [None]
    if rank() == 0:
        try:
            write()
        except UserError as failure:
            error = [str(failure)]
    with explain_lost_process():
        torch.distributed.broadcast_object_list(error)
    if error[0] is not None:
        raise UserError(error[0])


def gather(make: Callable[[], Made]) -> list[Made]:
    """Calls `make` on every process, and gives the results to all, in the order of the processes.

    Without the exchange of errors, the other processes would wait for one that has ended.

    Args:
        make: gives what can be pickled; tensors on the CPU.

    Raises:
        UserError: on every process, the first that `make` raised on any.
    """
    if world_size() == 1:
        return [make()]
    own: tuple[str | None, Made | None]
    try:
        own = None, make()
    except UserError as failure:
        own = str(failure), None
    gathered: list[Any] = [None] * world_size()
    with explain_lost_process():
        torch.distributed.all_gather_object(gathered, own)
    for error, _ in gathered:
        if error is not None:
            raise UserError(error)
    return [made for _, made in gathered]
