"""Gradients belong to their parameters: those that are missing, and those that join later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from feature_gan_kd import OnlineAdversarialDistiller, UserError
from feature_gan_kd.optim.gradients import OptimizerGroup, backward


class LateBlock(nn.Module):
    """A block joins in the second forward pass in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.late = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 2)."""
        x = self.first(images)
        self.passes += self.training
        if self.passes > 1:
            x = x + self.late(x)
        logits: Tensor = self.head(x.relu().mean((2, 3)))
        return logits


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 1, 0, 1])


def built(**settings: object) -> OnlineAdversarialDistiller:
    torch.manual_seed(0)
    return OnlineAdversarialDistiller([LateBlock(), LateBlock()], image_size=16, lr=0.01, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_parameter_that_joins_later_is_trained_from_then_on(optimizer: str) -> None:
    distiller = built(optimizer=optimizer, weight_decay=0.0, method="logit")
    late = distiller.models[0].get_submodule("late").weight
    assert isinstance(late, Tensor)
    before = late.detach().clone()
    distiller.training_step(*batch())
    assert torch.equal(late, before)
    distiller.step.gradients(*batch())
    group = distiller.step.logit_groups[0]
    index = next(i for i, p in enumerate(group.parameters) if p is late)
    gradient = group.gradients[index]
    assert gradient is not None
    expected = 0.01 * gradient if optimizer == "momentum" else 0.01 * gradient / (gradient.abs() + 1e-8)
    distiller.training_step(*batch())
    torch.testing.assert_close(late, before - expected, rtol=1e-4, atol=1e-6)


def test_freezing_and_unfreezing_between_updates_is_refused() -> None:
    distiller = built()
    distiller.training_step(*batch())
    head = distiller.models[1].get_submodule("head")
    head.requires_grad_(False)
    with pytest.raises(UserError, match=r"^model 1 \(LateBlock\): head.weight: changed requires_grad after"):
        distiller.training_step(*batch())
    head.requires_grad_(True)
    distiller.training_step(*batch())


def test_two_losses_of_one_parameter_stay_apart_and_what_is_outside_stays_fixed() -> None:
    weight, other = nn.Parameter(torch.tensor([2.0, 3.0])), nn.Parameter(torch.tensor([5.0, 7.0]))
    groups = [OptimizerGroup(name, [weight], torch.optim.SGD([weight]), ["w"]) for name in ("logit", "feature")]
    product = weight * other
    for _ in range(2):
        backward(product.sum(), groups[:1], retain_graph=True, reduce=True)
    backward(product.square().sum(), groups[1:], reduce=True)
    assert groups[0].gradients[0] is not None
    assert groups[1].gradients[0] is not None
    assert groups[0].gradients[0].tolist() == [10.0, 14.0]
    assert groups[1].gradients[0].tolist() == [100.0, 294.0]
    assert weight.grad is None
    assert other.grad is None
