"""`OnlineAdversarialDistiller`: wires networks, taps, discriminators and optimisers, and delegates."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from feature_gan_kd import checkpoint, processes
from feature_gan_kd.adversary import Link
from feature_gan_kd.callbacks import Callback, JsonLines, ProgressLine
from feature_gan_kd.config import DistillConfig
from feature_gan_kd.data import Data, ImageSource, open_data, open_evaluation
from feature_gan_kd.errors import UserError
from feature_gan_kd.evaluate import Evaluation, evaluate
from feature_gan_kd.export import Publication, RebuildError, publish, publish_bare, push
from feature_gan_kd.features import Layer
from feature_gan_kd.loop import Fit, History
from feature_gan_kd.networks import Network, build_architecture, build_networks
from feature_gan_kd.optimizers import build_schedules
from feature_gan_kd.summary import draw
from feature_gan_kd.topology import Edge, TopologyName, build_edges
from feature_gan_kd.wiring import build_step, wire

BUNDLED = "bundled digits"
IMAGENET_SIZE = 224
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Lesson:
    """What the networks were last trained on, for their cards and for evaluating them again.

    Attributes:
        data: its name, or its type where it was given as an object.
        sources: the names of the training data (None: the bundled digits) and of the evaluation data (None: of the
            training data's own); None where one of them was given as an object.
        class_names: by class index, where the data have names.
        mean: per channel, what the images were normalised with.
        std: likewise.
        license: of the weights, as the user told.
        history: of the training.
    """

    data: str
    sources: tuple[str | None, str | None] | None
    class_names: list[str] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str | None
    history: History


class OnlineAdversarialDistiller:
    """Several networks that teach each other by logits and by the distribution of their feature maps.

    Args:
        models: at least two: timm names (also `hf-hub:` and `local-dir:` names) or any modules.
        num_classes: of networks built by name; None keeps each one's own.
        in_chans: input channels of networks built by name.
        pretrained: start networks built by name from their trained weights.
        feature_layers: where to take the maps; None finds the last one before pooling. A layer's name or the
            index of a timm stage, a list of several, or a mapping from a network's position to either.
        topology: `cycle` (the paper's), `complete`, `star`, or explicit edges `(source, learner)`.
        frozen: positions of networks that only teach.
        config: every other setting.
        accelerator: devices and processes; made where none is given.
        **overrides: settings of `config` to change, by name.

    Attributes:
        models: the networks' own modules, in order.
        names: a short name per network.
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
        models: Sequence[str | nn.Module],
        *,
        num_classes: int | None = None,
        in_chans: int = 3,
        pretrained: bool = False,
        feature_layers: Layer | Sequence[Layer] | Mapping[int, Layer | Sequence[Layer]] | None = None,
        topology: TopologyName | Sequence[Edge | tuple[int, int]] = "cycle",
        frozen: Collection[int] = (),
        config: DistillConfig | None = None,
        accelerator: Accelerator | None = None,
        **overrides: Any,
    ) -> None:
        config = (config or DistillConfig()).replace(**overrides)
        if config.recipe == "auto":
            config = config.replace(recipe="finetune" if pretrained else "paper")
        self.config = config
        self.networks = build_networks(
            models,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            image_size=config.image_size,
            seed=config.seed,
        )
        self.frozen = tuple(sorted(frozen))
        self.edges = build_edges(topology, len(self.networks), self.frozen)
        self.in_chans = in_chans
        self.image_size = config.image_size or _own_size(self.networks)
        self.accelerator = _checked(accelerator or Accelerator())
        if self.accelerator.mixed_precision == "bf16":  # as `accelerate launch` was told
            self.config = config = config.replace(mixed_precision="bf16")
        self.lesson: Lesson | None = None
        self._given: tuple[Any, Any] | None = None
        self.feature_layers = feature_layers
        self._place()
        self._wiring = wire(
            self.networks,
            self.edges,
            self.frozen,
            feature_layers,
            config,
            image_size=self.image_size,
            in_chans=in_chans,
        )
        self.num_classes = self._wiring.num_classes
        processes.copy_from_first([*self.models, *self.links])
        if config.compile:
            for network in self._wiring.tapped:
                network.compile_forward()
        self.step = build_step(self._wiring, config, self._autocast)

    @property
    def models(self) -> list[nn.Module]:
        """The networks' own modules, in order."""
        return [network.module for network in self.networks]

    @property
    def names(self) -> list[str]:
        """A short name per network."""
        return [network.name for network in self.networks]

    @property
    def links(self) -> list[Link]:
        """Transfer layer and discriminator per edge and tap, in the order of the edges."""
        return self._wiring.links

    @property
    def discriminators(self) -> nn.ModuleList:
        """One discriminator per edge and tap, in the order of the edges."""
        return nn.ModuleList([link.discriminator for link in self.links if link.discriminator is not None])

    @property
    def transfers(self) -> nn.ModuleList:
        """One transfer layer per edge and tap, in the order of the edges."""
        return nn.ModuleList([link.transfer for link in self.links])

    def summary(self) -> str:
        """The wiring as text: networks, taps, map shapes, parameters, and who teaches whom through what."""
        return draw(
            self.names,
            self._wiring.tapped,
            self.links,
            self.edges,
            self.frozen,
            image_size=self.image_size,
            logits=self.config.objective.logit_weight > 0,
        )

    def training_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One whole update of every network, discriminator and transfer layer.

        Nothing is copied to the host; every process must call it with its share of the batch.

        Args:
            images: (batch, channels, height, width), normalised.
            labels: (batch,) class indices, or (batch, classes) probabilities.

        Returns:
            Detached scalars, see `AdversarialStep`.

        Raises:
            UserError: where a network's map is not the one that the wiring was built for.
        """
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        images = images.to(self.accelerator.device, non_blocking=True, memory_format=layout)
        return self.step(images, labels.to(self.accelerator.device, non_blocking=True))

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
        license: str | None = None,
    ) -> History:
        """Trains all networks together.

        Args:
            train_data: a hub name, a local folder or file, a `datasets.Dataset` or `DatasetDict`, a torch
                `Dataset` or a `DataLoader`; None is the bundled digits.
            eval_data: likewise; None takes the evaluation split of `train_data`, or holds a fifth of it out.
            epochs: passes over the training images; None as in the config.
            batch_size: images of one update over all processes; None as in the config.
            output_dir: of `config.json`, `metrics.jsonl`, `checkpoints/` and `networks/`; None writes nothing.
            resume: go on from the newest checkpoint in `output_dir`, if there is one.
            callbacks: who else hears of the run.
            license: of the published weights; None inherits that of pretrained ones.

        Returns:
            A record per epoch and the best of each network.

        Raises:
            UserError: for data, folders or checkpoints that cannot be used, in one line.
        """
        changes = {"epochs": epochs, "batch_size": batch_size}
        self.config = self.config.replace(**{key: value for key, value in changes.items() if value is not None})
        folder = None if output_dir is None else usable_folder(Path(output_dir), resume)
        data = self.open_data(train_data, eval_data)
        self._given = (train_data, eval_data)
        sources = _sources(train_data, eval_data)
        self.lesson = Lesson(_named(train_data), sources, data.class_names, data.mean, data.std, license, History())
        heard: list[Callback] = [ProgressLine(data.notes), *callbacks]
        self.accelerator.wait_for_everyone()  # all have looked at the folder
        if folder is not None:
            if self.accelerator.is_main_process:
                self._describe_run(folder, data)
            heard.append(JsonLines(folder / "metrics.jsonl"))
        self.accelerator.wait_for_everyone()
        fit = Fit(
            trainee=self,
            data=data,
            config=self.config,
            schedules=build_schedules(
                {kind: update.optimizer for kind, update in self.step.updates.items()},
                self.config,
                data.train.steps(self.config.batch_size) * self.config.epochs,
            ),
            accelerator=self.accelerator,
            callbacks=heard,
            output_dir=folder,
            signature=self._signature(data.fingerprint),
            names=self.names,
            history=self.lesson.history,
        )
        return fit.run(resume)

    def evaluate(self, data: Any = None) -> dict[str, Any]:
        """Top-1 accuracy in percent per network and of the ensemble (mean of the logits).

        Args:
            data: as `eval_data` of `fit`; its evaluation split is taken. None is what the last training was
                evaluated on.

        Returns:
            `accuracy` and `loss` (lists, by network), `ensemble`, `images`.

        Raises:
            UserError: for data that cannot be used, or that are not known any more.
        """
        mean, std = self.normalisation()
        trained_on = False
        if data is None:
            train_data, data = self._given or self._remembered()
            trained_on = data is None
            data = train_data if trained_on else data
        source, _ = open_evaluation(
            data,
            self.config,
            image_size=self.image_size,
            in_chans=self.in_chans,
            mean=mean,
            std=std,
            class_names=self.lesson.class_names if self.lesson else None,
            num_classes=self.num_classes,
            trained_on=trained_on,
        )
        return dataclasses.asdict(self.evaluate_source(source))

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel that these networks' images are normalised with.

        Those of the training data, or before any training those of the pretrained networks.

        Raises:
            UserError: where neither is known.
        """
        if self.lesson is not None:
            return self.lesson.mean, self.lesson.std
        wanted = self._pretrained_normalisation()
        if wanted is None:
            raise UserError("evaluate: the mean and std of these networks' images are not known yet: fit first")
        return wanted

    def save_pretrained(
        self, directory: str | Path, *, which: Literal["last", "best"] = "last", license: str | None = None
    ) -> list[Path]:
        """Publishes every network: one folder each that plain timm loads.

        Args:
            directory: of the folders `<index>-<name>`.
            which: said on the card; the weights are those that the networks have now.
            license: of the weights; None keeps what `fit` was told, else inherits that of pretrained weights.

        Returns:
            The folders.

        Raises:
            UserError: where a folder cannot be written, or timm would rebuild another network.
        """
        folders = [Path(directory) / f"{index}-{name}" for index, name in enumerate(self.names)]
        processes.average_buffers(self.models)
        if self.accelerator.is_main_process:
            for index, folder in enumerate(folders):
                self._write(index, folder, which, license)
        self.accelerator.wait_for_everyone()
        return folders

    def push_to_hub(
        self,
        repo_id: str,
        *,
        network: int,
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
    ) -> None:
        """Publishes one network on the Hugging Face hub.

        Args:
            repo_id: `owner/name`.
            network: its position.
            private: make a new repository private.
            token: of the hub; None takes the one that is logged in.
            license: as for `save_pretrained`.

        Raises:
            UserError: without network, or with a wrong token; what was saved locally stays.
        """
        publication = self._publication(network, "last", license)
        push(self.models[network], repo_id, publication, private=private, token=token)

    def save_checkpoint(self, directory: str | Path) -> None:
        """Writes the whole state (networks, discriminators, transfers, optimisers) as one verified folder.

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
        cls, directory: str | Path, models: Sequence[nn.Module] | None = None, accelerator: Accelerator | None = None
    ) -> OnlineAdversarialDistiller:
        """Builds the distiller that wrote a checkpoint, with the state it had.

        Args:
            directory: a folder that `save_checkpoint` or `fit` wrote.
            models: the networks, in order, where timm cannot build them; their weights are replaced.
            accelerator: devices and processes.

        Raises:
            UserError: where the checkpoint is damaged, or is one of other networks.
        """
        folder = Path(directory)
        state = checkpoint.load(folder, None)
        about = checkpoint.signature_of(folder)
        distiller = cls(
            models or [_rebuilt(one, about) for one in about["models"]],
            num_classes=about["num_classes"],
            in_chans=about["in_chans"],
            feature_layers=_layers_from_json(about["feature_layers"]),
            topology=[(source, learner) for source, learner in about["edges"]],
            frozen=about["frozen"],
            config=DistillConfig.from_dict({**about["config"], "image_size": about["image_size"]}),
            accelerator=accelerator,
        )
        distiller.config = DistillConfig.from_dict(about["config"])  # where the size may be the networks' own
        for network, one in zip(distiller.networks, about["models"], strict=True):
            network.pretrained, network.model_args = one["pretrained"], one["model_args"]
        checkpoint.check_signature(folder, distiller._signature(about["data"]))
        distiller.load_state(state)
        return distiller

    def load_best(self, run: str | Path) -> None:
        """Takes up each network's weights of its best epoch in the run of that folder.

        Raises:
            UserError: where they are not there, or are those of other networks.
        """
        for index, (name, module) in enumerate(zip(self.names, self.models, strict=True)):
            checkpoint.load_weights(module, Path(run) / "networks" / f"{index}-{name}-best")

    # What the loop calls.

    def evaluate_source(self, source: ImageSource) -> Evaluation:
        """Evaluates on every image of `source` once; the same figures on every process."""
        processes.average_buffers(self.models)
        batches = source.batches(
            batch_size=EVALUATION_BATCH * self.accelerator.num_processes,
            seed=0,
            epoch=0,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
            train=False,
        )
        return evaluate(self.models, batches, add_up=processes.sum_over_processes, autocast=self._autocast)

    def state(self) -> checkpoint.Checkpoint:
        """Everything that training changes: tensors by component, the rest as JSON values."""
        processes.average_buffers(self.models)
        tensors = {f"network-{k}": dict(module.state_dict()) for k, module in enumerate(self.models)}
        tensors |= {f"link-{i}": dict(link.state_dict()) for i, link in enumerate(self.links) if link.state_dict()}
        groups = {}
        for kind, update in self.step.updates.items():
            tensors[f"optimizer-{kind}"], groups[kind] = checkpoint.optimizer_state(update.optimizer)
        lesson = None if self.lesson is None else dataclasses.asdict(self.lesson)
        return checkpoint.Checkpoint(tensors, {"groups": groups, "lesson": lesson})

    def load_state(self, state: checkpoint.Checkpoint) -> None:
        """The inverse of `state`."""
        for k, module in enumerate(self.models):
            module.load_state_dict(state.tensors[f"network-{k}"])
        for i, link in enumerate(self.links):
            link.load_state_dict(state.tensors.get(f"link-{i}", {}))
        for kind, update in self.step.updates.items():
            checkpoint.load_optimizer_state(
                update.optimizer, state.tensors[f"optimizer-{kind}"], state.meta["groups"][kind]
            )
        lesson = state.meta["lesson"]
        if self.lesson is None and lesson is not None:
            self.lesson = Lesson(
                **{
                    **lesson,
                    "sources": lesson["sources"] and tuple(lesson["sources"]),
                    "mean": tuple(lesson["mean"]),
                    "std": tuple(lesson["std"]),
                    "history": History(**lesson["history"]),
                }
            )

    def publish(self, index: int, which: Literal["last", "best"], folder: Path) -> None:
        """Writes network `index` into a run's folder as users get it."""
        self._write(index, folder, which, None)

    def open_data(self, train_data: Any, eval_data: Any = None) -> Data:
        """Opens data as these networks want them: size, channels, normalisation.

        Pretrained networks keep the mean and standard deviation of their training; others get the data's own.

        Raises:
            UserError: for data that cannot be used, or that have another number of classes.
        """
        mean, std = self._pretrained_normalisation() or (None, None)
        data = open_data(
            train_data,
            eval_data,
            self.config,
            image_size=self.image_size,
            in_chans=self.in_chans,
            mean=mean,
            std=std,
            num_classes=self.num_classes,
        )
        if data.num_classes is not None and data.num_classes != self.num_classes:
            raise UserError(
                f"data: {_named(train_data)} has {data.num_classes} classes, the networks have {self.num_classes}: "
                f"build them with num_classes={data.num_classes}"
            )
        return data

    def description(self) -> dict[str, Any]:
        """What `from_checkpoint` needs to build the same again, as JSON values."""
        return {
            "models": [
                {
                    "architecture": network.architecture,
                    "name": network.name,
                    "pretrained": network.pretrained,
                    "model_args": network.model_args,
                    "tensors": _shapes_digest(network.module),
                }
                for network in self.networks
            ],
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "image_size": self.image_size,
            "feature_layers": self.feature_layers,
            "edges": [[edge.source, edge.learner] for edge in self.edges],
            "frozen": list(self.frozen),
            "config": self.config.to_dict(),
        }

    def _place(self) -> None:
        for k, module in enumerate(self.models):
            module.to(self.accelerator.device)
            if self.config.channels_last:
                module.to(memory_format=torch.channels_last)
            if k in self.frozen:
                module.eval()

    def _autocast(self) -> torch.autocast:
        device = self.accelerator.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.mixed_precision == "bf16")

    def _pretrained_normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        wanted = [network.preprocessing for network in self.networks if network.pretrained]
        return (tuple(wanted[0]["mean"]), tuple(wanted[0]["std"])) if wanted else None

    def _remembered(self) -> tuple[str | None, str | None]:
        """The data of a training whose checkpoint was loaded; the bundled digits before any training."""
        if self.lesson is None:
            return None, None
        if self.lesson.sources is None:
            raise UserError(f"evaluate: the {self.lesson.data} of the training is not there any more: give data")
        return self.lesson.sources

    def _signature(self, fingerprint: str | None) -> dict[str, Any]:
        """What a checkpoint and the run that resumes it must agree in."""
        return {**self.description(), "config": self.config.defining(), "data": fingerprint}

    def _describe_run(self, folder: Path, data: Data) -> None:
        """Writes what a new run is: its wiring, settings, data and versions."""
        if checkpoint.newest(folder / "checkpoints"):
            return
        about = {**self.description(), "data": _named_data(self.lesson, data), "versions": _versions()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"output_dir: {folder} cannot be written ({error.strerror}): choose another") from None

    def _write(self, index: int, folder: Path, which: Literal["last", "best"], license: str | None) -> None:
        publication = self._publication(index, which, license)
        try:
            publish(self.models[index], folder, publication)
        except RebuildError as error:
            if self.accelerator.is_main_process:
                print(f"{error}; the bare weights are in {folder}", file=sys.stderr)
            publish_bare(self.models[index], folder, publication)

    def _publication(self, index: int, which: Literal["last", "best"], license: str | None) -> Publication:
        network, lesson = self.networks[index], self.lesson
        own = network.preprocessing
        record = lesson.history.epochs[-1] if lesson and lesson.history.epochs else None
        if record is not None and lesson is not None and which == "best":
            record = lesson.history.epochs[lesson.history.best[index]["epoch"] - 1]
        return Publication(
            architecture=network.architecture,
            index=index,
            num_classes=self.num_classes,
            class_names=lesson.class_names if lesson else None,
            image_size=self.image_size,
            in_chans=self.in_chans,
            mean=tuple(lesson.mean if lesson else own.get("mean", (0.0,) * self.in_chans)),
            std=tuple(lesson.std if lesson else own.get("std", (1.0,) * self.in_chans)),
            method=self.config.method,
            peers=[name for k, name in enumerate(self.names) if k != index],
            data=lesson.data if lesson else "nothing yet",
            accuracy=record["accuracy"][index] if record else None,
            ensemble=record["ensemble"] if record else None,
            epochs=record["epoch"] if record else None,
            recipe=self.config.to_dict(),
            which=which,
            license=license or (lesson.license if lesson else None),
            pretrained=network.pretrained,
            model_args=network.model_args,
        )


def _own_size(networks: Sequence[Network]) -> int:
    sizes = [network.preprocessing["input_size"][-1] for network in networks if network.preprocessing]
    return int(sizes[0]) if sizes else IMAGENET_SIZE


def usable_folder(folder: Path, resume: bool) -> Path:
    """The folder, if a run may be kept there; to be asked before anything is read or built.

    Raises:
        UserError: where it holds a run that is not to be resumed, or cannot be written.
    """
    try:
        holds_run = (folder / "config.json").exists()
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        reason = None if os.access(existing, os.W_OK | os.X_OK) else f"no permission for {existing}"
        reason = reason if existing.is_dir() else f"{existing} is no folder"
    except OSError as error:
        holds_run, reason = False, str(error.strerror)
    if holds_run and not resume:
        raise UserError(f"output_dir: {folder} already holds a run: resume it (--resume) or choose another folder")
    if reason is not None:
        raise UserError(f"output_dir: {folder} cannot be written ({reason}): choose another folder")
    return folder


def _sources(train_data: Any, eval_data: Any) -> tuple[str | None, str | None] | None:
    """The names of the data, if all of it was named."""
    train, own = (None if data is None else str(data) for data in (train_data, eval_data))
    named = all(data is None or isinstance(data, (str, Path)) for data in (train_data, eval_data))
    return (train, own) if named else None


def _named(data: Any) -> str:
    if data is None:
        return BUNDLED
    return str(data) if isinstance(data, (str, Path)) else type(data).__name__


def _named_data(lesson: Lesson | None, data: Data) -> dict[str, Any]:
    return {
        "name": lesson.data if lesson else None,
        "fingerprint": data.fingerprint,
        "train_images": len(data.train),
        "evaluation_images": len(data.evaluation),
        "mean": data.mean,
        "std": data.std,
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "timm", "accelerate", "datasets", "safetensors")
    return {name: importlib.metadata.version(name) for name in packages}


def _shapes_digest(module: nn.Module) -> str:
    """A short digest of a module's tensor names and shapes."""
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def _rebuilt(one: Mapping[str, Any], about: Mapping[str, Any]) -> nn.Module:
    return build_architecture(
        one["architecture"], num_classes=about["num_classes"], in_chans=about["in_chans"], **one["model_args"]
    )


def _layers_from_json(layers: Any) -> Any:
    return {int(key): value for key, value in layers.items()} if isinstance(layers, dict) else layers


def _checked(accelerator: Accelerator) -> Accelerator:
    unfit = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM, DistributedType.XLA)
    if accelerator.distributed_type in unfit:
        raise UserError(
            f"accelerate: {accelerator.distributed_type.value} takes one model and one gradient per step, the method "
            "needs several of both: launch with plain multi-GPU or multi-CPU"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"accelerate: mixed precision {accelerator.mixed_precision} is not supported, allowed are no and bf16: "
            "fp16 would need a loss scale per gradient"
        )
    return accelerator
