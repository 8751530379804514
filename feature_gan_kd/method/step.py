"""The update of the paper: one forward per model, three kinds of gradient, three optimisers, in this order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from feature_gan_kd.config.methods import LossWeights
from feature_gan_kd.distributed.collectives import all_reduce_async, all_reduce_sum, microbatches
from feature_gan_kd.distributed.sync_batchnorm import with_dummy_batch
from feature_gan_kd.method import losses
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.topology import Edge
from feature_gan_kd.models.taps import TappedModel
from feature_gan_kd.optim.gradient_stats import GradientStats
from feature_gan_kd.optim.nonfinite import BufferSnapshot, Gradients, NonFiniteGuard, step_if_finite

Metrics = dict[str, Tensor]


@dataclass
class OptimizerGroup:
    """One kind of gradient: the parameters that it belongs to, and the optimiser that steps them."""

    parameters: list[nn.Parameter]
    optimizer: Optimizer
    owners: list[str]
    """For each parameter the part that it belongs to, in words: a model, a transfer layer, a discriminator."""


@dataclass
class Forward:
    """What one pass of every model over the same images gave."""

    logits: list[Tensor]
    maps: list[tuple[Tensor, ...]]


class AdversarialStep:
    """One whole update of all models and discriminators (paper, section 3).

    Both gradients of a model, and that of its discriminator, are taken at the same parameters, the ones of the
    forward; then the optimiser of the logit loss steps, then those of the feature loss and the discriminators
    (ours: the paper does not state the order). A discriminator's answer to the learner's map is computed once and
    serves both losses: `torch.autograd.grad` asks for the gradient of each with respect to its own parameters
    alone, so the discriminator is fixed for the learner and the learner for the discriminator.

    Args:
        models: every model, in order.
        edges: who teaches whom.
        frozen: models that only teach: evaluation mode, no gradient.
        links: transfers and discriminators, per edge and tap; needed where the objective compares maps.
        objective: the weights of the losses.
        logit_group: all learners' parameters, with the optimiser of the logit loss.
        feature_group: all extractors' and transfers' parameters with theirs, or None.
        discriminator_group: all discriminators' parameters with theirs, or None.
        adversarial_interval: only every so-many-th update compares maps (ours).
        discriminator_interval: only every so-many-th of those steps the discriminators (ours).
        discriminator_unpaired: discriminators see the source's maps of the images at even positions and the learner's
            of those at odd ones (ours).
        joint_backward: the feature loss is added to the logit loss, in one backward pass; `feature_group` then has
            the transfers alone, or is None (ours).
        grad_accum_steps: parts into which a batch is divided: each holds every so-many-th image.
        clip_grad: largest norm of one model's logit gradient.
        sync_batchnorm: batch normalisation inside the models takes its statistics over all processes.
        autocast: makes the context in which forward passes run.
        diagnosis: of what moves the weights, in some updates [in none].
    """

    def __init__(
        self,
        models: Sequence[TappedModel],
        edges: Sequence[Edge],
        frozen: Collection[int],
        connections: Sequence[Connection],
        loss_weights: LossWeights,
        *,
        logit_group: OptimizerGroup,
        feature_group: OptimizerGroup | None,
        discriminator_group: OptimizerGroup | None,
        adversarial_interval: int = 1,
        discriminator_interval: int = 1,
        discriminator_unpaired: bool = False,
        joint_backward: bool = False,
        grad_accum_steps: int = 1,
        clip_grad: float | None = None,
        sync_batchnorm: bool = False,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        gradient_stats: GradientStats | None = None,
    ) -> None:
        self.models = list(models)
        self.edges = list(edges)
        self.frozen = frozenset(frozen)
        self.connections = list(connections)
        self.loss_weights = loss_weights
        self.learners = [k for k in range(len(models)) if k not in self.frozen]
        self.logit_group = logit_group
        self.feature_group = feature_group
        self.discriminator_group = discriminator_group
        self.adversarial_interval = adversarial_interval
        self.discriminator_interval = discriminator_interval
        self.discriminator_unpaired = discriminator_unpaired
        self.joint_backward = joint_backward
        self.grad_accum_steps = grad_accum_steps
        self.clip_grad = clip_grad
        self.sync_batchnorm = sync_batchnorm
        self.autocast = autocast
        self.gradient_stats = gradient_stats or GradientStats()
        self.faults = NonFiniteGuard()
        self.number = 0  # of updates done

    @property
    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        """The kinds of update that act, by name, in the order in which they step."""
        kinds = {
            "logit": self.logit_group,
            "feature": self.feature_group,
            "discriminator": self.discriminator_group,
        }
        return {name: update for name, update in kinds.items() if update is not None}

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether the next update is one in which maps are compared, and discriminators stepped."""
        acts = self.number % self.adversarial_interval == 0
        return acts, acts and self.number // self.adversarial_interval % self.discriminator_interval == 0

    @property
    def measures(self) -> bool:
        """Whether the next update measures what moves the weights."""
        return self.gradient_stats.due(self.number)

    def __call__(self, images: Tensor, labels: Tensor) -> Metrics:
        """Updates everything by one batch.

        Args:
            images: (batch, channels, height, width), normalised; this process's share of the batch.
            labels: (batch,) class indices, or (batch, classes) probabilities.

        Returns:
            Detached scalars on the device: `cross_entropy/K`, `accuracy/K`, `kl/K`, `l1/K`, `l2/K`,
            `adversarial/K` and `discriminator/K` per learner, `real/S->K` and `fake/S->K` (the mean answers) per
            edge; means over the whole batch, the same on every process. In an update that is measured also those of
            `GradientStats`, and `right/S->K` (the share of right answers). `skipped` is 1 where a loss or a gradient
            was not finite: nothing is changed then, on any process.

        Raises:
            UserError: where a model gives no logits or other maps than it was wired for, or another process is gone.
        """
        self.set_modes()
        before = BufferSnapshot([*(self.models[k].module for k in self.learners), *self.connections])
        # Filled on the device: a copy from the host would wait for it.
        global_batch_size = all_reduce_sum(torch.full((), float(len(images)), device=images.device))
        totals: dict[str, Gradients] = {}
        reductions: list[Callable[[], None]] = []
        metrics: Metrics = {}

        def add(kind: str, values: Gradients) -> None:
            totals[kind] = _add(totals[kind], values) if kind in totals else values
            if last:  # its exchange goes on while the next kind of gradient is computed
                reductions.append(all_reduce_async(totals[kind]))

        parts = microbatches(len(images), self.grad_accum_steps, images.device)
        for number, chosen in enumerate(parts, start=1):
            last = number == len(parts)
            own = images[chosen]
            # What stands in for no images is divided by infinitely many.
            divisor = global_batch_size if len(own) else torch.full_like(global_batch_size, torch.inf)
            with with_dummy_batch(own, labels[chosen], self.models, synchronised=self.sync_batchnorm) as shown:
                part_metrics = self.gradients(*shown, divisor, add)
            for key, value in part_metrics.items():
                share = value * (len(own) / global_batch_size.to(value.dtype))
                metrics[key] = metrics[key] + share if key in metrics else share
        metrics = dict(zip(metrics, all_reduce_sum(torch.stack(list(metrics.values()))), strict=True))
        for finish in reductions:
            finish()
        metrics["skipped"] = self.apply(totals, metrics)
        metrics |= self.gradient_stats.taken()
        before.restore(metrics["skipped"])
        self.number += 1
        return metrics

    def gradients(
        self, images: Tensor, labels: Tensor, global_batch_size: Tensor, add: Callable[[str, Gradients], None]
    ) -> Metrics:
        """The three kinds of gradient of one part of a batch, all at the present parameters.

        Args:
            images: (part, channels, height, width).
            labels: (part,) or (part, classes).
            global_batch_size: number of images in the whole update, of which this part is a share: its losses are
                weighted by that share.
            add: is given each kind of update with one gradient per parameter, as soon as they are computed.

        Returns:
            The metrics.

        Raises:
            UserError: where a model gives no logits or other maps than it was wired for.
        """
        metrics: Metrics = {}
        acts, step_discriminators = self.kind
        compares_maps = acts and self.loss_weights.has_feature_loss
        with self.autocast():
            forward = self._forward(images)
            logit_loss = self._logit_loss(forward, labels, metrics)
            feature_loss = discriminator_loss = logit_loss.new_zeros(())
            if compares_maps:
                feature_loss, discriminator_loss = self._feature_losses(forward, metrics)
        share = len(images) / global_batch_size.to(logit_loss.dtype)
        if compares_maps and self.discriminator_group is not None and step_discriminators:
            judging = self.discriminator_group.parameters
            add("discriminator", _gradient(discriminator_loss * share, judging, retain_graph=True))
        if compares_maps and self.joint_backward:
            self._add_gradients_of_sum((logit_loss + feature_loss) * share, add)
        else:
            # The exchange of these between processes runs beside the second backward pass.
            add("logit", _gradient(logit_loss * share, self.logit_group.parameters, retain_graph=compares_maps))
            if compares_maps and self.feature_group is not None:
                add("feature", _gradient(feature_loss * share, self.feature_group.parameters))
        if acts and not compares_maps and self.feature_group is not None:
            add("feature", [torch.zeros_like(p) for p in self.feature_group.parameters])
        return {key: value.detach() for key, value in metrics.items()}

    def _add_gradients_of_sum(self, loss: Tensor, add: Callable[[str, Gradients], None]) -> None:
        """One backward pass of both losses; only the transfers have a feature update of their own."""
        kinds = {"logit": self.logit_group, "feature": self.feature_group}
        parameters = {kind: [] if update is None else update.parameters for kind, update in kinds.items()}
        values = _gradient(loss, [parameter for own in parameters.values() for parameter in own])
        first = len(parameters["logit"])
        add("logit", values[:first])
        if self.feature_group is not None:
            add("feature", values[first:])

    def apply(self, gradients: dict[str, Gradients], losses: Metrics) -> Tensor:
        """Steps every optimiser with its own gradients.

        Args:
            gradients: by kind of update, of the whole batch.
            losses: of the whole batch.

        Returns:
            1 where a loss or a gradient is not finite and no optimiser stepped, else 0: a scalar on the device.
        """
        skipped = self.faults.look(
            losses, gradients, {name: update.owners for name, update in self.optimizer_groups.items()}
        )
        if self.clip_grad is not None:
            _clip(gradients["logit"], self.logit_group.owners, self.clip_grad)
        for name, update in self.optimizer_groups.items():
            if name not in gradients:
                continue
            values = gradients[name]
            for parameter, gradient in zip(update.parameters, values, strict=True):
                parameter.grad = gradient
            with self.gradient_stats.watching(self.number, name, update.optimizer, update.parameters, values):
                step_if_finite(skipped, update.optimizer)
            for parameter in update.parameters:
                parameter.grad = None
        return skipped

    def set_modes(self) -> None:
        """Learners into training, models that only teach into evaluation."""
        for k, model in enumerate(self.models):
            # The user's own module is asked: it may have been switched since the last step, or given so.
            if model.module.training != (k not in self.frozen):
                model.train(k not in self.frozen)

    def _forward(self, images: Tensor) -> Forward:
        logits, maps = [], []
        for k, model in enumerate(self.models):
            with torch.no_grad() if k in self.frozen else contextlib.nullcontext():
                model_logits, model_maps = model(images)
            logits.append(_full(model_logits))
            maps.append(model_maps)
        return Forward(logits, maps)

    def _logit_loss(self, forward: Forward, labels: Tensor, metrics: Metrics) -> Tensor:
        total: Tensor | float = 0.0
        for learner in self.learners:
            logits = forward.logits[learner]
            metrics[f"cross_entropy/{learner}"] = loss = losses.cross_entropy(logits, labels)
            metrics[f"accuracy/{learner}"] = losses.accuracy(logits, labels)
            sources = [edge.source for edge in self.edges if edge.learner == learner]
            if self.loss_weights.kl_weight > 0:
                terms = [
                    losses.distillation(logits, forward.logits[source], self.loss_weights.temperature)
                    for source in sources
                ]
                metrics[f"kl/{learner}"] = term = torch.stack(terms).mean()
                loss = loss + self.loss_weights.kl_weight * term
            total = total + loss
        assert isinstance(total, Tensor)
        return total

    def _feature_losses(self, forward: Forward, metrics: Metrics) -> tuple[Tensor, Tensor]:
        """The learners' feature loss and the discriminators' loss.

        Each is averaged over a learner's links and summed over the learners; discriminators share no parameters.
        """
        terms: dict[tuple[str, int], list[Tensor]] = {}
        answers: dict[str, list[Tensor]] = {}
        for connection in self.connections:
            learner, source = connection.edge.learner, connection.edge.source
            fake_map, real_map = connection.maps(
                forward.maps[learner][connection.tap], forward.maps[source][connection.tap]
            )
            values: dict[str, Tensor] = {}
            if self.loss_weights.l1_weight > 0:
                values["l1"] = losses.l1(_full(fake_map), _full(real_map))
            if self.loss_weights.l2_weight > 0:
                values["l2"] = losses.l2(_full(fake_map), _full(real_map))
            if connection.discriminator is not None:
                if self.discriminator_unpaired:
                    real_map, fake_map = _unpaired(real_map, fake_map)
                real, fake = connection.discriminator(real_map), connection.discriminator(fake_map)
                values["adversarial"] = losses.adversarial(real, fake, self.loss_weights.adversarial_loss)
                values["discriminator"] = losses.discriminator(real, fake, self.loss_weights.adversarial_loss)
                answers.setdefault(f"real/{connection.edge}", []).append(real.mean())
                answers.setdefault(f"fake/{connection.edge}", []).append(fake.mean())
                if self.measures:
                    right = losses.right(real, fake, self.loss_weights.adversarial_loss)
                    answers.setdefault(f"right/{connection.edge}", []).append(right)
            for kind, value in values.items():
                terms.setdefault((kind, learner), []).append(value)
        means = {key: torch.stack(values).mean() for key, values in terms.items()}
        metrics.update({f"{kind}/{learner}": mean for (kind, learner), mean in means.items()})
        metrics.update({key: torch.stack(values).mean() for key, values in answers.items()})
        zero = forward.logits[0].new_zeros(())
        weights = {kind: getattr(self.loss_weights, f"{kind}_weight", 0.0) for kind, _ in means}
        feature_loss = sum((weights[kind] * mean for (kind, _), mean in means.items() if weights[kind]), zero)
        discriminator_loss = sum((mean for (kind, _), mean in means.items() if kind == "discriminator"), zero)
        return feature_loss, discriminator_loss


def _unpaired(real_map: Tensor, fake_map: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (n, channels, height, width) of different images, n // 2 of each; a single image stays with itself."""
    count = len(real_map) // 2 * 2
    return (real_map[:count:2], fake_map[1:count:2]) if count else (real_map, fake_map)


def _full(x: Tensor) -> Tensor:
    """At least float32: losses are not computed in the reduced precision of autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gradient(loss: Tensor, parameters: list[nn.Parameter], *, retain_graph: bool = False) -> Gradients:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    return [_laid_out_like(p, gradient) for p, gradient in zip(parameters, gradients, strict=True)]


def _laid_out_like(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """The gradient in its parameter's memory order: fused optimisers go by memory and do not look at strides.

    A gradient that autograd broadcasts (stride 0) gets memory of its own, too.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _add(total: Gradients, more: Gradients) -> Gradients:
    return [b if a is None else a if b is None else a + b for a, b in zip(total, more, strict=True)]


def _clip(gradients: Gradients, owners: Sequence[str], limit: float) -> None:
    """Scales the gradients of each owner to a common norm of at most `limit`.

    New tensors take their places: two parameters that are only ever added share one gradient in memory.
    """
    for owner in dict.fromkeys(owners):
        places = [i for i, name in enumerate(owners) if name == owner]
        present = {i: gradient for i in places if (gradient := gradients[i]) is not None}
        norm = torch.nn.utils.get_total_norm(list(present.values()))
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for i, scaled in zip(present, torch._foreach_mul(list(present.values()), scale), strict=True):
            gradients[i] = scaled
