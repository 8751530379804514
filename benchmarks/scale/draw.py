"""Draws the model of docs/scaling.md for 8 to 1,024 GPUs: `python -m benchmarks.scale.draw docs/scaling.png`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from benchmarks.scale.model import step_seconds

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
# Assumed, not measured: a GPU's FLOP/s in training, a link between hosts, one hop, launches and optimisers.
FLOPS, BANDWIDTH, HOP, FIXED = 150e12, 25_000.0, 10e-6, 5e-3
# A host's share for each GPU, when images only stream: cores, images/s that a core decodes and crops.
CORES, DECODED = 16, 150.0


@dataclass(frozen=True)
class Job:
    """What is trained: GFLOP of one image's forward passes, MB of gradients, images of a batch."""

    title: str
    gflop: float
    megabytes: float
    batch: int
    each: bool
    """The batch is that of each GPU, else that of all together."""


JOBS = (
    Job("ResNet-18 + 34, 224 px, 256 images a GPU", 10.9, 134.0, 256, each=True),
    Job("ResNet-18 + 34, 224 px, 4,096 images in all", 10.9, 134.0, 4096, each=False),
    Job("ResNet-32 twice, 32 px, 128 images in all", 0.28, 3.8, 128, each=False),
)


def rate(job: Job, gpus: int) -> float:
    """Images/s of so many GPUs. Forward costs 1, each backward pass 2."""
    images = job.batch * (gpus if job.each else 1)
    unit = images * job.gflop * 1e9 / FLOPS
    seconds = step_seconds(
        gpus,
        forward_and_first=3 * unit,
        second=2 * unit,
        fixed=FIXED,
        megabytes=job.megabytes,
        bandwidth=BANDWIDTH,
        wait=HOP,
    )
    return images / seconds


def figure() -> Figure:
    """Images/s by number of GPUs, and what hosts can stream to them."""
    drawn = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawn.subplots()
    for job in JOBS:
        axes.plot(GPUS, [rate(job, gpus) for gpus in GPUS], marker="o", label=job.title)
    axes.plot(GPUS, [gpus * CORES * DECODED for gpus in GPUS], "k--", label="streamed JPEGs that the hosts can decode")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS])
    axes.set_xlabel("GPUs")
    axes.set_ylabel("images/s (a model, not a measurement)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    matplotlib.use("agg")
    figure().savefig(sys.argv[1], dpi=110)
    for job in JOBS:
        print(
            job.title,
            [round(rate(job, gpus)) for gpus in GPUS],
            [round(rate(job, g) / g / (rate(job, 8) / 8), 2) for g in GPUS],
        )
