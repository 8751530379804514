"""Processes that train together, started as a user starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def launch(
    processes: int,
    *command: str,
    machines: int = 1,
    status: int = 0,
    env: Mapping[str, str] | None = None,
    at: Path | None = None,
) -> tuple[str, str]:
    """Runs a module under `accelerate launch` on gloo, once for each of several machines, all of them this one.

    Args:
        processes: how many, on all machines together.
        *command: `-m module`, or a file, and its arguments, after options of the launcher's own.
        machines: how many.
        status: that every launcher must end with.
        env: added to the environment.
        at: the folder to run in [the project's].

    Returns:
        What they printed on stdout and on stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launchers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), "--multi_gpu"),
                *("--num_machines", str(machines), "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"),
                *("--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"),
                *command,
            ],
            env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", **(env or {})},
            cwd=at or Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(machines)
    ]
    try:
        said = [launcher.communicate(timeout=200) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()  # ends its processes, too
            launcher.communicate()
    out, err = ("".join(texts) for texts in zip(*said, strict=True))
    assert [launcher.returncode for launcher in launchers] == [status] * machines, out + err
    return out, err
