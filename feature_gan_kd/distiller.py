"""`OnlineAdversarialDistiller`: the public interface. It connects the parts of the package and delegates to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from feature_gan_kd.analysis.model_tables import summarize
from feature_gan_kd.config.distill_config import DistillConfig, override_settings
from feature_gan_kd.config.run_file import RunFile, read_run_file
from feature_gan_kd.export import save_models
from feature_gan_kd.export.card import ExportFormat
from feature_gan_kd.export.services import services_of
from feature_gan_kd.method.topology import Edge, TopologyName
from feature_gan_kd.models.peer import Peer, PeerModel
from feature_gan_kd.models.tapped_model import Layer, MapShape
from feature_gan_kd.training import checkpoint_files, class_names, run
from feature_gan_kd.training.callbacks import Callback
from feature_gan_kd.training.checkpoint_contents import checkpointed_arguments
from feature_gan_kd.training.evaluate_group import evaluate_group
from feature_gan_kd.training.from_run_file import complete_fit, distiller_arguments
from feature_gan_kd.training.history import History, Which
from feature_gan_kd.training.peer_group import PeerGroup


class OnlineAdversarialDistiller:
    """Trains several models that teach each other by their logits and by the distribution of their feature maps.

    Args:
        models: at least two: timm, `hf-hub:` and `local-dir:` names, modules, or a `Peer` of one with own settings.
        num_classes: of models built by name; None keeps each one's own number.
        in_chans: channels of the images, for which models are built by name; trained ones see `docs/data.md`.
        pretrained: load trained weights into models built by name; modules have trained weights, too.
        feature_layers: where feature maps are taken: a layer's name or the index of a timm stage, a list of several,
            or a mapping from a model's position to either. None finds the last map before pooling.
        topology: who teaches whom: `cycle` (the paper's), `complete`, `star`, or edges `(source, learner)`.
        frozen: positions of models that only teach.
        discriminator: a function from a map's shape (channels, height, width) to a module that answers once per map,
            (batch,), or patch, (batch, patches): in (0, 1) for adversarial_loss `paper`, else any number; None: ours.
        config: every other setting.
        accelerator: devices and processes; None makes one.
        **overrides: single settings of `config`, by name.

    Attributes:
        models: the torch modules, in order.
        names: a short name for each model.
        edges: who teaches whom.
        discriminators: one for each edge and tap; empty where the method has no adversarial term.
        transfers: transfer layers, one for each edge and tap; identity where the channels match.
        config: the settings in force.
        image_size: side in pixels of the images.

    Raises:
        UserError: for arguments that cannot be used, in one line.
    """

    def __init__(
        self,
        models: Sequence[str | nn.Module | Peer | PeerModel],
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
        self.group = group = PeerGroup(
            models,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            feature_layers=feature_layers,
            topology=topology,
            frozen=frozen,
            discriminator=discriminator,
            config=override_settings(config, overrides),
            accelerator=accelerator,
        )
        self.models, self.names, self.edges = group.models, group.names, group.edges
        self.image_size, self.step, self.accelerator = group.image_size, group.step, group.accelerator
        self.discriminators, self.transfers = group.discriminators, group.transfers
        self.run_file: RunFile | None = None

    @property
    def config(self) -> DistillConfig:
        """The settings in force."""
        return self.group.config

    def summary(self) -> str:
        """Tables of the models (parameters, what they answer, taps) and of who teaches whom by which loss terms."""
        return summarize(self.names, self.group.modules, self.config)

    def training_step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Updates every model, discriminator and transfer layer by one batch, without copies to the host.

        Args:
            images: float (batch, channels, height, width), this process's share of the batch; normalised with the
                config's mean and std, after `fit` as its data were, and else taken as they are by every model.
            labels: (batch,) class indices, -1 for none, or (batch, classes) probabilities; not used with labels=False.

        Returns:
            Detached scalars on the device, by name, see the page "Watching a run".

        Raises:
            UserError: for a batch that it cannot learn from, too little memory, or (`check_processes`) unequal weights.
        """
        class_names.check_class_order(self.group)
        return self.group.training_step(*self.group.check_batch(images, labels))

    def fit(
        self,
        train_data: Any = None,
        eval_data: Any = None,
        *,
        unlabeled_data: Any = None,
        train_transform: Callable[[Any], Any] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output_dir: str | Path | None = None,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
        log_with: str | Sequence[str] = (),
        progress: bool = True,
        license: str | None = None,
    ) -> History:
        """Trains all models together.

        Args:
            train_data: a name, a path or an object, see `docs/data.md`; None is the bundled digits.
            eval_data: likewise; None takes the evaluation split of `train_data`, or holds a fifth of it out.
            unlabeled_data: images without labels to train on besides; a name, a path or a data set of `datasets`.
            train_transform: of your own for each training image, in place of the augmentation, see `docs/data.md`.
            epochs: passes over the training images; None as in the config.
            batch_size: images of one update over all processes; None as in the config.
            mean: per channel, of pixels in [0, 1]; None as in the config; std likewise.
            output_dir: for `config.json`, `metrics.jsonl`, `checkpoints/` and `networks/`; None writes nothing.
            resume: go on from the newest checkpoint in `output_dir`, if there is one.
            callbacks: called in this order, before progress, trackers and records.
            log_with: Accelerate's trackers to start, by name (`tensorboard`, `wandb`, ...), besides those that run.
            progress: print notes on the data, and the progress, to stderr.
            license: of the published weights; None keeps that of pretrained ones.

        Returns:
            A record for each epoch, and the best epoch of each model.

        Raises:
            UserError: for data, folders or checkpoints that cannot be used.
            DivergedError: where `max_nonfinite_steps` updates in a row had a loss or a gradient that is not finite.
            Interrupted: a `KeyboardInterrupt`, where Ctrl-C or SIGTERM stopped the training, after a checkpoint.
        """
        run.change_settings(self.group, epochs=epochs, batch_size=batch_size, mean=mean, std=std)
        of_data = train_transform, unlabeled_data
        kept = run.RunOptions(output_dir, resume, callbacks, log_with, progress, license, *of_data)
        return run.fit(self.group, *complete_fit(self.run_file, train_data, eval_data, kept), services_of(self.group))

    def evaluate(self, data: Any = None) -> dict[str, Any]:
        """Measures each model, its averaged weights, and the ensemble (mean of the logits).

        Args:
            data: as `eval_data` of `fit`, also of some classes alone; None takes that of the last training.

        Returns:
            By model `accuracy`, `top5`, `macro_f1`, `class_accuracy` (percent), `cross_entropy` (nats) and `confusions`
            (label, answer, images); `ensemble` (percent), `ensemble_scores`, `images`, `class_images`; `ema`, the same.

        Raises:
            UserError: for data that cannot be used, or that are not known any more.
        """
        return evaluate_group(self.group, run.open_evaluation_images(self.group, data)).to_dict()

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        which: Which = "last",
        format: ExportFormat = "safetensors",
        license: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> list[Path]:
        """Publishes every model into a folder of its own, with labels and preprocessing.

        Args:
            directory: for the folders `<index>-<name>`.
            which: `ema` writes the averaged weights that there are, `last` and `best` the models' present ones.
            format: `safetensors`, which timm loads, or a graph that runs without timm: `onnx`, `torch-export`.
            license: of the weights; None takes what `fit` was given, else that of pretrained weights.
            mean: that the images of your own loop were normalised with, where the distiller was not told; std likewise.

        Returns:
            The folders.

        Raises:
            UserError: for a folder that cannot be written, an unknown normalisation, or a model that would be another.
        """
        return save_models.save_models(self.group, Path(directory), which, format, license, (mean, std))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        model: int,
        which: Which = "last",
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Publishes one model on the Hugging Face hub.

        Args:
            repo_id: `owner/name`.
            model: its position.
            which: as for `save_pretrained`.
            private: make a new repository private.
            token: of the hub; None takes that of the login on this machine.
            license: as for `save_pretrained`.
            mean: as for `save_pretrained`; std likewise.

        Raises:
            UserError: for a position without a model, without internet access, or with a wrong token.
        """
        card_info = save_models.model_card_info(self.group, model, which, license, (mean, std))
        save_models.push_model(self.group, repo_id, model, card_info, private=private, token=token)

    def save_checkpoint(self, directory: str | Path) -> None:
        """Writes everything that training changes (models, discriminators, transfers, optimisers) into one folder.

        Args:
            directory: the folder; an existing one is replaced.

        Raises:
            UserError: where it cannot be written.
        """
        self.group.save_checkpoint(Path(directory))

    @classmethod
    def from_config(cls, path: str | Path, **changes: Any) -> OnlineAdversarialDistiller:
        """Builds the distiller of a run file; `fit` then takes the data, the folder, ... of the file if given none.

        Args:
            path: of the file, YAML, TOML or JSON; also the `config.json` of a run.
            **changes: arguments and settings that replace the file's, by name.

        Raises:
            UserError: where the file cannot be used, in one line that names the line of the file.
        """
        file = read_run_file(Path(path))
        distiller = cls(**distiller_arguments(file, changes))
        distiller.run_file = file
        return distiller

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        models: Sequence[nn.Module] | None = None,
        discriminator: Callable[[MapShape], nn.Module] | None = None,
        accelerator: Accelerator | None = None,
    ) -> OnlineAdversarialDistiller:
        """Builds the distiller that wrote a checkpoint, in the state that it had.

        Args:
            directory: a folder that `save_checkpoint` or `fit` wrote.
            models: all models, in order, where timm cannot build them; they get the weights of the checkpoint.
            discriminator: as it was given to the distiller that wrote the checkpoint.
            accelerator: devices and processes; None makes one.

        Raises:
            UserError: where the checkpoint is damaged, or is one of other models.
        """
        folder = Path(directory)
        state, about = checkpoint_files.load(folder, None), checkpoint_files.read_signature(folder)
        distiller = cls(**checkpointed_arguments(about, models), discriminator=discriminator, accelerator=accelerator)
        checkpoint_files.check_signature(folder, distiller.group.signature(about["data"], about["class_names"]))
        distiller.group.load_state(state)
        return distiller

    def load_best(self, run: str | Path) -> None:
        """Loads each model's weights of its best epoch.

        Args:
            run: the `output_dir` of a `fit` of these models.

        Raises:
            UserError: where they are not there, or are those of other models.
        """
        class_names.load_best(self.group, Path(run))
