"""Stops a training on Ctrl-C or SIGTERM: between two batches, and after the same batch on all processes."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed

from feature_gan_kd.distributed.collectives import explain_lost_process, world_size
from feature_gan_kd.utils.errors import Interrupted


class StopSignals:
    """Handles SIGINT and SIGTERM inside a `with` block, and restores the earlier handlers after it.

    The first signal is remembered until `check`. A second SIGINT raises KeyboardInterrupt at once; a second SIGTERM
    changes nothing. Signals that the program ignores (as under nohup) stay ignored. Python handles signals in the main
    thread only, so the block handles none in another thread.

    A signal may reach one of several processes alone. So all processes exchange what they received behind each batch,
    and read the answer after the next: all stop after the same batch. The exchange runs on the host, in a process group
    of its own, since one on the GPU would wait for the device.

    Attributes:
        received: number of the first signal that this process received, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._earlier_handlers: dict[int, Any] = {}
        self._group: Any = None
        self._exchange: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> StopSignals:
        if world_size() > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None is a handler that was not set from Python, which Python could not restore.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._earlier_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        self._earlier_handlers.clear()
        # After another error the other processes may be gone, and waiting for them would never end.
        if self._group is not None and (error is None or isinstance(error, Interrupted)):
            if self._exchange is not None:
                self._exchange[0].wait()
            torch.distributed.destroy_process_group(self._group)

    def check(self) -> None:
        """Stops the training if a signal was received; every process must call it after every batch.

        Raises:
            Interrupted: on all processes after the same batch.
        """
        number = self.received if self._group is None else self._exchange_received()
        if number:
            raise Interrupted(number)

    def _exchange_received(self) -> int:
        """What any process had received one batch ago; begins the next exchange where that is nothing."""
        if self._exchange is not None:
            work, flag = self._exchange
            with explain_lost_process():
                work.wait()
            self._exchange = None
            if flag.item():
                return int(flag)
        flag = torch.tensor(self.received, device="cpu")
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._exchange = work, flag
        return 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
