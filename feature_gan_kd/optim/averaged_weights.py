"""Running means of the models' weights, which often classify better than the weights of the last update."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.utils.errors import UserError


class AveragedWeights(AveragedModel):
    """The exponential running mean of the weights of one model, and of the statistics of its batch normalisation.

    The first mean is the weights after the first update. Early means forget faster: after n updates the mean keeps
    min(decay, 1 - (1 + n)^(-2/3)) of itself, as timm's `ModelEmaV3` does with warm-up, so that short runs gain too.

    Args:
        model: the model, whose taps and adapter of the images the mean shares.
        decay: the part of the mean that an update keeps, in (0, 1].

    Raises:
        UserError: for weights of less than 32 bits, whose small steps would be rounded away.
    """

    def __init__(self, model: TappedModel, decay: float) -> None:
        for name, parameter in model.module.named_parameters():
            if parameter.is_floating_point() and parameter.element_size() < 4:
                raise UserError(
                    f"model_ema: {model.name} has weights of {parameter.dtype} ({name}), in which a running mean "
                    "stands still: keep the weights in float32, and choose mixed_precision"
                )
        # A tensor, so that no update waits for the device: 0 in an update that was skipped, else 1.
        kept = torch.ones((), device=next(model.module.parameters()).device)
        super().__init__(model.module, multi_avg_fn=functools.partial(_mix, decay, kept), use_buffers=True)
        self.requires_grad_(False).eval()
        tapped = TappedModel(self.module, model.taps, model.name, model.adapter, classifies=model.classifies).eval()
        # In tuples, since modules would be registered, and their tensors written twice.
        self._live, self._tapped, self._kept = (model.module,), (tapped,), kept

    @property
    def tapped(self) -> TappedModel:
        """A copy of the model that holds the mean, in evaluation mode."""
        return self._tapped[0]

    @property
    def has_begun(self) -> bool:
        """Whether it holds the mean of any update."""
        return bool(self.n_averaged > 0)  # on the host: no wait

    def begin(self) -> None:
        """Before the first update the weights are those of the model, which the user may have changed until then."""
        if not self.has_begun:
            self.module.load_state_dict(self._live[0].state_dict())

    def update(self, skipped: Tensor) -> None:
        """Takes the weights of the model after an update into the mean.

        Args:
            skipped: scalar on the device, 1 where the update changed nothing, which the mean then repeats.
        """
        (live,) = self._live
        like = next(live.parameters())
        if like.dtype != next(self.module.parameters()).dtype:  # the user converted the model
            self.module.to(like.dtype)
        self._kept.copy_(1 - skipped)
        self.update_parameters(live)


def build_averages(
    peers: Sequence[PeerModel], tapped: Sequence[TappedModel], decays: Sequence[float | None], frozen: Sequence[int]
) -> dict[int, AveragedWeights]:
    """The running means of the learners that have one, by their position.

    Args:
        peers: all models.
        tapped: the same, with their taps.
        decays: of each model; None keeps no mean.
        frozen: the models that only teach.

    Raises:
        UserError: as `AveragedWeights`, and for a frozen model that has a decay of its own.
    """
    for k in frozen:
        if peers[k].settings.get("model_ema") is not None:
            raise UserError(f"model_ema: model {k} ({peers[k].name}) is frozen, its weights never change: leave it out")
    return {
        k: AveragedWeights(model, decay)
        for k, (model, decay) in enumerate(zip(tapped, decays, strict=True))
        if decay is not None and k not in frozen
    }


def averaged_sources(
    averages: dict[int, AveragedWeights], sources: Sequence[int], frozen: Sequence[int], tapped: Sequence[TappedModel]
) -> dict[int, TappedModel]:
    """The means that teach in place of the models' last weights (`targets` ema); a frozen source teaches as it is.

    Args:
        averages: by position.
        sources: positions of all models that teach.
        frozen: those that only teach.
        tapped: all models.

    Raises:
        UserError: for a source that learns without a mean.
    """
    learning = sorted({*sources} - {*frozen})
    for k in learning:
        if k not in averages:
            raise UserError(f"targets: {tapped[k].name} has no averaged weights to teach with: give model_ema")
    return {k: averages[k].tapped for k in learning}


@torch.no_grad()
def _mix(decay: float, kept: Tensor, averaged: Sequence[Tensor], live: Sequence[Tensor], updates: Tensor | int) -> None:
    """Moves tensors of one type and device towards others; counters are copied."""
    mean, now = list(averaged), list(live)
    if not mean[0].is_floating_point():
        torch._foreach_copy_(mean, now)
        return
    forgotten = (1 + torch.as_tensor(updates, device=kept.device).double()) ** (-2 / 3)
    rate = kept * forgotten.clamp(min=1 - decay)
    difference = torch._foreach_sub(now, mean)
    torch._foreach_mul_(difference, rate.to(mean[0].dtype))
    torch._foreach_add_(mean, difference)
