"""One process of a launched training: whole updates on fixed batches, then every tensor into a file."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller


class GroupNormNetwork(nn.Module):
    """A small network whose statistics do not depend on the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width), nn.GELU(), nn.Conv2d(width, width, 3, stride=2)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 5)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def build(**settings: object) -> OnlineAdversarialDistiller:
    """Three networks in a cycle, in float64, two of one width and one of another."""
    torch.manual_seed(0)
    networks = [GroupNormNetwork(width).double() for width in (4, 6, 4)]
    return OnlineAdversarialDistiller(networks, image_size=8, lr=0.05, adversarial_lr=1e-3, **settings)  # type: ignore[arg-type]


def batches() -> list[tuple[Tensor, Tensor]]:
    """Global batches; the last is uneven."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator), torch.arange(n) % 5) for n in (12, 12, 7)
    ]


def tensors_of(distiller: OnlineAdversarialDistiller) -> dict[str, Tensor]:
    """Every parameter and buffer of networks, transfers and discriminators."""
    modules = {f"network{k}": module for k, module in enumerate(distiller.models)}
    modules |= {f"link{i}": link for i, link in enumerate(distiller.links)}
    return {
        f"{name}.{key}": value.clone(memory_format=torch.contiguous_format)
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def train(distiller: OnlineAdversarialDistiller) -> dict[str, Tensor]:
    """Trains on this process's share of every batch."""
    rank, world = distiller.accelerator.process_index, distiller.accelerator.num_processes
    for images, labels in batches():
        share = slice(len(images) * rank // world, len(images) * (rank + 1) // world)
        distiller.training_step(images[share], labels[share])
    return tensors_of(distiller)


def main() -> None:
    """Arguments: a folder, and the accumulation steps."""
    folder, accumulation = Path(sys.argv[1]), int(sys.argv[2])
    distiller = build(accumulation_steps=accumulation)
    save_file(train(distiller), folder / f"{distiller.accelerator.process_index}.safetensors")


if __name__ == "__main__":
    main()
