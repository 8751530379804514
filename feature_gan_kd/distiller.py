"""`OnlineAdversarialDistiller`: wires networks, taps, discriminators and optimisers, and delegates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from feature_gan_kd import checkpoint, processes
from feature_gan_kd.adversary import Link, build_links
from feature_gan_kd.callbacks import Callback, JsonLines, ProgressLine
from feature_gan_kd.config import DistillConfig
from feature_gan_kd.data import Data, open_data
from feature_gan_kd.errors import UserError
from feature_gan_kd.evaluate import Evaluation, evaluate
from feature_gan_kd.export import Publication, publish, publish_bare, refusal
from feature_gan_kd.features import Layer, TappedNetwork, find_taps, layers_of, try_out
from feature_gan_kd.loop import Fit, History
from feature_gan_kd.networks import Network, build_networks
from feature_gan_kd.optimizers import build_optimizer, build_schedules
from feature_gan_kd.step import AdversarialStep, Update
from feature_gan_kd.summary import draw
from feature_gan_kd.topology import Edge, TopologyName, build_edges

IMAGENET_SIZE = 224


@dataclass(frozen=True)
class Lesson:
    """What the networks were last trained on, for their cards."""

    data: str
    class_names: list[str] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
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
        self.accelerator = _checked(accelerator or Accelerator(mixed_precision=config.mixed_precision))
        self.lesson: Lesson | None = None
        self._place()
        self._wire(feature_layers)
        self._build_step()

    @property
    def models(self) -> list[nn.Module]:
        """The networks' own modules, in order."""
        return [network.module for network in self.networks]

    @property
    def names(self) -> list[str]:
        """A short name per network."""
        return [network.name for network in self.networks]

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
        return draw(self.names, self.tapped, self.links, self.edges, self.frozen, self.image_size)

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

        Returns:
            A record per epoch and the best of each network.

        Raises:
            UserError: for data, folders or checkpoints that cannot be used, in one line.
        """
        changes = {"epochs": epochs, "batch_size": batch_size}
        config = self.config.replace(**{key: value for key, value in changes.items() if value is not None})
        data = self.open_data(train_data, eval_data, config)
        folder = None if output_dir is None else Path(output_dir)
        history = History()
        self.lesson = Lesson(_named(train_data), data.class_names, data.mean, data.std, history)
        schedules = build_schedules(
            {kind: update.optimizer for kind, update in self.step.updates.items()},
            config,
            data.train.steps(config.batch_size) * config.epochs,
        )
        heard: list[Callback] = [ProgressLine(), *callbacks]
        signature = self.signature(config, data)
        if folder is not None:
            if self.accelerator.is_main_process:
                _prepare_folder(folder, signature, resume)
            heard.append(JsonLines(folder / "metrics.jsonl"))
        self.accelerator.wait_for_everyone()
        fit = Fit(
            trainee=self,
            data=data,
            config=config,
            schedules=schedules,
            accelerator=self.accelerator,
            callbacks=heard,
            output_dir=folder,
            signature=signature,
            names=self.names,
            history=history,
        )
        return fit.run(resume)

    def evaluate(self, data: Any = None) -> dict[str, Any]:
        """Top-1 accuracy in percent per network and of the ensemble (mean of the logits).

        Args:
            data: as for `fit`; its evaluation split is taken.

        Returns:
            `accuracy` and `loss` (lists, by network), `ensemble`, `images`.
        """
        opened = self.open_data(data, None, self.config)
        result = self.evaluate_batches(opened)
        return {
            "accuracy": result.accuracy,
            "loss": result.loss,
            "ensemble": result.ensemble,
            "images": result.images,
        }

    def save_pretrained(self, directory: str | Path, license: str | None = None) -> list[Path]:
        """Publishes every network: one folder each that plain timm loads.

        Args:
            directory: of the folders `<index>-<name>`.
            license: of the weights; None inherits that of the pretrained ones.

        Returns:
            The folders.

        Raises:
            UserError: where a folder cannot be written, or timm would rebuild another network.
        """
        folders = []
        for index, name in enumerate(self.names):
            folder = Path(directory) / f"{index}-{name}"
            self._publish(index, "last", folder, license)
            folders.append(folder)
        return folders

    def save_checkpoint(self, directory: str | Path) -> None:
        """Writes the whole state (networks, discriminators, transfers, optimisers) as one verified folder.

        Args:
            directory: the folder to write; replaced where it exists.
        """
        checkpoint.save(self.state(), Path(directory), self.signature(self.config))

    def load_checkpoint(self, directory: str | Path) -> None:
        """Takes up the state that `save_checkpoint` wrote, after checking all of it.

        Raises:
            UserError: where it is damaged or was written by other networks; nothing is changed then.
        """
        self.load_state(checkpoint.load(Path(directory), self.signature(self.config)))

    # What the loop calls.

    def evaluate_batches(self, data: Data) -> Evaluation:
        """Evaluates on the evaluation images of `data`; the same figures on every process."""
        processes.average_buffers(self.models)
        batches = data.evaluation.batches(
            batch_size=max(self.config.batch_size, 256),
            seed=self.config.seed,
            epoch=0,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
            train=False,
        )
        return evaluate(
            self.models, self._laid_out(batches), add_up=processes.sum_over_processes, autocast=self._autocast
        )

    def state(self) -> checkpoint.Checkpoint:
        """Every tensor that training changes, by component."""
        processes.average_buffers(self.models)
        tensors = {f"network-{k}": dict(module.state_dict()) for k, module in enumerate(self.models)}
        tensors |= {f"link-{i}": dict(link.state_dict()) for i, link in enumerate(self.links) if link.state_dict()}
        groups = {}
        for kind, update in self.step.updates.items():
            tensors[f"optimizer-{kind}"], groups[kind] = checkpoint.optimizer_state(update.optimizer)
        return checkpoint.Checkpoint(tensors, {"groups": groups})

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

    def publish(self, index: int, which: str, folder: Path) -> None:
        """Writes network `index` into a run's folder as users get it."""
        self._publish(index, which, folder, None)

    def signature(self, config: DistillConfig, data: Data | None = None) -> dict[str, Any]:
        """What a checkpoint and the run that resumes it must agree in."""
        return {
            "networks": [
                {"name": network.architecture, "tensors": _shapes_digest(network.module)} for network in self.networks
            ],
            "edges": [str(edge) for edge in self.edges],
            "frozen": list(self.frozen),
            "classes": self.num_classes,
            "image size": self.image_size,
            "data": None if data is None else data.fingerprint,
            "settings": config.defining(),
        }

    def open_data(self, train_data: Any, eval_data: Any = None, config: DistillConfig | None = None) -> Data:
        """Opens data as these networks want them: size, channels, normalisation.

        Pretrained networks keep the mean and standard deviation of their training; others get the data's own.
        """
        wanted = [network.preprocessing for network in self.networks if network.pretrained]
        mean, std = (tuple(wanted[0][key]) for key in ("mean", "std")) if wanted else (None, None)
        data = open_data(
            train_data,
            eval_data,
            config or self.config,
            image_size=self.image_size,
            in_chans=self.in_chans,
            mean=mean,
            std=std,
        )
        if data.num_classes is not None and data.num_classes != self.num_classes:
            raise UserError(
                f"data: {_named(train_data)} has {data.num_classes} classes, the networks have {self.num_classes}: "
                f"build them with num_classes={data.num_classes}"
            )
        return data

    # Wiring.

    def _place(self) -> None:
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        for k, module in enumerate(self.models):
            module.to(self.accelerator.device)
            if self.config.channels_last:
                module.to(memory_format=layout)
            if k in self.frozen:
                module.eval()

    def _wire(self, feature_layers: Any) -> None:
        objective = self.config.objective
        needs_maps = objective.has_feature_loss or objective.feature_update
        size = (2, self.in_chans, self.image_size, self.image_size)
        parameter = next(self.models[0].parameters())
        images = torch.zeros(size, device=parameter.device, dtype=parameter.dtype)
        self.tapped: list[TappedNetwork] = []
        self.extractors: list[set[nn.Parameter]] = []
        classes = []
        for k, network in enumerate(self.networks):
            name = f"network {k} ({network.name})"
            taps = find_taps(network.module, images, name, layers_of(feature_layers, k)) if needs_maps else []
            self.tapped.append(TappedNetwork(network.module, taps, name))
            trial = try_out(self.tapped[k], images)
            self.extractors.append(trial.extractor)
            classes.append(trial.classes)
        if len(set(classes)) > 1:
            raise UserError(f"models: the networks have {classes} classes: build them with one num_classes")
        self.num_classes = classes[0]
        self.links: list[Link] = []
        if objective.has_feature_loss:
            shapes = [[tap.shape for tap in network.taps] for network in self.tapped]
            self.links = build_links(self.edges, shapes, self.config.seed, adversarial=objective.adversarial_weight > 0)
        for link in self.links:
            link.to(device=parameter.device, dtype=parameter.dtype)
        processes.copy_from_first([*self.models, *self.links])
        if self.config.compile:
            for network in self.tapped:
                network.compile_forward()

    def _build_step(self) -> None:
        objective = self.config.objective
        learners = [k for k in range(len(self.models)) if k not in self.frozen]
        parameters: list[nn.Parameter] = []
        clip_groups = []
        extractors: list[nn.Parameter] = []
        for k in learners:
            own = [parameter for parameter in self.models[k].parameters() if parameter.requires_grad]
            if not own:
                raise UserError(f"network {k} ({self.names[k]}): it has nothing to train: add {k} to frozen")
            clip_groups.append(list(range(len(parameters), len(parameters) + len(own))))
            parameters += own
            extractors += [parameter for parameter in own if parameter in self.extractors[k]]
        extractors += [parameter for link in self.links for parameter in link.transfer.parameters()]
        judges = list(self.discriminators.parameters())

        def update(kind: str, own: list[nn.Parameter]) -> Update:
            return Update(own, build_optimizer(kind, own, self.config))

        self.step = AdversarialStep(
            self.tapped,
            self.edges,
            self.frozen,
            self.links,
            objective,
            logit_update=Update(parameters, build_optimizer("logit", parameters, self.config), clip_groups),
            feature_update=update("feature", extractors) if objective.updates_extractors else None,
            discriminator_update=update("discriminator", judges) if judges else None,
            accumulation_steps=self.config.accumulation_steps,
            clip_grad=self.config.clip_grad,
            autocast=self._autocast,
        )

    def _autocast(self) -> torch.autocast:
        device = self.accelerator.device.type
        enabled = "bf16" in (self.config.mixed_precision, self.accelerator.mixed_precision)
        return torch.autocast(device, dtype=torch.bfloat16, enabled=enabled)

    def _laid_out(self, batches: Any) -> Any:
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        for images, labels in batches:
            yield images.contiguous(memory_format=layout), labels

    def _publish(self, index: int, which: str, folder: Path, license: str | None) -> None:
        network = self.networks[index]
        lesson = self.lesson
        own = network.preprocessing
        history = lesson.history if lesson and lesson.history.epochs else None
        record = history.last if history else {}
        best = which == "best" and history is not None
        publication = Publication(
            architecture=network.architecture,
            index=index,
            num_classes=self.num_classes,
            class_names=lesson.class_names if lesson else None,
            image_size=self.image_size,
            in_chans=self.in_chans,
            mean=lesson.mean if lesson else tuple(own.get("mean", (0.0,) * self.in_chans)),
            std=lesson.std if lesson else tuple(own.get("std", (1.0,) * self.in_chans)),
            method=self.config.method,
            peers=[name for k, name in enumerate(self.names) if k != index],
            data=lesson.data if lesson else "unknown",
            accuracy=history.best[index]["accuracy"] if best and history else _item(record.get("accuracy"), index),
            ensemble=record.get("ensemble"),
            epochs=record.get("epoch"),
            recipe=self.config.to_dict(),
            which="best" if best else "last",
            license=license,
            pretrained=network.pretrained,
            model_args=network.model_args,
        )
        write = publish_bare if refusal(network.module) else publish
        write(network.module, folder, publication)


def _shapes_digest(module: nn.Module) -> str:
    """A short digest of a module's tensor names and shapes."""
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def _item(values: list[float] | None, index: int) -> float | None:
    return None if values is None else values[index]


def _own_size(networks: Sequence[Network]) -> int:
    sizes = [network.preprocessing["input_size"][-1] for network in networks if network.preprocessing]
    return int(sizes[0]) if sizes else IMAGENET_SIZE


def _named(data: Any) -> str:
    if data is None:
        return "bundled digits"
    return str(data) if isinstance(data, (str, Path)) else type(data).__name__


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


def _prepare_folder(folder: Path, about: Mapping[str, Any], resume: bool) -> None:
    """Makes a run's folder and writes what the run is."""
    config = folder / "config.json"
    if config.exists() and not resume:
        raise UserError(f"output_dir: {folder} already holds a run: resume it (--resume) or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written ({error.strerror}): choose another folder") from None
