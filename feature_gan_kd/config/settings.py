"""Every setting of a run: one frozen, validated dataclass, from which the command line's options are made."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from feature_gan_kd.config.methods import METHODS, AdversarialLoss, LossWeights, MethodName
from feature_gan_kd.config.recipes import RECIPES, Recipe, RecipeName, SchedulerName
from feature_gan_kd.config.validation import check, coerce, show
from feature_gan_kd.utils.errors import UserError, closest

Augmentation = Literal["auto", "none", "crop", "crop-flip", "resized-crop"]


def _bounded(
    default: Any, *, at_least: float | None = None, above: float | None = None, at_most: float | None = None
) -> Any:
    bounds = {"at_least": at_least, "above": above, "at_most": at_most}
    return field(default=default, metadata={key: bound for key, bound in bounds.items() if bound is not None})


@dataclass(frozen=True)
class DistillConfig:
    """Every setting of a run. `None` means: as the method or the recipe has it.

    Raises:
        UserError: at construction, for a value of the wrong type or outside its bounds.
    """

    method: MethodName = "afd"
    """Which loss terms act: afd (logits and adversarial maps, the paper), logit (KL, T = 3), dml (KL, T = 1),
    vanilla (each alone), feature (adversarial only), l1/l2 (direct alignment, with KL), l1-only/l2-only,
    zero-gradient (KL, and the adversarial Adam with its decay but no gradient)."""
    temperature: float | None = _bounded(None, above=0)
    """T of the logit term [method's: 3, dml 1]."""
    kl_weight: float | None = _bounded(None, at_least=0)
    """Weight of the logit term [method's]."""
    adversarial_weight: float | None = _bounded(None, at_least=0)
    """Weight of the adversarial term [method's]."""
    adversarial_loss: AdversarialLoss | None = None
    """What discriminators and learners lower: paper (least squares of answers in (0, 1)), least-squares (of unbounded
    answers), hinge, relativistic (of the two maps of an image) [paper]."""
    l1_weight: float | None = _bounded(None, at_least=0)
    """Weight of the L1 difference of the maps [method's]."""
    l2_weight: float | None = _bounded(None, at_least=0)
    """Weight of the L2 difference of the maps [method's]."""

    epochs: int = _bounded(300, at_least=1)
    """Passes over the training images."""
    batch_size: int = _bounded(128, at_least=2)
    """Images in one update, over all processes and accumulation steps together."""
    grad_accum_steps: int = _bounded(1, at_least=1)
    """Parts that a process divides its share of a batch into, to fit memory."""
    seed: int = _bounded(0, at_least=0, at_most=2**31 - 1)
    """Seed of the weights, the order of the images, their augmentation and dropout."""

    recipe: RecipeName = "auto"
    """Defaults of the settings below: paper (from scratch), finetune, auto (finetune for trained weights)."""
    optimizer: str | None = None
    """timm's name of the optimiser of the logit loss [paper: momentum, i.e. SGD with momentum 0.9]."""
    lr: float | None = _bounded(None, above=0)
    """Its learning rate [paper 0.1, finetune 0.01]."""
    momentum: float | None = _bounded(None, at_least=0, at_most=1)
    """Its momentum [0.9]."""
    weight_decay: float | None = _bounded(None, at_least=0)
    """Its weight decay, on every parameter [1e-4]."""
    scheduler: SchedulerName | None = None
    """Its schedule [paper multistep, finetune cosine]."""
    milestones: tuple[float, ...] | None = _bounded(None, above=0, at_most=1)
    """Fractions of the run at which multistep multiplies the rate by 0.1 [0.5 0.75]."""
    warmup_fraction: float | None = _bounded(None, at_least=0, at_most=0.9)
    """Fraction of the run over which the rate rises from zero [paper 0, finetune 0.05]."""
    adversarial_optimizer: Literal["adam", "adamw"] | None = None
    """Optimiser of extractors and discriminators; adam couples the decay (L2), adamw decouples it [adam]."""
    adversarial_lr: float | None = _bounded(None, above=0)
    """Learning rate of the extractors' adversarial optimiser [2e-5]."""
    adversarial_weight_decay: float | None = _bounded(None, at_least=0)
    """Its weight decay [paper 0.1, finetune 0]."""
    adversarial_milestones: tuple[float, ...] | None = _bounded(None, above=0, at_most=1)
    """Fractions of the run at which both adversarial rates are multiplied by 0.1 [0.25 0.5]."""
    adversarial_warmup_fraction: float | None = _bounded(None, at_least=0, at_most=0.9)
    """Fraction of the run over which the extractors' adversarial rate rises from zero, while discriminators learn at
    theirs [0]."""
    discriminator_lr: float | None = _bounded(None, above=0)
    """Learning rate of the discriminators [2e-5]."""
    discriminator_weight_decay: float | None = _bounded(None, at_least=0)
    """Weight decay of the discriminators [0.1]."""
    scale_adversarial_lr: bool = False
    """Multiply both adversarial rates by 117,300 / adversarial updates of this run: Adam moves a weight by at most its
    rate a step, so a run shorter than the paper's has hardly an adversarial term without it."""
    adversarial_interval: int = _bounded(1, at_least=1)
    """Only every so-many-th update, the first among them, compares maps and steps extractors and discriminators:
    cheaper, and another algorithm [1: every one, the paper's]."""
    joint_backward: bool = False
    """Add the gradient of the feature loss to that of the logit loss, in one backward pass and one optimiser: cheaper,
    and another algorithm; adversarial_weight then decides how much it counts."""
    clip_grad: float | None = _bounded(None, above=0)
    """Largest norm of a model's logit gradient [no clipping]."""
    max_nonfinite_steps: int = _bounded(20, at_least=1)
    """Updates in a row that may be skipped, because a loss or a gradient is not finite, before training ends."""

    vectors_as_maps: bool = False
    """Take the vector that a named layer gives as a map of 1x1."""
    discriminator_width: int = _bounded(128, at_least=1)
    """Channels inside a discriminator, at most."""
    discriminator_norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation inside a discriminator; batch is the paper's."""
    discriminator_patches: bool = False
    """Discriminators answer for each patch of a map; without it, once for a map, as the paper's."""
    discriminator_spectral_norm: bool = False
    """Divide every weight of a discriminator by its largest singular value."""
    discriminator_noise: float = _bounded(0.0, at_least=0)
    """Gaussian noise on the maps that discriminators see, in standard deviations of the map [0, none]."""
    discriminator_unpaired: bool = False
    """Show discriminators the source's maps of one half of the images and the learner's of the other, in place of both
    of every image; each process halves its own share, so that an odd one is not divided as one process would."""
    discriminator_interval: int = _bounded(1, at_least=1)
    """Discriminators are stepped in every so-many-th of the updates that compare maps [1]."""

    image_size: int | None = _bounded(None, at_least=8)
    """Side of the square images in pixels [the models' own]."""
    augmentation: Augmentation = "auto"
    """Training augmentation [auto: crop-flip up to 96 pixels (padding 1/8 of the side), above it resized-crop with
    flip; crop for the bundled digits, which flipping would change]."""
    mixup: float = _bounded(0.0, at_least=0)
    """Alpha of mixup: two images of a batch are blended, and their labels with them; accuracy in training counts the
    label that outweighs [0, off]."""
    cutmix: float = _bounded(0.0, at_least=0)
    """Alpha of CutMix: a rectangle of an image is taken from another; with mixup, each step has one or the other
    [0, off]."""
    image_column: str | None = None
    """Column of the images [found by its type]."""
    label_column: str | None = None
    """Column of the labels [found by its type]."""
    train_split: str | None = None
    """Split to train on [train]."""
    eval_split: str | None = None
    """Split to evaluate on [test, else validation, else a fifth of the training split]."""
    streaming: bool = False
    """Read a hub name, folder or file from front to back, image by image, in place of fetching it whole."""
    max_train_samples: int | None = _bounded(None, at_least=2)
    """Use only the first so many training images; of a stream, so many in each epoch."""
    max_eval_samples: int | None = _bounded(None, at_least=1)
    """Use only the first so many evaluation images."""
    skip_bad_images: bool = False
    """Pass over images that cannot be decoded, and say how many they are."""
    num_workers: int = _bounded(0, at_least=0)
    """Processes that decode images, where the data set is not held in memory."""

    sync_batchnorm: bool = False
    """Batch normalisation inside the models takes its statistics over all processes; without it, over each one's
    share of the batch."""
    check_processes: bool = False
    """Check after every update that all processes hold the same weights, and end the run where they do not."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Arithmetic of the forward and backward passes."""
    compile: bool = False
    """Compile the models with torch.compile."""
    cuda_graphs: bool = False
    """Record whole updates as CUDA graphs and replay them: for small models on one GPU, whose kernels end sooner than
    they can be launched."""
    channels_last: bool = True
    """Keep images and convolutions in channels-last memory order."""
    evaluate_every_epochs: int = _bounded(1, at_least=1)
    """Epochs between two evaluations; the last epoch always has one."""
    early_stopping_patience: int | None = _bounded(None, at_least=1)
    """End the run after so many evaluations in a row in which neither a model nor the ensemble reached a new best
    accuracy [never]."""
    log_every_steps: int = _bounded(50, at_least=1)
    """Steps between two lines of metrics."""
    similarity_images: int | None = _bounded(None, at_least=4)
    """Record at each evaluation how alike the maps of source and learner are, on the first so many evaluation images
    [not recorded]."""
    log_gradients: bool = False
    """Record, of one update in log_every_steps, the norms of gradients, decay and updates and what they have in common,
    and how many answers of the discriminators are right."""
    checkpoint_every_steps: int | None = _bounded(None, at_least=1)
    """Steps between two checkpoints, besides the one at the end of each epoch [that one alone]."""
    keep_checkpoints: int = _bounded(2, at_least=1)
    """Checkpoints to keep."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for spec in dataclasses.fields(self):
            value = coerce(getattr(self, spec.name), hints[spec.name])
            object.__setattr__(self, spec.name, value)
            check(spec.name, value, hints[spec.name], spec.metadata)
        for name in ("milestones", "adversarial_milestones"):
            value = getattr(self, name)
            if value is not None and list(value) != sorted(set(value)):
                raise UserError(f"{name}: {show(value)} is not allowed, expected rising fractions of the run")
        if self.grad_accum_steps > self.batch_size:
            raise UserError(
                f"grad_accum_steps: {self.grad_accum_steps} parts of a batch of {self.batch_size} images: "
                "at most one part per image"
            )
        if self.joint_backward and self.loss_weights.decay_only_update:
            raise UserError(
                f"joint_backward: method {self.method} has a feature update without a gradient: leave one of them out"
            )
        if self.sync_batchnorm and self.compile:
            raise UserError("sync_batchnorm: does not go together with compile: leave one of them out")

    @property
    def loss_weights(self) -> LossWeights:
        """The method's loss weights with this config's own in their place."""
        return _overridden(METHODS[self.method], self)

    @property
    def recipe_settings(self) -> Recipe:
        """The recipe's settings with this config's own in their place (`auto` reads as `paper`)."""
        return _overridden(RECIPES["paper" if self.recipe == "auto" else self.recipe], self)

    def replace(self, /, **changes: Any) -> DistillConfig:
        """A copy with some settings changed.

        Raises:
            UserError: for a setting that does not exist (the closest names are given) or a bad value.
        """
        known = [spec.name for spec in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = closest(name, known)
                hint = f", the closest are {near}" if near else ""
                raise UserError(f"config: there is no setting {show(name)}{hint}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(self))))

    def resolved(self) -> dict[str, Any]:
        """The settings as JSON values, with what the method and the recipe choose in the place of None."""
        chosen = {**dataclasses.asdict(self.loss_weights), **dataclasses.asdict(self.recipe_settings)}
        full = {key: chosen.get(key, value) for key, value in self.to_dict().items()}
        return typing.cast("dict[str, Any]", json.loads(json.dumps(full)))

    def defining(self) -> dict[str, Any]:
        """The settings that decide the weights of a run; a resumed run must have the same."""
        return {key: value for key, value in self.to_dict().items() if key not in _RUNTIME}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillConfig:
        """The inverse of `to_dict`.

        Args:
            values: of settings, by name; those left out have their defaults.

        Raises:
            UserError: for what is no mapping, an unknown key or a bad value.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"config: {show(values)} holds no settings, expected their names and values")
        return cls().replace(**{str(name): value for name, value in values.items()})


# Settings that may change between the parts of one run.
_RUNTIME = (
    "num_workers",
    "max_nonfinite_steps",
    "skip_bad_images",
    "log_every_steps",
    "similarity_images",
    "log_gradients",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "compile",
    "cuda_graphs",
    "check_processes",
)

Settings = typing.TypeVar("Settings", LossWeights, Recipe)


def _overridden(base: Settings, config: DistillConfig) -> Settings:
    own = {spec.name: getattr(config, spec.name, None) for spec in dataclasses.fields(base)}
    return dataclasses.replace(base, **{name: value for name, value in own.items() if value is not None})
