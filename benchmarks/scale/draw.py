"""Draws the model of docs/scaling.md for 8 to 1,024 GPUs: `python -m benchmarks.scale.draw docs/scaling.png`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from benchmarks.scale.model import step_seconds

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
# Assumed, not measured: a GPU's FLOP/s in training, MB/s between hosts, seconds of a hop, of launches and optimisers.
FLOPS, BANDWIDTH, HOP, FIXED = 150e12, 25_000.0, 10e-6, 5e-3
# Of a host, for each GPU: cores, and the images/s that one core decodes and crops when images are streamed.
CORES, DECODED = 16, 150.0


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        title: in words.
        gflop: of the forward passes of one image.
        megabytes: of the gradients.
        batch: number of images in an update.
        is_per_gpu: whether `batch` is that of each GPU, not that of all together.
    """

    title: str
    gflop: float
    megabytes: float
    batch: int
    is_per_gpu: bool


JOBS = (
    Job("ResNet-18 + 34, 224 px, 256 images a GPU", 10.9, 134.0, 256, is_per_gpu=True),
    Job("ResNet-18 + 34, 224 px, 4,096 images in all", 10.9, 134.0, 4096, is_per_gpu=False),
    Job("ResNet-32 twice, 32 px, 128 images in all", 0.28, 3.8, 128, is_per_gpu=False),
)


def images_per_second(job: Job, gpus: int) -> float:
    """Predicts the images/s of several GPUs; a backward pass costs twice a forward pass."""
    images = job.batch * (gpus if job.is_per_gpu else 1)
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
    """Draws images/s by number of GPUs, and the images/s that hosts can stream to them."""
    drawn = Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawn.subplots()
    for job in JOBS:
        axes.plot(GPUS, [images_per_second(job, gpus) for gpus in GPUS], marker="o", label=job.title)
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
        rates = [images_per_second(job, gpus) for gpus in GPUS]
        efficiency = [rate / gpus / (rates[0] / GPUS[0]) for rate, gpus in zip(rates, GPUS, strict=True)]
        print(job.title, [round(rate) for rate in rates], [round(one, 2) for one in efficiency])
