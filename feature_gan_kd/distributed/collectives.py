"""What several processes share: sums of gradients, averages of buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from feature_gan_kd.utils.errors import UserError


def world_size() -> int:
    """The number of processes that train together."""
    return torch.distributed.get_world_size() if _several() else 1


def rank() -> int:
    """This process's number among them."""
    return torch.distributed.get_rank() if _several() else 0


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def all_reduce_sum(value: Tensor) -> Tensor:
    """A tensor of any shape added up over all processes, in place.

    Raises:
        UserError: where another process is gone.
    """
    if world_size() > 1:
        with explain_lost_process():
            torch.distributed.all_reduce(value)
    return value


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Around an exchange between processes: where another one is gone, the error says so in one line.

    Raises:
        UserError: where the exchange fails.
    """
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UserError(
            f"processes: another of the {world_size()} processes ended or cannot be reached ({reason}): see what "
            "it said, then launch the run again with --resume"
        ) from error


def microbatches(images: int, parts: int, device: torch.device) -> list[slice]:
    """Where this process's images of each part of a batch stand among its own.

    A part is every so-many-th image of the whole batch, counted on through the processes: the same images whatever
    the number of processes. All processes have as many parts, of which some may be empty.

    Args:
        images: in this process's share of the batch.
        parts: wanted; a batch of fewer images has only as many.
        device: where the processes exchange the sizes of their shares, which waits for it.

    Raises:
        UserError: where another process is gone.
    """
    if parts == 1:
        return [slice(None)]
    shares = [images]
    if world_size() > 1:
        sizes = torch.zeros(world_size(), dtype=torch.int64, device=device)
        sizes[rank()] = images
        shares = all_reduce_sum(sizes).tolist()
    before, parts = sum(shares[: rank()]), min(parts, sum(shares))
    return [slice((part - before) % parts, None, parts) for part in range(parts)]


def all_reduce_async(gradients: Sequence[Tensor | None]) -> Callable[[], None]:
    """Begins to add gradients of any shape up over all processes, as one flat bucket per type, without waiting.

    The project reduces by itself because `DistributedDataParallel` is silent and wrong about a second gradient of
    one forward pass: it leaves it unequal across processes.

    Returns:
        Waits, and writes the sums into the gradients.

    Raises:
        UserError: there and here, where another process is gone.
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


def average_buffers(models: Iterable[nn.Module]) -> None:
    """Makes floating-point buffers (batch normalisation's running statistics) equal: their mean over processes.

    Raises:
        UserError: where another process is gone.
    """
    if world_size() == 1:
        return
    for model in models:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                all_reduce_sum(buffer).div_(world_size())


def broadcast_parameters(modules: Iterable[nn.Module]) -> None:
    """Gives every process the first one's parameters and buffers.

    Raises:
        UserError: where another process is gone.
    """
    if world_size() == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            with explain_lost_process():
                torch.distributed.broadcast(tensor.data, src=0)


def all_ranks_equal(values: Tensor) -> list[bool]:
    """Which of the whole numbers (n,) are the same on every process.

    Raises:
        UserError: where another process is gone.
    """
    # The largest of the complements is the complement of the smallest.
    both = torch.stack([values, ~values])
    if world_size() > 1:
        with explain_lost_process():
            torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    same: list[bool] = (both[0] == ~both[1]).tolist()
    return same


def check_ranks_equal(modules: Mapping[str, nn.Module]) -> None:
    """Compares the parameters of all processes by a checksum each: one small all-reduce.

    Args:
        modules: by the name that an error gives them; none is empty.

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
    """The sum of the parameters' bits, read as whole numbers; it wraps round, so that no order matters."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [parameter.detach().view(bits[parameter.element_size()]).sum() for parameter in module.parameters()]
    return torch.stack(sums).sum()


def on_main_process(write: Callable[[], object]) -> None:
    """Has the first process write; where it cannot, all processes end with its error and none waits for it.

    Raises:
        UserError: on every process, where `write` raised it on the first.
    """
    if world_size() == 1:
        write()
        return
    error: list[str | None] = [None]
    if rank() == 0:
        try:
            write()
        except UserError as explain_parse_error:
            error = [str(explain_parse_error)]
    with explain_lost_process():
        torch.distributed.broadcast_object_list(error)
    if error[0] is not None:
        raise UserError(error[0])
