"""Long runs do not leak: memory and open files stay flat over 2,000 updates with evaluations and checkpoints."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest

from feature_gan_kd import Callback
from tests.helpers.runs import build

WARM_UP, STEPS = 500, 2000
MOST_GROWTH = 8 * 2**20  # bytes; the allocator's own breathing is about half of it


class Meter(Callback):
    """Resident memory and open files, every 100 updates."""

    def __init__(self) -> None:
        self.process = psutil.Process(os.getpid())
        self.seen: dict[int, tuple[int, int]] = {}

    def on_step(self, step: int) -> None:
        """Reads them."""
        if step % 100 == 0:
            gc.collect()
            self.seen[step] = (self.process.memory_info().rss, self.process.num_fds())


@pytest.mark.slow
def test_two_thousand_updates_with_evaluations_and_checkpoints(tmp_path: Path) -> None:
    meter = Meter()
    build(epochs=STEPS // 5, checkpoint_every_steps=None, keep_checkpoints=2).fit(
        output_dir=tmp_path / "run", callbacks=[meter]
    )
    memory = [rss for step, (rss, _) in meter.seen.items() if step >= WARM_UP]
    files = [count for step, (_, count) in meter.seen.items() if step >= WARM_UP]
    half = len(memory) // 2
    growth = sum(memory[half:]) / len(memory[half:]) - sum(memory[:half]) / half
    print(f"memory {[round(one / 2**20, 1) for one in memory]} MiB, growth {growth / 2**20:.2f} MiB, files {files}")
    assert max(meter.seen) == STEPS
    assert growth < MOST_GROWTH
    assert max(files) == min(files)
