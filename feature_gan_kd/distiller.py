"""`OnlineAdversarialDistiller`: wires models, taps, discriminators and optimisers, and delegates."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from feature_gan_kd.analysis.similarity import check_image_count, measure_similarity
from feature_gan_kd.analysis.summary import describe_taps, summarize
from feature_gan_kd.config.settings import DistillConfig
from feature_gan_kd.data import Data, ImageSource, build_mixup_cutmix, open_data, open_evaluation
from feature_gan_kd.distributed import collectives as processes
from feature_gan_kd.distributed.launch import usable_accelerator
from feature_gan_kd.distributed.sync_batchnorm import check_batchnorm_batches
from feature_gan_kd.export import ModelCardInfo, has_same_weights, push
from feature_gan_kd.export.provenance import (
    Format,
    RunProvenance,
    Which,
    model_card_info,
    name_of,
    sources_of,
    write_model,
)
from feature_gan_kd.method.build import build_modules, build_step
from feature_gan_kd.method.connection import Connection
from feature_gan_kd.method.topology import Edge, TopologyName, build_edges
from feature_gan_kd.models.build import PeerModel, build_models, move_to_device
from feature_gan_kd.models.compile import Compiler
from feature_gan_kd.models.input_adapter import Normalisation
from feature_gan_kd.models.taps import Layer, MapShape, TappedModel
from feature_gan_kd.models.weights import load_weights
from feature_gan_kd.optim.build import build_schedules
from feature_gan_kd.optim.nonfinite import SkippedSteps
from feature_gan_kd.training import checkpoint, cuda_graphs
from feature_gan_kd.training.callbacks import Callback, build_callbacks, check_callbacks, check_trackers
from feature_gan_kd.training.checkpoint import Checkpoint
from feature_gan_kd.training.evaluate import Evaluation, evaluate
from feature_gan_kd.training.history import History
from feature_gan_kd.training.run_folder import check_run_folder, device_name, write_run_config
from feature_gan_kd.training.state import capture_state, describe_model, rebuild_models, restore
from feature_gan_kd.training.trainer import Trainer
from feature_gan_kd.utils.errors import UserError
from feature_gan_kd.utils.memory import explain_out_of_memory

EVALUATION_BATCH = 500


class OnlineAdversarialDistiller:
    """Several models that teach each other by logits and by the distribution of their feature maps.

    Args:
        models: at least two: timm names (also `hf-hub:` and `local-dir:` names) or any modules.
        num_classes: of models built by name; None keeps each one's own.
        in_chans: input channels of models built by name.
        pretrained: start models built by name from their trained weights.
        feature_layers: where to take the maps; None finds the last one before pooling. A layer's name or the
            index of a timm stage, a list of several, or a mapping from a model's position to either.
        topology: `cycle` (the paper's), `complete`, `star`, or explicit edges `(source, learner)`.
        frozen: positions of models that only teach.
        discriminator: makes a discriminator of your own for maps (channels, height, width): a module that gives
            one answer per map, shape (batch,), or one per patch, (batch, patches): in (0, 1) for the `paper`'s
            adversarial_loss, any number for the others; None makes the paper's.
        config: every other setting.
        accelerator: devices and processes; made where none is given.
        **overrides: settings of `config` to change, by name.

    Attributes:
        models: the models' own modules, in order.
        names: a short name per model.
        edges: who teaches whom.
        discriminators: one per edge and tap; empty where the method has no adversarial term.
        transfers: one per edge and tap, identity where the channels match.
        config: the settings in force.
        image_size: side in pixels of the images that the wiring was built for.

    Raises:
        UserError: for anything that cannot be wired, in one line.
    """

    def __init__(
        self,
        models: Sequence[str | nn.Module | PeerModel],
        *,
        num_classes: int | None = None,
        in_chans: int = 3,
        pretrained: bool = False,
        feature_layers: Layer | Sequence[Layer] | Mapping[int, Layer | Sequence[Layer]] | None = None,
        topology: TopologyName | Sequence[Edge | tuple[int, int]] = "cycle",
        frozen: Collection[int] = (),
        discriminator: Callable[[MapShape], nn.Module] | None = None,
        config: DistillConfig | None = None,
        accelerator: Accelerator | None = None,
        **overrides: Any,
    ) -> None:
        config = DistillConfig() if config is None else config
        if not isinstance(config, DistillConfig):
            raise UserError(f"config: {type(config).__name__} is not allowed, expected DistillConfig.from_dict of it")
        config = config.replace(**overrides)
        self.peers = build_models(
            models,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            image_size=config.image_size,
            seed=config.seed,
        )
        if isinstance(frozen, int):
            raise UserError(f"frozen: {frozen!r} is not allowed, expected a list of positions, as [{frozen}]")
        self.frozen = tuple(sorted(frozen))
        if config.recipe == "auto":
            learners = (model for k, model in enumerate(self.peers) if k not in self.frozen)
            trained = pretrained or all(model.pretrained for model in learners)
            config = config.replace(recipe="finetune" if trained else "paper")
        self.config = config
        self.edges = build_edges(topology, len(self.peers), self.frozen)
        self.in_chans = in_chans
        self.image_size = max(model.image_size for model in self.peers)
        self.accelerator = usable_accelerator(accelerator)
        if self.accelerator.mixed_precision == "bf16":  # as `accelerate launch` was told
            self.config = config = config.replace(mixed_precision="bf16")
        self.provenance: RunProvenance | None = None
        self._given: tuple[Any, Any] | None = None
        self.feature_layers = feature_layers
        move_to_device(self.peers, self.accelerator.device, channels_last=config.channels_last)
        for k in self.frozen:
            self.models[k].eval()
        self._modules = build_modules(
            self.peers,
            self.edges,
            self.frozen,
            feature_layers,
            config,
            in_chans=in_chans,
            discriminator=discriminator,
        )
        self.num_classes = self._modules.num_classes
        processes.broadcast_parameters([*self.models, *self.connections])
        if config.compile:
            compiler = Compiler()
            for model in self._modules.tapped:
                model.compile_forward(compiler)
        self.step = build_step(self._modules, config, self._autocast)
        self._update = cuda_graphs.for_gpu(self.step, self.accelerator.device) if config.cuda_graphs else self.step

    @property
    def models(self) -> list[nn.Module]:
        """The models' own modules, in order."""
        return [model.module for model in self.peers]

    @property
    def names(self) -> list[str]:
        """A short name per model."""
        return [model.name for model in self.peers]

    @property
    def tapped(self) -> list[TappedModel]:
        """The models with their taps, in order; without any where the method does not look at maps."""
        return self._modules.tapped

    @property
    def connections(self) -> list[Connection]:
        """Transfer layer and discriminator per edge and tap, in the order of the edges."""
        return self._modules.connections

    @property
    def discriminators(self) -> nn.ModuleList:
        """One discriminator per edge and tap, in the order of the edges."""
        return nn.ModuleList(
            [connection.discriminator for connection in self.connections if connection.discriminator is not None]
        )

    @property
    def transfers(self) -> nn.ModuleList:
        """One transfer layer per edge and tap, in the order of the edges."""
        return nn.ModuleList([connection.transfer for connection in self.connections])

    def summary(self) -> str:
        """The wiring as text: models, taps, map shapes, parameters, and who teaches whom through what."""
        return summarize(
            self.names,
            self._modules.tapped,
            self.connections,
            self.edges,
            self.frozen,
            logits=self.config.loss_weights.kl_weight > 0,
        )

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One whole update of every model, discriminator and transfer layer.

        Nothing is copied to the host; every process must call it with its share of the batch.

        Args:
            images: (batch, channels, height, width), normalised.
            labels: (batch,) class indices, or (batch, classes) probabilities.

        Returns:
            Detached scalars on the device, by name. The page "Watching a run" explains each name.

        Raises:
            UserError: for images of another size than the wiring was built for, where memory does not suffice, and
                under `check_processes` for weights that are not the same on every process.
        """
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            raise UserError(
                f"images: {images.shape[-2]}x{images.shape[-1]} pixels, the wiring was built for "
                f"{self.image_size}x{self.image_size}: give their size as image_size"
            )
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        images = images.to(self.accelerator.device, non_blocking=True, memory_format=layout)
        with explain_out_of_memory(images, self.config.grad_accum_steps, self.config.mixed_precision == "bf16"):
            metrics = self._update(images, labels.to(self.accelerator.device, non_blocking=True))
        if self.config.check_processes:
            processes.check_ranks_equal(self._modules.trained_modules())
        return metrics

    def fit(
        self,
        train_data: Any = None,
        eval_data: Any = None,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        output_dir: str | Path | None = None,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
        log_with: str | Sequence[str] = (),
        progress: bool = True,
        license: str | None = None,
    ) -> History:
        """Trains all models together.

        Args:
            train_data: a hub name, a local folder or file, a `datasets.Dataset` or `DatasetDict`, a torch
                `Dataset` or a `DataLoader`; None is the bundled digits.
            eval_data: likewise; None takes the evaluation split of `train_data`, or holds a fifth of it out.
            epochs: passes over the training images; None as in the config.
            batch_size: images of one update over all processes; None as in the config.
            output_dir: of `config.json`, `metrics.jsonl`, `checkpoints/` and `networks/`; None writes nothing.
            resume: go on from the newest checkpoint in `output_dir`, if there is one.
            callbacks: who else hears of the run; called in this order, before progress, trackers and records.
            log_with: trackers of Accelerate's (`tensorboard`, `wandb`, ...) that are told every figure, besides
                `metrics.jsonl`; those that `accelerator` runs already are told, too.
            progress: show notes on the data and the progress on stderr.
            license: of the published weights; None inherits that of pretrained ones.

        Returns:
            A record per epoch and the best of each model.

        Raises:
            UserError: for data, folders or checkpoints that cannot be used, in one line.
            DivergedError: where more updates than `max_nonfinite_steps` in a row had a loss or a gradient that is not
                finite.
            Interrupted: a `KeyboardInterrupt`, where Ctrl-C or SIGTERM stopped the training between two updates,
                after a checkpoint. Their handlers stand while models are trained in the main thread, and no longer.
        """
        changes = {"epochs": epochs, "batch_size": batch_size}
        self.config = self.config.replace(**{key: value for key, value in changes.items() if value is not None})
        folder = None if output_dir is None else check_run_folder(Path(output_dir), resume)
        trackers = (log_with,) if isinstance(log_with, str) else tuple(log_with)
        check_trackers(trackers, folder)
        check_callbacks(callbacks)
        data = self._open_for_training(train_data, eval_data)
        provenance = self._begin(train_data, eval_data, data, license)
        self.accelerator.wait_for_everyone()  # all have looked at the folder
        if folder is not None:
            about = {**self.description(), **self._circumstances(data)}
            processes.on_main_process(lambda: write_run_config(folder, about))
        self.accelerator.wait_for_everyone()
        config = self.config
        optimizers = {kind: update.optimizer for kind, update in self.step.optimizer_groups.items()}
        fit = Trainer(
            trainee=self,
            data=data,
            config=config,
            schedules=build_schedules(optimizers, config, data.train.steps(config.batch_size) * config.epochs),
            accelerator=self.accelerator,
            callbacks=build_callbacks(
                config,
                callbacks,
                notes=data.notes if progress else None,
                trackers=trackers,
                running=self.accelerator.trackers,
                folder=folder,
            ),
            output_dir=folder,
            signature=self._signature(data.fingerprint),
            names=self.names,
            mixing=build_mixup_cutmix(config, self.num_classes),
            history=provenance.history,
        )
        return fit.run(resume)

    def evaluate(self, data: Any = None) -> dict[str, Any]:
        """Top-1 accuracy in percent per model and of the ensemble (mean of the logits).

        Args:
            data: as `eval_data` of `fit`; its evaluation split is taken. None is what the last training was
                evaluated on.

        Returns:
            `accuracy` and `loss` (lists, by model), `ensemble`, `images`.

        Raises:
            UserError: for data that cannot be used, or that are not known any more.
        """
        return dataclasses.asdict(self.evaluate_source(self.evaluation_images(data)))

    def evaluation_images(self, data: Any = None) -> ImageSource:
        """The images that `evaluate` takes.

        Args:
            data: as for `evaluate`.

        Raises:
            UserError: as `evaluate`.
        """
        normalisation = self.normalisation()
        trained_on = False
        if data is None:
            train_data, data = self._given or (self.provenance.remembered() if self.provenance else (None, None))
            trained_on = data is None
            data = train_data if trained_on else data
        source, notes = open_evaluation(
            data,
            self.config,
            image_size=self.image_size,
            in_chans=self.in_chans,
            mean=normalisation.mean,
            std=normalisation.std,
            class_names=self.provenance.class_names if self.provenance else None,
            num_classes=self.num_classes,
            trained_on=trained_on,
        )
        if self.config.skip_bad_images and self.accelerator.is_main_process:
            print(*notes, sep="\n", file=sys.stderr)
        return source

    def normalisation(self) -> Normalisation:
        """Mean and standard deviation per channel of the images that all models are given.

        Those of the training data, or before any training those of the pretrained models. A model that wants
        others brings the images to them inside its own forward.

        Raises:
            UserError: where neither is known.
        """
        known = self.provenance.normalisation if self.provenance else self._common_normalisation()
        if known is None:
            raise UserError("evaluate: the mean and std of these models' images are not known yet: fit first")
        return known

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        which: Which = "last",
        format: Format = "safetensors",
        license: str | None = None,
    ) -> list[Path]:
        """Publishes every model: one folder each.

        Args:
            directory: of the folders `<index>-<name>`.
            which: said on the card; the weights are those that the models have now.
            format: `safetensors`, which plain timm loads, or a graph that runs without timm: `onnx`,
                `torch-export`. Labels and preprocessing come with each.
            license: of the weights; None keeps what `fit` was told, else inherits that of pretrained weights.

        Returns:
            The folders.

        Raises:
            UserError: where a folder cannot be written, timm would rebuild another model, or a graph cannot be
                traced or computes anything else.
        """
        folders = [Path(directory) / f"{index}-{name}" for index, name in enumerate(self.names)]
        processes.average_buffers(self.models)
        if self.accelerator.is_main_process:
            for index, folder in enumerate(folders):
                write_model(self.peers[index], folder, self._publication(index, which, license), format)
        self.accelerator.wait_for_everyone()
        return folders

    def push_to_hub(
        self,
        repo_id: str,
        *,
        model: int,
        which: Which = "last",
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
    ) -> None:
        """Publishes one model on the Hugging Face hub.

        Args:
            repo_id: `owner/name`.
            model: its position.
            which: as for `save_pretrained`.
            private: make a new repository private.
            token: of the hub; None takes the one that is logged in.
            license: as for `save_pretrained`.

        Raises:
            UserError: for a position that is none, without internet access, or with a wrong token; what was saved
                locally stays.
        """
        if type(model) is not int or not 0 <= model < len(self.peers):
            known = ", ".join(f"{k} ({name})" for k, name in enumerate(self.names))
            raise UserError(f"model: {model!r} is not allowed, expected a position: {known}")
        card_info = self._publication(model, which, license)
        if self.accelerator.is_main_process:
            push(self.models[model], repo_id, card_info, private=private, token=token)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self, directory: str | Path) -> None:
        """Writes the whole state (models, discriminators, transfers, optimisers) as one verified folder.

        Args:
            directory: the folder to write; replaced where it exists.

        Raises:
            UserError: where it cannot be written.
        """
        state = self.state()
        if self.accelerator.is_main_process:
            checkpoint.save(state, Path(directory), self._signature(None))
        self.accelerator.wait_for_everyone()

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        models: Sequence[nn.Module] | None = None,
        discriminator: Callable[[MapShape], nn.Module] | None = None,
        accelerator: Accelerator | None = None,
    ) -> OnlineAdversarialDistiller:
        """Builds the distiller that wrote a checkpoint, with the state it had.

        Args:
            directory: a folder that `save_checkpoint` or `fit` wrote.
            models: all models, in order, where timm cannot build them; their weights are replaced.
            discriminator: the factory that the distiller was built with, if any.
            accelerator: devices and processes.

        Raises:
            UserError: where the checkpoint is damaged, or is one of other models.
        """
        folder = Path(directory)
        state = checkpoint.load(folder, None)
        about = checkpoint.signature_of(folder)
        distiller = cls(
            rebuild_models(about, models),
            feature_layers=_layers_from_json(about["feature_layers"]),
            in_chans=about["in_chans"],
            topology=[(source, learner) for source, learner in about["edges"]],
            frozen=about["frozen"],
            discriminator=discriminator,
            config=DistillConfig.from_dict(about["config"]),
            accelerator=accelerator,
        )
        checkpoint.check_signature(folder, distiller._signature(about["data"]))
        distiller.load_state(state)
        return distiller

    def load_best(self, run: str | Path) -> None:
        """Takes up each model's weights of its best epoch in the run of that folder.

        Args:
            run: the `output_dir` of that run's `fit`.

        Raises:
            UserError: where they are not there, or are those of other models.
        """
        for index, (name, module) in enumerate(zip(self.names, self.models, strict=True)):
            load_weights(module, Path(run) / "networks" / f"{index}-{name}-best")

    # What the loop calls.

    def evaluate_source(self, source: ImageSource, between: Callable[[], None] = lambda: None) -> Evaluation:
        """Evaluates on every image of `source` once; the same figures on every process.

        Args:
            source: of the images.
            between: is called after every batch.

        Raises:
            UserError: where there is not one image, a model gives no logits, or another process is gone.
        """
        processes.average_buffers(self.models)
        batches = source.batches(
            batch_size=EVALUATION_BATCH * self.accelerator.num_processes,
            seed=0,
            epoch=0,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            device=self.accelerator.device,
            train=False,
        )
        models = [nn.Sequential(model.adapter, model.module) for model in self._modules.tapped]
        return evaluate(models, batches, add_up=processes.all_reduce_sum, autocast=self._autocast, between=between)

    def similarity(self, source: ImageSource, between: Callable[[], None] = lambda: None) -> dict[str, float]:
        """How alike the maps of source and learner are, see `measure_similarity`; the same on every process.

        Args:
            source: of the images, of which every process takes the first `similarity_images`.
            between: is called after every batch.

        Returns:
            Nothing where `similarity_images` is not set.

        Raises:
            UserError: where there are fewer than four images, or another process is gone.
        """
        count = self.config.similarity_images
        if count is None:
            return {}
        processes.average_buffers(self.models)
        size, device = min(count, EVALUATION_BATCH), self.accelerator.device
        batches = source.batches(batch_size=size, seed=0, epoch=0, device=device, train=False)
        return measure_similarity(
            self._modules.tapped, self.edges, batches, count, autocast=self._autocast, after_batch=between
        )

    def faults(self) -> SkippedSteps:
        """The updates so far that changed nothing, because a loss or a gradient was not finite."""
        return self.step.guard.report()

    def state(self) -> Checkpoint:
        """Everything that training changes: tensors by component, the rest as JSON values.

        Raises:
            UserError: where another process is gone.
        """
        processes.average_buffers(self.models)
        provenance = None if self.provenance is None else self.provenance.to_dict()
        return capture_state(self.models, self.connections, self.step, provenance)

    def load_state(self, state: Checkpoint) -> None:
        """The inverse of `state`.

        Raises:
            UserError: where it is the state of other models or discriminators; they may hold part of it then.
        """
        provenance = restore(state, self.models, self.connections, self.step)
        if provenance is not None and self.provenance is None:
            self.provenance = RunProvenance.from_dict(provenance)
            self._adapt_inputs(self.provenance.normalisation)

    def publish(self, index: int, which: Which, folder: Path) -> None:
        """Writes model `index` as users get it into a `folder`, unless its very weights are there.

        Args:
            index: its position.
            which: said on the card.
            folder: of the run.

        Raises:
            UserError: as `save_pretrained`.
        """
        if not has_same_weights(folder, self.models[index]):
            write_model(self.peers[index], folder, self._publication(index, which, None))

    def open_data(self, train_data: Any, eval_data: Any = None) -> Data:
        """Opens data as these models want them: the largest size, channels, normalisation.

        Where all models are pretrained with one mean and standard deviation the images have those, else the
        data's own.

        Args:
            train_data: as for `fit`.
            eval_data: as for `fit`.

        Raises:
            UserError: for data that cannot be used, or that have another number of classes.
        """
        common = self._common_normalisation()
        data = open_data(
            train_data,
            eval_data,
            self.config,
            image_size=self.image_size,
            in_chans=self.in_chans,
            mean=common.mean if common else None,
            std=common.std if common else None,
            num_classes=self.num_classes,
        )
        if data.num_classes is not None and data.num_classes != self.num_classes:
            raise UserError(
                f"data: {name_of(train_data)} has {data.num_classes} classes, the models have {self.num_classes}: "
                f"build them with num_classes={data.num_classes}"
            )
        return data

    def description(self) -> dict[str, Any]:
        """What `from_checkpoint` needs to build the same again, as JSON values."""
        return {
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "image_size": self.image_size,
            "feature_layers": self.feature_layers,
            "edges": [[edge.source, edge.learner] for edge in self.edges],
            "frozen": list(self.frozen),
            "config": self.config.to_dict(),
            "models": [describe_model(model) for model in self.peers],
        }

    def _open_for_training(self, train_data: Any, eval_data: Any) -> Data:
        """The data, after a look at whether batches are large enough, and images enough for what is recorded."""
        learners = [model for k, model in enumerate(self.models) if k not in self.frozen]
        parts = self.accelerator.num_processes * self.config.grad_accum_steps
        check_batchnorm_batches(learners, self.config.batch_size // parts, synchronised=self.config.sync_batchnorm)
        data = self.open_data(train_data, eval_data)
        if self.config.similarity_images:
            check_image_count(len(data.evaluation))
        return data

    def _begin(self, train_data: Any, eval_data: Any, data: Data, license: str | None) -> RunProvenance:
        """Remembers what is trained on, and has every model given images normalised as it wants them."""
        self._given = (train_data, eval_data)
        self.provenance = RunProvenance(
            name_of(train_data),
            sources_of(train_data, eval_data),
            data.class_names,
            data.mean,
            data.std,
            license,
            History(),
        )
        self._adapt_inputs(self.provenance.normalisation)
        return self.provenance

    def _circumstances(self, data: Data) -> dict[str, Any]:
        """What a run's folder says of it besides the description, as JSON values."""
        return {
            "taps": describe_taps(self._modules.tapped),
            "data": {"name": self.provenance.data if self.provenance else None, **data.description()},
            "device": device_name(self.accelerator.device),
            "processes": self.accelerator.num_processes,
        }

    def _autocast(self) -> torch.autocast:
        device = self.accelerator.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.mixed_precision == "bf16")

    def _common_normalisation(self) -> Normalisation | None:
        wanted = {model.normalisation for model in self.peers}
        return wanted.pop() if len(wanted) == 1 else None

    def _adapt_inputs(self, shared: Normalisation) -> None:
        for model, tapped in zip(self.peers, self._modules.tapped, strict=True):
            tapped.adapter.set_normalisations(shared, model.normalisation or shared)
            tapped.adapter.to(self.accelerator.device)  # once: a copy in every forward would wait for it

    def _signature(self, fingerprint: str | None) -> dict[str, Any]:
        """What a checkpoint and the run that resumes it must agree in."""
        return {**self.description(), "config": self.config.defining(), "data": fingerprint}

    def _publication(self, index: int, which: Which, license: str | None) -> ModelCardInfo:
        return model_card_info(
            self.peers,
            index,
            self.provenance,
            self.config,
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            which=which,
            license=license,
        )


def _layers_from_json(layers: Any) -> Any:
    return {int(key): value for key, value in layers.items()} if isinstance(layers, dict) else layers
