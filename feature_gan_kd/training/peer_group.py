"""The models that train together: how they are connected, the step that updates them, their state and evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.data import Data, check_auto_augment
from feature_gan_kd.distributed import collectives
from feature_gan_kd.distributed.launch import usable_accelerator
from feature_gan_kd.method.build import MethodModules, build_modules
from feature_gan_kd.method.build_step import build_step
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.topology import Edge, TopologyName, build_edges
from feature_gan_kd.models.build import build_models, move_to_device
from feature_gan_kd.models.cached_outputs import CachedOutputs, open_store
from feature_gan_kd.models.class_order import state_class_names, stated_class_names
from feature_gan_kd.models.compile import Compiler
from feature_gan_kd.models.normalisation import Normalisation, check_stated, stated_normalisation
from feature_gan_kd.models.peer import Peer, PeerModel, recipe_settings, resolve_peers, resolve_recipe
from feature_gan_kd.models.prepare import prepare
from feature_gan_kd.models.tapped_model import MapShape, TappedModel
from feature_gan_kd.optim.averaged_weights import averaged_sources, build_averages
from feature_gan_kd.optim.nonfinite import SkippedSteps
from feature_gan_kd.training import checkpoint_files, cuda_graphs
from feature_gan_kd.training.batch_checks import check_batch, check_images
from feature_gan_kd.training.checkpoint_contents import check_plain_state, collect_state, describe_model, restore_state
from feature_gan_kd.training.checkpoint_files import Checkpoint
from feature_gan_kd.training.divided_update import DividedUpdate
from feature_gan_kd.training.history import History
from feature_gan_kd.training.precision import autocast_dtype, check_weights, precision_in_force
from feature_gan_kd.training.provenance import RunProvenance
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.uncopyable import Uncopyable


class PeerGroup(Uncopyable):
    """Several models that train together.

    Args: as for `OnlineAdversarialDistiller`. The recipe `auto` becomes the one for the weights that the learners have.

    Attributes:
        peers: the models and what is known of them, in order.
        built_by_name: positions of the models that were named; of modules it is not known whether they are trained.
        edges: who teaches whom.
        config: the settings in force.
        asked_precision: `mixed_precision` as it was asked for; `config` has what `auto` is here.
        accelerator: devices and processes.
        modules: the models with their taps, and the connections between them.
        averages: the running means of the weights of models that have one, by position.
        step: one update of everything.
        update: the same, in as many parts as memory needs; with `cuda_graphs` it replays recordings.
        provenance: what the models were last trained on; None before any training.
        last_data: training and evaluation data of the last `fit` in this process, as they were given.

    Raises:
        UserError: for anything that cannot be connected or trained, in one line.
    """

    def __init__(
        self,
        models: Sequence[str | nn.Module | Peer | PeerModel],
        *,
        num_classes: int | None,
        in_chans: int,
        pretrained: bool,
        feature_layers: Any,
        topology: TopologyName | Sequence[Edge | tuple[int, int]],
        frozen: Collection[int],
        discriminator: Callable[[MapShape], nn.Module] | None,
        config: DistillConfig,
        accelerator: Accelerator | None,
    ) -> None:
        check_auto_augment(config.aa)
        asked = resolve_peers(models, pretrained=pretrained, frozen=frozen, feature_layers=feature_layers)
        self.frozen, self.feature_layers = asked.frozen, asked.feature_layers
        self.peers = build_models(
            asked.models,
            num_classes=num_classes,
            labels=config.labels,
            in_chans=in_chans,
            pretrained=asked.pretrained,
            image_size=config.image_size,
            seed=config.seed,
            frozen=asked.frozen,
            model_args=asked.architecture_args(config),
        )
        self.built_by_name = frozenset(k for k, model in enumerate(asked.models) if isinstance(model, str))
        self.edges = build_edges(topology, len(self.peers), self.frozen)
        self.in_chans = in_chans
        self.num_classes_given = num_classes is not None
        self.image_size = max(model.image_size for model in self.peers)
        self.accelerator = usable_accelerator(accelerator)
        learners = [model for k, model in enumerate(self.peers) if k not in self.frozen]
        self.config = resolve_recipe(config, learners)
        is_mix = (config.recipe, self.config.recipe) == ("auto", "paper")
        trained = {k for k, model in enumerate(self.peers) if model.pretrained}
        self.fine_tuned = trained.difference(self.frozen) if is_mix else set()
        self.asked_precision = self.config.mixed_precision
        self.config = self.config.replace(mixed_precision=precision_in_force(self.asked_precision, self.accelerator))
        self.provenance: RunProvenance | None = None
        self.last_data: tuple[Any, Any] | None = None
        self._prepare_models(asked.settings)
        self.modules: MethodModules = build_modules(
            self.peers,
            self.edges,
            self.frozen,
            self.feature_layers,
            self.config,
            in_chans=in_chans,
            discriminator=discriminator,
            knows_classes=num_classes is not None or any(isinstance(model, PeerModel) for model in asked.models),
        )
        self._check_num_classes(num_classes)
        for model, classes in zip(self.peers, self.modules.classes, strict=True):
            model.classes = classes
        collectives.broadcast_parameters([*self.models, *self.connections])
        self.shared: Normalisation | None = None
        self._share(self.stated_normalisation())
        decays = [model.own_config(self.config).model_ema for model in self.peers]
        self.averages = build_averages(self.peers, self.tapped, decays, self.modules.frozen)
        self._build_step()

    def _prepare_models(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Moves every model to the device, and applies its own settings or those of the run."""
        move_to_device(self.peers, self.accelerator.device, channels_last=self.config.channels_last)
        for k, (model, own) in enumerate(zip(self.peers, settings, strict=True)):
            model.settings = own
            if k in self.frozen:
                model.module.eval()
            else:
                preset = recipe_settings(self.config, model, own, fine_tuned=k in self.fine_tuned)
                model.settings = {**preset, **own}
                prepare(model, model.own_config(self.config), f"model {k} ({model.name})")
        learners = {k: model for k, model in enumerate(self.peers) if k not in self.frozen}
        named = {f"model {k} ({model.name})": model.module for k, model in learners.items()}
        check_weights(self.config.mixed_precision, named)

    def _check_num_classes(self, given: int | None) -> None:
        if given not in (None, self.num_classes):
            raise UserError(
                f"num_classes: {given} is given, the models have {self.num_classes} logits: give the number that they "
                "have, or models with as many"
            )

    def _build_step(self) -> None:
        config, device = self.config, self.accelerator.device
        teachers = {}
        if config.targets == "ema":
            teachers = averaged_sources(
                self.averages, [edge.source for edge in self.edges], self.modules.frozen, self.tapped
            )
        if config.compile:
            compiler = Compiler()
            for model in (*self.tapped, *teachers.values()):
                model.compile_forward(compiler)
        # A method of this object would do, but the step would then refer to the group that refers to it, and the memory
        # of both would be freed only when Python's garbage collector runs.
        self.autocast: Callable[[], AbstractContextManager[None]] = functools.partial(
            torch.autocast,
            device.type,
            dtype=autocast_dtype(config.mixed_precision),
            enabled=config.mixed_precision != "no",
        )
        own = [model.own_config(config) for model in self.peers]
        self.step = build_step(self.modules, config, self.autocast, own, teachers, self._cached_sources())
        update = cuda_graphs.graphs_on_gpu(self.step, device) if config.cuda_graphs else self.step
        self.update = DividedUpdate(self.step, update, full_precision=config.mixed_precision == "no")

    def _cached_sources(self) -> dict[int, CachedOutputs]:
        """What is asked in place of the frozen sources, by position; nothing without `cache_sources`.

        Raises:
            UserError: where no model is frozen, or the store cannot be opened.
        """
        if self.config.cache_sources is None:
            return {}
        if not self.frozen:
            raise UserError("cache_sources: no model is frozen, so what the sources give changes in every update")
        store = open_store(self.config.cache_sources)
        return {k: CachedOutputs(self.tapped[k], store, self.config.mixed_precision) for k in self.frozen}

    @property
    def models(self) -> list[nn.Module]:
        """The models' own modules, in order."""
        return [model.module for model in self.peers]

    @property
    def names(self) -> list[str]:
        """A short name for each model."""
        return [model.name for model in self.peers]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the models' parameters, in which they get images: data sets give float32."""
        return next(parameter for model in self.models for parameter in model.parameters()).dtype

    @property
    def num_classes(self) -> int:
        """The size of the learners' logits; 0 where none classifies."""
        return self.modules.num_classes

    @property
    def classifiers(self) -> tuple[int, ...]:
        """Positions of the models that know the classes of the learners: the others are encoders, or know others."""
        return tuple(k for k, own in enumerate(self.modules.classes) if own and own == self.num_classes)

    @property
    def tapped(self) -> list[TappedModel]:
        """The models with their taps, in order; they have no taps where the method does not look at maps."""
        return self.modules.tapped

    @property
    def connections(self) -> list[Connection]:
        """Transfer layer and discriminator for each edge and tap, in the order of the edges."""
        return self.modules.connections

    @property
    def discriminators(self) -> nn.ModuleList:
        """Of the connections, in their order; empty where the method has no adversarial term."""
        return nn.ModuleList([c.discriminator for c in self.connections if c.discriminator is not None])

    @property
    def transfers(self) -> nn.ModuleList:
        """The transfer layers of the connections, in their order; identity where the channels match."""
        return nn.ModuleList([c.transfer for c in self.connections])

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Updates everything by one batch, see `OnlineAdversarialDistiller.training_step`.

        Args:
            images: float (batch, channels, height, width), normalised; this process's share.
            labels: (batch,) class indices, -1 for an image without a label, or (batch, classes) probabilities.

        Raises:
            UserError: where memory does not suffice, and with `check_processes` where weights differ between processes.
        """
        device, config = self.accelerator.device, self.config
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        images = images.to(device, self.dtype, non_blocking=True, memory_format=layout)
        for average in self.averages.values():
            average.begin()
        metrics = self.update(images, labels.to(device, non_blocking=True))
        for average in self.averages.values():
            average.update(metrics["skipped"])
        if config.check_processes:
            collectives.check_ranks_equal(self.modules.trained_modules())
        return metrics

    def check_batch(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """Checks images (batch, channels, height, width) and labels, see `batch_checks.check_batch`."""
        form = (self.in_chans, self.image_size)
        stated = self.stated_normalisation()
        if stated is not None and self.step.number == 0 and isinstance(images, Tensor) and images.is_floating_point():
            check_images(images, *form)
            check_stated(images, stated)
        return check_batch(images, labels, form, self.num_classes, self.config)

    def skipped_steps(self) -> SkippedSteps:
        """The updates so far that changed nothing, because a loss or a gradient was not finite."""
        return self.step.guard.report()

    def averaged_models(self) -> dict[int, nn.Module]:
        """The modules that hold averaged weights, by position; none before the first update."""
        return {k: average.module for k, average in self.averages.items() if average.has_begun}

    def average_buffers(self) -> None:
        """Averages the buffers of all models over the processes, which saw different images.

        Raises:
            UserError: where another process is gone.
        """
        collectives.average_buffers([*self.models, *(average.module for average in self.averages.values())])

    def state(self) -> Checkpoint:
        """Everything that training changes.

        Raises:
            UserError: where another process is gone.
        """
        self.average_buffers()
        provenance = None if self.provenance is None else self.provenance.to_dict()
        state = collect_state(self.models, self.connections, self.averages, self.step, provenance)
        state.meta["num_classes_given"] = self.num_classes_given
        # Those of the data are in the provenance.
        state.meta["class_names"] = [
            None if k in self.classifiers else stated_class_names(module, self.modules.classes[k])
            for k, module in enumerate(self.models)
        ]
        return state

    def save_checkpoint(self, folder: Path) -> None:
        """Writes everything that training changes into a folder; an existing one is replaced.

        Raises:
            UserError: where it cannot be written, a module's state holds more than tensors, or another process is gone.
        """
        check_plain_state(self.modules.trained_modules())
        state = self.state()
        if self.accelerator.is_main_process:
            checkpoint_files.save(state, folder, self.signature(None, None))
        self.accelerator.wait_for_everyone()

    def load_state(self, state: Checkpoint) -> None:
        """The inverse of `state`.

        Raises:
            UserError: where it is the state of other models or discriminators; part of it may be loaded by then.
        """
        provenance = restore_state(state, self.models, self.connections, self.averages, self.step)
        self.num_classes_given |= state.meta.get("num_classes_given", False)
        for k, names in enumerate(state.meta.get("class_names", [])):
            if names is not None:
                state_class_names(self.models[k], names)
        if provenance is not None and self.provenance is None:  # `fit` states its own before it resumes
            self.provenance = RunProvenance.from_dict(provenance)
            self._share(self.provenance.normalisation)

    def description(self) -> dict[str, Any]:
        """What is needed to build the same group again, as JSON values."""
        return {
            "num_classes": self.num_classes or None,
            "in_chans": self.in_chans,
            "image_size": self.image_size,
            "feature_layers": self.feature_layers,
            "edges": [[edge.source, edge.learner] for edge in self.edges],
            "frozen": list(self.frozen),
            "config": self.config.to_dict(),
            "models": [describe_model(model) for model in self.peers],
        }

    def signature(self, fingerprint: str | None, class_names: list[str] | None) -> dict[str, Any]:
        """What a checkpoint and the run that resumes it must agree in.

        Args:
            fingerprint: of the training data.
            class_names: of the training data: which class a number means.
        """
        about = {"data": fingerprint, "class_names": class_names}
        return {**self.description(), "config": self.config.defining(), **about}

    def begin_training(
        self, train_data: Any, eval_data: Any, data: Data, license: str | None, unlabeled_data: Any = None
    ) -> History:
        """Starts a new provenance, and adapts every model to the normalisation of the new images.

        Args:
            train_data: as given to `fit`.
            eval_data: as given to `fit`.
            data: the same, opened.
            license: of the weights.
            unlabeled_data: as given to `fit`.

        Returns:
            The history of the training, to be filled.
        """
        self.last_data = (train_data, eval_data)
        self.provenance = RunProvenance.of_fit((train_data, eval_data, unlabeled_data), data, license, self.config)
        self._share(data.normalisation)
        return self.provenance.history

    def common_normalisation(self) -> Normalisation | None:
        """The normalisation that all models were pretrained with; None where they differ, or a model has none."""
        wanted = {model.normalisation for model in self.peers}
        return wanted.pop() if len(wanted) == 1 else None

    def stated_normalisation(self) -> Normalisation | None:
        """What the user states that the images are normalised with.

        Raises:
            UserError: for another number of values than the images have channels.
        """
        return stated_normalisation(self.config.mean, self.config.std, self.in_chans)

    def normalisation(self) -> Normalisation | None:
        """Mean and standard deviation of the images that all models are given; None where they are not known.

        Those that the user states, else those of the training data; before any training those that all models were
        trained with. A model that wants others converts the images inside its own forward pass.
        """
        return self.shared if self.shared or self.step.number else self.common_normalisation()

    def _share(self, shared: Normalisation | None) -> None:
        """From now on, all models get images in this normalisation; None: of an unknown one, as they are."""
        self.shared = shared
        for model, tapped in zip(self.peers, self.tapped, strict=True):
            tapped.adapter.set_normalisations(shared, model.normalisation)
            # Now, since a copy to the device in every forward pass would wait for it.
            tapped.adapter.to(self.accelerator.device)
