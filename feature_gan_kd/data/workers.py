"""How many processes decode images where the user does not say."""

from __future__ import annotations

import multiprocessing
import os

MOST_WORKERS = 8
"""More hardly decode faster than a model trains, and each takes memory."""


def automatic_workers() -> int:
    """Returns the number of cores that this process may use, divided among the processes of this host; at most 8.

    It is 0 where new processes do not start as a copy of this one, as on macOS and Windows: scripts must be written for
    that, and transforms of the user's own must be such that they can be sent.
    """
    if (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) != "fork":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores // _processes_of_host(), MOST_WORKERS)


def _processes_of_host() -> int:
    # Here, since it takes a second, and reading one image needs none of it.
    from accelerate.utils import get_int_from_env

    return max(1, int(get_int_from_env(["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"], 1)))
