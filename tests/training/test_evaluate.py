from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_gan_kd import UserError
from feature_gan_kd.training.evaluate import Processes, evaluate
from feature_gan_kd.training.scores import Evaluation


class Fixed(nn.Module):
    """Logits that stand in the image itself, times a factor; counts the images it sees."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor)
        self.dropout = nn.Dropout(0.9)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(len(images))
        return self.dropout(images.flatten(1) * self.factor)


def images(count: int = 23, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, classes, 1, 1, generator=generator),
        torch.randint(classes, (count,), generator=generator),
    )


def split(sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    pictures, labels = images(sum(sizes))
    return zip(pictures.split(sizes), labels.split(sizes), strict=True)


def models() -> list[Fixed]:
    return [Fixed(torch.tensor([1.0, 1, 1, 1])), Fixed(torch.tensor([3.0, -1, 0.5, 2]))]


def evaluated(
    team: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]], classes: int = 4, **options: Any
) -> Evaluation:
    """One team, without others beside it."""
    (result,) = evaluate([team], batches, classes, **options)
    return result


@pytest.mark.parametrize("sizes", [[23], [10, 10, 3], [1] * 23, [1, 22], [22, 1], [7, 0, 16]])
def test_every_image_counts_once_whatever_the_batches(sizes: list[int]) -> None:
    pictures, labels = images()
    pair = models()
    result = evaluated(pair, split(sizes))
    logits = [(pictures.flatten(1) * model.factor).detach() for model in pair]
    for k, one in enumerate(logits):
        assert result.models[k].accuracy == pytest.approx(100 * (one.argmax(1) == labels).double().mean().item())
        assert result.models[k].cross_entropy == pytest.approx(F.cross_entropy(one.double(), labels).item(), rel=1e-6)
        assert pair[k].seen == [size for size in sizes if size]  # models in general fail on an empty batch
    together = (logits[0] + logits[1]).argmax(1)
    assert result.ensemble.accuracy == pytest.approx(100 * (together == labels).double().mean().item())
    assert result.images == 23


def test_the_ensemble_is_the_mean_of_logits_not_a_vote() -> None:
    """Two models are barely for class 0 and one is sure of class 1: only the mean of the logits says 1."""
    weak, sure = torch.tensor([0.2, 0.1]), torch.tensor([-5.0, 5])
    batch = (torch.ones(1, 2, 1, 1), torch.tensor([1]))
    result = evaluated([Fixed(weak), Fixed(weak.clone()), Fixed(sure)], [batch], classes=2)
    assert [one.accuracy for one in result.models] == [0, 0, 100]
    assert result.ensemble.accuracy == 100


def test_modes_are_restored_module_by_module() -> None:
    pair = models()
    pair[0].train()
    pair[0].dropout.eval()
    pair[1].eval()
    evaluated(pair, split([5]))
    assert (pair[0].training, pair[0].dropout.training) == (True, False)
    assert (pair[1].training, pair[1].dropout.training) == (False, False)


def test_modes_are_restored_after_an_error() -> None:
    pair = models()
    with pytest.raises(RuntimeError):
        evaluated(pair, [(torch.ones(2, 3, 1, 1), torch.zeros(2, dtype=torch.int64))])
    assert all(module.training for model in pair for module in model.modules())


def test_sums_not_means_are_added_over_processes() -> None:
    """Two processes with shares of 20 and 3 images: the figures are those of all 23."""
    shares: list[list[Tensor]] = []
    parts = list(split([20, 3]))
    for part in parts:
        own: list[Tensor] = []
        evaluated(models(), [part], processes=Processes(lambda sums, own=own: own.append(sums) or sums))
        shares.append(own)
    others = iter(shares[1])
    both = evaluated(models(), [parts[0]], processes=Processes(lambda sums: sums + next(others)))
    alone = evaluated(models(), split([23]))
    assert both.images == alone.images == 23
    assert both.class_images == alone.class_images
    for one, whole in zip([*both.models, both.ensemble], [*alone.models, alone.ensemble], strict=True):
        assert one.accuracy == pytest.approx(whole.accuracy)
        assert one.cross_entropy == pytest.approx(whole.cross_entropy)


def test_losses_are_taken_in_full_precision_under_autocast() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    pictures, labels = images()
    seen = []
    linear.register_forward_hook(lambda module, args, output: seen.append(output))
    result = evaluated([linear], [(pictures, labels)], autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert seen[0].dtype is torch.bfloat16
    expected = F.cross_entropy(seen[0].double(), labels).item()
    assert result.models[0].cross_entropy == pytest.approx(expected, rel=1e-6)


def test_without_an_image() -> None:
    with pytest.raises(UserError, match="it holds no images"):
        evaluated(models(), [])


def test_what_is_no_classifier() -> None:
    with pytest.raises(UserError, match=r"model 1: its output is \(2, 4, 1, 1\), expected logits"):
        evaluated([nn.Flatten(), nn.Identity()], [(torch.ones(2, 4, 1, 1), torch.zeros(2, dtype=torch.int64))])


def test_the_context_is_entered_for_every_batch() -> None:
    entered = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        entered.append(torch.is_inference_mode_enabled())
        yield

    evaluated(models(), split([5, 5, 2]), autocast=context)
    assert entered == [True] * 3
