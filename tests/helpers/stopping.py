"""A training in several processes, one of which alone is told to stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from feature_gan_kd import Interrupted
from feature_gan_kd.distributed.collectives import rank
from tests.helpers.runs import at_forward, build

CHANGES = {"checkpoint_every_steps": None, "epochs": 2, "sync_batchnorm": True}


def train(folder: Path, told: int) -> None:
    """Trains undisturbed, then told to stop, then the rest of it; writes down after which step each process stopped.

    Args:
        folder: gets `undisturbed`, `run` and `stopped-RANK`.
        told: rank of the process that gets SIGTERM.
    """
    build(**CHANGES).fit(output_dir=folder / "undisturbed")
    distiller = build(**CHANGES)
    if rank() == told:
        at_forward(distiller.models[0], 6, lambda: os.kill(os.getpid(), signal.SIGTERM), training=True)
    before = signal.getsignal(signal.SIGTERM)
    try:
        distiller.fit(output_dir=folder / "run")
    except Interrupted as stop:
        (folder / f"stopped-{rank()}").write_text(str(stop))
    assert signal.getsignal(signal.SIGTERM) is before
    build(**CHANGES).fit(output_dir=folder / "run", resume=True)
