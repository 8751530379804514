"""The update of the paper: one forward pass for each model, three kinds of gradient, an optimiser for each kind."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from feature_gan_kd.config.method_settings import LossSettings
from feature_gan_kd.distributed.collectives import all_reduce_sum, alone
from feature_gan_kd.method import losses as terms
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.feature_terms import DirectTerms
from feature_gan_kd.method.forward_passes import ForwardPasses
from feature_gan_kd.method.label_loss import LabelLoss
from feature_gan_kd.method.logit_terms import LogitTerms
from feature_gan_kd.method.loss_sums import Losses, Metrics
from feature_gan_kd.method.microbatch import Microbatch, split_batch
from feature_gan_kd.method.parameter_watch import ParameterWatch
from feature_gan_kd.method.topology import Edge, sources_of
from feature_gan_kd.models.cached_outputs import CachedOutputs
from feature_gan_kd.models.tapped_model import TappedModel
from feature_gan_kd.optim.gradient_stats import GradientStats
from feature_gan_kd.optim.gradients import OptimizerGroup, backward
from feature_gan_kd.optim.nonfinite import BufferSnapshot, NonFiniteGuard
from feature_gan_kd.utils.memory import BatchTooLargeError, is_out_of_memory


class AdversarialStep:
    """One update of all models and discriminators (paper, section 3).

    All gradients are taken at the parameters of one forward pass; then the optimiser of the logit loss steps, then
    those of the feature loss and of the discriminators (ours: the paper does not state the order).

    Args:
        models: every model, in order.
        logit_edges: who teaches whom by logits: the edges whose ends know the same classes.
        frozen: models that only teach: evaluation mode, no gradient.
        connections: transfer layers and discriminators, one per edge and tap; needed where feature maps are compared.
        loss_weights: the weights of the loss terms.
        logit_groups: all learners' parameters, with the optimisers of the logit loss.
        feature_group: all extractors' and transfer layers' parameters with theirs, or None.
        discriminator_group: all discriminators' parameters with theirs, or None.
        adversarial_interval: compare feature maps only in every N-th update (ours).
        discriminator_interval: step the discriminators only in every N-th of those (ours).
        joint_backward: one backward pass for the sum of logit and feature loss; `feature_group` then has the transfer
            layers alone, or is None (ours).
        grad_accum_steps: microbatches of one update, until memory runs out.
        sync_batchnorm: batch normalisation in the models takes its statistics over all processes.
        autocast: makes the context in which forward passes run.
        gradient_stats: measures what moves the weights, in some updates; None measures in none.
        averaged_sources: what teaches in place of a model, by its position; empty where all teach as they are (ours).
        cached_sources: what is asked in place of a frozen model, by its position; it gives the same (ours).
        channels: of an image, where batches may hold two views of each, see `ForwardPasses`.
    """

    def __init__(
        self,
        models: Sequence[TappedModel],
        logit_edges: Sequence[Edge],
        frozen: Collection[int],
        connections: Sequence[Connection],
        loss_weights: LossSettings,
        *,
        logit_groups: Sequence[OptimizerGroup],
        feature_group: OptimizerGroup | None,
        discriminator_group: OptimizerGroup | None,
        adversarial_interval: int = 1,
        discriminator_interval: int = 1,
        joint_backward: bool = False,
        grad_accum_steps: int = 1,
        sync_batchnorm: bool = False,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        gradient_stats: GradientStats | None = None,
        averaged_sources: Mapping[int, TappedModel] | None = None,
        cached_sources: Mapping[int, CachedOutputs] | None = None,
        channels: int | None = None,
    ) -> None:
        self.models = list(models)
        self.passes = ForwardPasses(models, frozen, averaged_sources or {}, cached_sources or {}, channels)
        self.frozen = frozenset(frozen)
        self.learners = [k for k in range(len(models)) if k not in self.frozen]
        self.logit_sources = {k: sources_of(logit_edges, k) for k in self.learners}
        self.connections = list(connections)
        self.loss_weights = loss_weights
        self.label_loss = LabelLoss(loss_weights)
        self.logit_terms = LogitTerms(loss_weights, self.logit_sources)
        self.logit_groups = list(logit_groups)
        self.feature_group = feature_group
        self.discriminator_group = discriminator_group
        self.adversarial_interval = adversarial_interval
        self.discriminator_interval = discriminator_interval
        self.joint_backward = joint_backward
        self.grad_accum_steps = grad_accum_steps
        self.sync_batchnorm = sync_batchnorm
        self.autocast = autocast
        self.gradient_stats = gradient_stats or GradientStats()
        self.guard = NonFiniteGuard()
        self.number = 0  # of updates done
        self.kl_start = 0  # the first update with the logit term
        self._parameters = ParameterWatch(self._trained_modules())
        # A learner's feature loss is a mean over its connections, a discriminator's answers over the taps of its edge.
        self.direct_terms = DirectTerms(loss_weights)
        self._connections_of_learner = Counter(one.edge.learner for one in self.connections)
        self._connections_of_edge = Counter(one.edge for one in self.connections)

    def __call__(self, images: Tensor, labels: Tensor) -> Metrics:
        """Updates everything by one batch.

        Args:
            images: (batch, channels, height, width), normalised; this process's share of the batch.
            labels: (batch,) class indices, -1 for an image without a label, or (batch, classes) probabilities.

        Returns:
            Detached scalars on the device, means over the whole batch, the same on every process: per learner K
            `cross_entropy/K` and `accuracy/K` (percent), which are means over the images with a label, `kl/K`, `l1/K`,
            `l2/K`, `aligned/K`, `statistics/K`, `relation/K`, `adversarial/K` and `discriminator/K`, and with
            `confidence_threshold` `confident/K`, the percentage of images that the logit term acts on;
            per edge `real/S->K` and `fake/S->K`, the discriminator's mean answers. An update that is measured also
            has `right/S->K`, the percentage of right answers, and what `GradientStats` gives. `skipped` is 1 where a
            loss or a gradient was not finite: then nothing is changed, on any process.

        Raises:
            UserError: if a model gives no logits or other maps than it was built for, if a parameter was frozen or
                unfrozen since then, or if another process is gone.
            BatchTooLargeError: if memory does not suffice for the forward and backward passes.
        """
        self.set_modes()
        self._parameters.check()
        buffers = self._buffers()
        with self._taken_back_without_memory(buffers):
            metrics = self.gradients(images, labels)
        groups = [group for group in self.optimizer_groups.values() if group.gradients]
        for group in groups:
            group.unscale()
        metrics["skipped"] = nonfinite = self.guard.check(metrics, groups)
        for group in groups:
            with self.gradient_stats.watching(self.number, group):
                group.step(unless=nonfinite)
            group.clear()
        for scaler in dict.fromkeys(group.scaler for group in groups):
            scaler.update()
        buffers.restore(nonfinite)
        self.number += 1
        return metrics | self.gradient_stats.pop()

    def rehearse(self, images: Tensor, labels: Tensor) -> None:
        """Runs the passes of an update on this process alone, and keeps nothing of them but the random numbers drawn.

        Args:
            images: (batch, channels, height, width), at least one.
            labels: (batch,) or (batch, classes).

        Raises:
            UserError: as a call.
            BatchTooLargeError: as a call.
        """
        self.set_modes()
        buffers = self._buffers()
        with self._taken_back_without_memory(buffers), alone():
            self.gradients(images, labels)
        self._take_back(buffers)

    def gradients(self, images: Tensor, labels: Tensor) -> Metrics:
        """Gives every group that acts in this update its gradient of the whole batch.

        Args:
            images: (batch, channels, height, width), this process's share of the batch.
            labels: (batch,) or (batch, classes).

        Returns:
            The metrics of the whole batch.

        Raises:
            UserError: as a call.
        """
        for group in self.optimizer_groups.values():
            group.clear()  # an update that ended in an error may have left gradients
        metrics: Metrics = {}
        microbatches = split_batch(
            images, labels, self.models, self.grad_accum_steps, sync_batchnorm=self.sync_batchnorm
        )
        for microbatch in microbatches:
            with microbatch as batch:
                losses = self.losses(batch.images, batch.labels, batch.per_label)
                self.backward(losses, batch)
            for name, value in losses.metrics.items():
                share = batch.weigh(value)
                metrics[name] = metrics[name] + share if name in metrics else share
        means = all_reduce_sum(torch.stack(list(metrics.values())))
        for group in self.optimizer_groups.values():
            group.finish_reduction()
        return dict(zip(metrics, means, strict=True))

    def losses(self, images: Tensor, labels: Tensor, per_label: Tensor) -> Losses:
        """The losses of the paper (section 3), of one microbatch.

        Args:
            images: (batch, channels, height, width).
            labels: (batch,) or (batch, classes).
            per_label: scalar, images of the whole update for each that has a label.

        Returns:
            L_logit, L_G and L_D, summed over the learners.

        Raises:
            UserError: where a model gives no logits or other maps than it was built for.
        """
        weights, compare_maps = self.loss_weights, self.compares_maps
        with self.autocast():
            logits, maps = self.passes.own(images)
            taught_logits, taught_maps = logits, maps
            if self.adds_kl or compare_maps:
                taught_logits, taught_maps = self.passes.taught(images, logits, maps)
            loss = Losses(terms.at_least_float32(images).new_zeros(()))
            for k in self.learners:
                if weights.labels:
                    loss.add("logit", f"cross_entropy/{k}", self.label_loss(logits[k], labels) * per_label)
                    loss.log(f"accuracy/{k}", terms.accuracy(logits[k], labels) * per_label)
                if self.adds_kl:
                    self.logit_terms(loss, k, logits, taught_logits, labels)
            for c in self.connections if compare_maps else ():
                k, s = c.edge.learner, c.edge.source
                fake, real = c.maps(maps[k][c.tap], taught_maps[s][c.tap])
                share = 1 / self._connections_of_learner[k]
                for name, term, weight in self.direct_terms(fake, real, maps[k][c.tap], taught_maps[s][c.tap]):
                    loss.add("feature", f"{name}/{k}", term, weight, share)
                if c.discriminator is not None:
                    # One answer to the learner's map serves both losses: `backward` keeps the other side fixed.
                    d_real, d_fake = c.answer(real, taught_logits[s]), c.answer(fake, logits[k])
                    kind = weights.adversarial_loss
                    adversarial = terms.adversarial(d_real, d_fake, kind)
                    loss.add("feature", f"adversarial/{k}", adversarial, weights.adversarial_weight, share)
                    loss.add("discriminator", f"discriminator/{k}", terms.discriminator(d_real, d_fake, kind), 1, share)
                    self._log_answers(loss, c.edge, d_real, d_fake)
        return loss

    def backward(self, losses: Losses, batch: Microbatch) -> None:
        """Adds the gradients of one microbatch, all at the parameters of its forward pass.

        The exchange of one gradient between processes runs beside the backward pass of the next.

        Args:
            losses: of the microbatch.
            batch: the microbatch, whose losses count by its share of the whole batch.

        Raises:
            UserError: where another process is gone.
        """
        compares_maps, feature_group = self.compares_maps, self.feature_group
        backward_of_batch = functools.partial(backward, reduce=batch.is_last, is_dummy=batch.count == 0)
        feature_groups = [] if feature_group is None else [feature_group]
        if self.discriminator_group is not None and self.steps_discriminators:
            own = [self.discriminator_group]
            backward_of_batch(batch.weigh(losses.discriminator), own, retain_graph=True)
        if compares_maps and self.joint_backward:
            loss = losses.logit + losses.feature
            backward_of_batch(batch.weigh(loss), [*self.logit_groups, *feature_groups])
            return
        if self.has_logit_loss:
            backward_of_batch(batch.weigh(losses.logit), self.logit_groups, retain_graph=compares_maps)
        if compares_maps and feature_groups:
            backward_of_batch(batch.weigh(losses.feature), feature_groups)
        elif self.steps_features and feature_group is not None:
            feature_group.fill_zeros()

    def set_modes(self) -> None:
        """Switches learners into training mode, and frozen models into evaluation mode."""
        for k, model in enumerate(self.models):
            # The user's own module is asked: the user may have switched it since the last update.
            if not model.is_in_mode(k not in self.frozen):
                model.train(k not in self.frozen)

    @property
    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        """The groups that there are, by name, in the order in which they step."""
        groups = (*self.logit_groups, self.feature_group, self.discriminator_group)
        return {group.name: group for group in groups if group is not None}

    @property
    def steps_features(self) -> bool:
        """Whether the feature group steps in the next update."""
        return self.number % self.adversarial_interval == 0

    @property
    def compares_maps(self) -> bool:
        """Whether the next update compares feature maps."""
        return self.steps_features and self.loss_weights.has_feature_loss

    @property
    def steps_discriminators(self) -> bool:
        """Whether the next update steps the discriminators."""
        return self.compares_maps and self.number // self.adversarial_interval % self.discriminator_interval == 0

    @property
    def adds_kl(self) -> bool:
        """Whether the next update has the logit term."""
        return self.loss_weights.kl_weight > 0 and self.number >= self.kl_start

    @property
    def has_logit_loss(self) -> bool:
        """Whether the next update has a loss of labels or logits."""
        return self.loss_weights.labels or (self.adds_kl and any(self.logit_sources.values()))

    @property
    def graph_key(self) -> tuple[bool, ...]:
        """What the next update does besides cross-entropy: a CUDA graph is recorded for each kind."""
        return self.steps_features, self.steps_discriminators, self.adds_kl

    @property
    def measures_gradients(self) -> bool:
        """Whether the next update measures what moves the weights."""
        return self.gradient_stats.due(self.number)

    def _buffers(self) -> BufferSnapshot:
        return BufferSnapshot([*(self.models[k].module for k in self.learners), *self.connections])

    @contextlib.contextmanager
    def _taken_back_without_memory(self, buffers: BufferSnapshot) -> Iterator[None]:
        """Takes back what the block did to the buffers, and the gradients, where memory runs out inside."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._take_back(buffers)
            raise BatchTooLargeError(str(error)) from error

    def _take_back(self, buffers: BufferSnapshot) -> None:
        for group in self.optimizer_groups.values():
            group.clear()
        buffers.restore(torch.ones(()))

    def _trained_modules(self) -> dict[str, nn.Module]:
        """Learners, and connections with their transfer layers and discriminators, by name for messages."""
        learners: dict[str, nn.Module] = {self.models[k].name: self.models[k].module for k in self.learners}
        return learners | {f"connection {one.edge}, tap {one.tap}": one for one in self.connections}

    def _log_answers(self, loss: Losses, edge: Edge, d_real: Tensor, d_fake: Tensor) -> None:
        share = 1 / self._connections_of_edge[edge]
        loss.log(f"real/{edge}", d_real.mean(), share)
        loss.log(f"fake/{edge}", d_fake.mean(), share)
        if self.measures_gradients:
            loss.log(
                f"right/{edge}", terms.discriminator_accuracy(d_real, d_fake, self.loss_weights.adversarial_loss), share
            )
