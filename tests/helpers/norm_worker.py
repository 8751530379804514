"""Batch normalisations on shares of one batch: what each process finds, into a file of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from feature_gan_kd.data.batches import rank_slice
from feature_gan_kd.distributed.collectives import rank, world_size
from feature_gan_kd.distributed.sync_batchnorm import with_dummy_batch


class Repeated(nn.Module):
    """A norm that a gradient checkpoint runs once more in the backward pass."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """The norm's answer."""
        answer: Tensor = checkpoint(self.norm, x, use_reentrant=False)
        return answer


def norms() -> dict[str, tuple[nn.Module, tuple[int, ...], torch.dtype]]:
    """Modules in training, the shape of one image of theirs, and the type of the images."""
    double = torch.float64
    found = {
        "plain": (nn.BatchNorm2d(3), (3, 4, 4), double),
        "cumulative": (nn.BatchNorm2d(3, momentum=None), (3, 4, 4), double),
        "without affine": (nn.BatchNorm2d(3, affine=False), (3, 4, 4), double),
        "without running statistics": (nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 4), double),
        "with activation": (BatchNormAct2d(3, act_layer=nn.SiLU), (3, 4, 4), double),
        "of vectors": (nn.BatchNorm1d(5), (5,), double),
        "of sequences": (nn.BatchNorm1d(5), (5, 3), double),
        "of volumes": (nn.BatchNorm3d(2), (2, 2, 3, 3), double),
        "repeated": (Repeated(nn.BatchNorm2d(3)), (3, 4, 4), double),
        "in bfloat16": (nn.BatchNorm2d(3), (3, 4, 4), torch.bfloat16),
        "in evaluation": (nn.BatchNorm2d(3).eval(), (3, 4, 4), double),
    }
    for module, _, dtype in found.values():
        module.to(torch.float32 if dtype is torch.bfloat16 else dtype)
    return found


def own_share(name: str, images: int) -> slice:
    """This process's part of a batch; of the sequences the first process has none."""
    if name == "of sequences" and world_size() > 1:
        return slice(0 if rank() == world_size() - 1 else images, images)
    return rank_slice(images, rank(), world_size())


def ask(name: str, images: int = 7) -> dict[str, Tensor]:
    """One norm's answers and gradients for this process's share of a batch, and its buffers after two batches."""
    module, shape, dtype = norms()[name]
    generator = torch.Generator().manual_seed(len(name))
    own = own_share(name, images)
    found: dict[str, Tensor] = {}
    for number in range(2):
        x, direction = torch.randn(2, images, *shape, dtype=torch.float64, generator=generator).to(dtype)
        x = (3 * x + 1)[own].requires_grad_()
        with with_dummy_batch(x, torch.zeros(len(x)), [module], synchronised=True) as (shown, _):
            answer = module(shown)
            weight = direction[own] if len(x) else 0.0
            # A double loss: what is squared depends on the statistics.
            (answer.square() * weight).sum().backward()
        found |= {f"{number} answer": answer.detach()[: len(x)]}
        found |= {f"{number} gradient": torch.zeros_like(x) if x.grad is None else x.grad}
    found |= {f"parameter {key}": value.grad for key, value in module.named_parameters() if value.grad is not None}
    found |= {f"buffer {key}": value for key, value in module.named_buffers()}
    return found


def check_restored() -> None:
    """The modules are as they were, also after an error inside, and where `forward` had been overridden before."""
    norm, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    other.forward = own = other.forward  # type: ignore[method-assign]
    for _ in range(2):
        try:
            with with_dummy_batch(torch.zeros(0, 3, 2, 2), torch.zeros(0), [norm, other], synchronised=True):
                assert "forward" in norm.__dict__
                assert other.forward is not own
                norm(torch.zeros(2, 4, 2, 2))
        except RuntimeError:
            pass
        else:
            raise AssertionError("a map of other channels was taken")
    assert "forward" not in norm.__dict__
    assert other.__dict__["forward"] is own
    # What follows is normalised by this process's own statistics again.
    constant = torch.full((2, 3, 2, 2), 1.0 + rank())
    torch.testing.assert_close(norm(constant), torch.zeros_like(constant), atol=1e-3, rtol=0)


def save(folder: Path) -> None:
    """Writes what this process found."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {f"{name}: {key}": value.contiguous() for name in norms() for key, value in ask(name).items()}
    check_restored()
    save_file(found, folder / f"{rank()}.safetensors")
