"""A launched training in which one process alone gets SIGTERM. Arguments: a folder, the rank of that process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from accelerate import Accelerator

from feature_gan_kd import Interrupted
from tests.helpers.runs import at_forward, build

CHANGES = {"checkpoint_every_steps": None, "epochs": 2, "sync_batchnorm": True}


def main() -> None:
    """Trains undisturbed, then until the signal, then the rest; writes after which step each process stopped."""
    folder, told = Path(sys.argv[1]), int(sys.argv[2])
    rank = Accelerator().process_index
    build(**CHANGES).fit(output_dir=folder / "undisturbed")
    distiller = build(**CHANGES)
    if rank == told:
        at_forward(distiller.models[0], 6, lambda: os.kill(os.getpid(), signal.SIGTERM), training=True)
    before = signal.getsignal(signal.SIGTERM)
    try:
        distiller.fit(output_dir=folder / "run")
    except Interrupted as stop:
        (folder / f"stopped-{rank}").write_text(str(stop))
    assert signal.getsignal(signal.SIGTERM) is before
    build(**CHANGES).fit(output_dir=folder / "run", resume=True)


if __name__ == "__main__":
    main()
