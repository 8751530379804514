"""SIGTERM and Ctrl-C while training: heard at any moment, obeyed between two batches, by all processes at the same."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed

from feature_gan_kd.distributed.collectives import explain_lost_process, world_size
from feature_gan_kd.utils.errors import Interrupted


class Stop:
    """Hears SIGINT and SIGTERM while it is entered; the handlers of before are put back afterwards.

    The first signal is remembered. A SIGINT that follows raises KeyboardInterrupt at once; a SIGTERM that follows
    changes nothing. Outside the main thread Python hears no signals, and one that the program ignores (as under
    nohup) stays ignored.

    Several processes agree on a group of their own over the host, so no device is waited for: what each has heard
    is exchanged behind one batch and read after the next. All stop after the same batch, though the signal may have
    reached one of them alone.

    Attributes:
        heard: number of the first signal that this process heard, or 0.
    """

    def __init__(self) -> None:
        self.heard = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._exchange: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> Stop:
        if world_size() > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None is a handler of another language's, which Python could not put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        # After an error the other processes may be gone: nothing more is waited for.
        if self._group is not None and (error is None or isinstance(error, Interrupted)):
            if self._exchange is not None:
                self._exchange[0].wait()
            torch.distributed.destroy_process_group(self._group)

    def check(self) -> None:
        """To be called by every process after every batch.

        Raises:
            Interrupted: where a signal asks all processes to stop here.
        """
        number = self.heard if self._group is None else self._agreed()
        if number:
            raise Interrupted(number)

    def _agreed(self) -> int:
        """What any process had heard one batch ago."""
        if self._exchange is not None:
            work, flag = self._exchange
            with explain_lost_process():
                work.wait()
            self._exchange = None
            if flag.item():
                return int(flag)
        flag = torch.tensor(self.heard, device="cpu")
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._exchange = work, flag
        return 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.heard = self.heard or number
