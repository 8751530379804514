"""The sections of the settings: every setting is declared once, with its default, bounds and help text.

Those of the method are in `method_settings`, all others here.

The docstring below a setting is its help text on the command line, in the JSON schema and in the documentation. A help
text names the default itself where the default is None; elsewhere the command line appends it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from feature_gan_kd.config.fields import bounded
from feature_gan_kd.config.method_settings import DiscriminatorSettings, LossSettings
from feature_gan_kd.config.recipes import RecipeName

SchedulerName = Literal["multistep", "cosine", "poly", "tanh"]
BestMetric = Literal["accuracy", "top5", "macro_f1", "cross_entropy"]
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
Augmentation = Literal["auto", "none", "crop", "crop-flip", "resized-crop"]
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]
ErasingMode = Literal["pixel", "rand", "const"]
SourceView = Literal["same", "plain"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Training: its length, batches and arithmetic."""

    epochs: int = bounded(300, at_least=1)
    """Passes over the training images."""
    batch_size: int = bounded(128, at_least=2)
    """Images in one update, summed over all processes and accumulation steps."""
    seed: int = bounded(0, at_least=0, at_most=2**31 - 1)
    """Seed of the initial weights, the order of the images, their augmentation and dropout."""
    mixed_precision: MixedPrecision = "no"
    """Precision of the forward and backward passes. bf16 and fp16 autocast them; fp16 needs a GPU, and scales losses so
    that small gradients do not vanish. auto: bf16 where the device computes in it, else fp16 on a GPU, else no."""
    grad_accum_steps: int = bounded(1, at_least=1)
    """Parts into which each process divides its share of a batch, to save memory. Where memory still runs out, a run
    takes more parts by itself."""
    evaluate_every_epochs: int = bounded(1, at_least=1)
    """Epochs between two evaluations; the last epoch is always evaluated."""
    best_metric: BestMetric = "accuracy"
    """Figure on the evaluation images that decides the best epoch of each model, and early stopping. accuracy: top-1;
    top5; macro_f1: the mean over the classes, for classes of different sizes; cross_entropy."""
    early_stopping_patience: int | None = bounded(None, at_least=1)
    """Stop the run after this many evaluations in a row without a new best_metric of any model or of the ensemble
    (default: never)."""
    sync_batchnorm: bool = False
    """Compute the batch normalisation statistics of the models over all processes; without it, each process uses its
    own share of the batch."""
    channels_last: bool = True
    """Keep images and convolution weights in channels-last memory order."""


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """Optimisation: optimisers and their schedules. All times are fractions of the run."""

    recipe: RecipeName = "auto"
    """Preset of the length, the optimisers and new classifiers. paper: training from scratch, as in the paper;
    finetune: small steps from pretrained weights; scratch: training from scratch on your own images, with an optimiser
    by the kind of each model; unlabeled: learning without labels; auto: unlabeled without labels, finetune where all
    learners start from pretrained weights, else paper."""
    lr: float = bounded(0.1, above=0, per_peer=True)
    """Learning rate of the logit optimiser, which trains every parameter of the models."""
    optimizer: str = bounded("momentum", per_peer=True)
    """timm's name of the logit optimiser; momentum is SGD with momentum."""
    weight_decay: float = bounded(1e-4, at_least=0, per_peer=True)
    """Weight decay of the logit optimiser."""
    decay_norms: bool = bounded(True, per_peer=True)
    """Let the weight decay of the logit optimiser act on biases, normalisation layers and what the model itself names
    (timm's no_weight_decay), too."""
    momentum: float = bounded(0.9, at_least=0, at_most=1, per_peer=True)
    """Momentum of the logit optimiser, where it has one."""
    betas: tuple[float, ...] | None = bounded(None, at_least=0, at_most=1, per_peer=True)
    """Decay rates of the running means of the logit optimiser, as 0.9 0.95 for adamw (default: the optimiser's own)."""
    eps: float | None = bounded(None, above=0, per_peer=True)
    """Term that keeps the logit optimiser from dividing by zero (default: the optimiser's own)."""
    layer_decay: float | None = bounded(None, above=0, at_most=1, per_peer=True)
    """Multiply the learning rate by this for each layer that lies further from the classifier (default: 1)."""
    head_lr_scale: float = bounded(1.0, above=0, per_peer=True)
    """Multiply the learning rate of the classifier by this."""
    scheduler: SchedulerName = "multistep"
    """Learning rate schedule of the logit optimiser."""
    milestones: tuple[float, ...] = bounded((0.5, 0.75), above=0, at_most=1)
    """Fractions of the run at which the multistep schedule multiplies the learning rate by 0.1."""
    warmup_fraction: float = bounded(0.0, at_least=0, at_most=0.9)
    """Fraction of the run over which the learning rate rises from zero."""
    warmup_epochs: float | None = bounded(None, at_least=0)
    """The same in epochs, in place of warmup_fraction: give one of the two. The run keeps it as a fraction."""
    min_lr: float = bounded(0.0, at_least=0)
    """Learning rate at which the schedules other than multistep end."""
    kl_start_fraction: float = bounded(0.0, at_least=0, at_most=1)
    """Fraction of the run after which the logit term joins: before, new classifiers would teach each other noise."""
    clip_grad: float | None = bounded(None, above=0, per_peer=True)
    """Largest norm of a model's logit gradient (default: no clipping)."""
    adversarial_lr: float = bounded(2e-5, above=0)
    """Learning rate of the adversarial optimiser of the extractors."""
    discriminator_lr: float = bounded(2e-5, above=0)
    """Learning rate of the discriminators."""
    adversarial_weight_decay: float = bounded(0.1, at_least=0)
    """Weight decay of the adversarial optimiser of the extractors."""
    discriminator_weight_decay: float = bounded(0.1, at_least=0)
    """Weight decay of the discriminators."""
    adversarial_optimizer: Literal["adam", "adamw"] = "adam"
    """Optimiser of extractors and discriminators; adam couples the weight decay (L2), adamw decouples it."""
    adversarial_milestones: tuple[float, ...] = bounded((0.25, 0.5), above=0, at_most=1)
    """Fractions of the run at which the learning rates of extractors and discriminators are multiplied by 0.1."""
    adversarial_warmup_fraction: float = bounded(0.0, at_least=0, at_most=0.9)
    """Fraction of the run over which adversarial_lr rises from zero; the discriminators have no warmup."""
    scale_adversarial_lr: bool = False
    """Multiply the learning rates of extractors and discriminators by 117,300 / the number of adversarial updates of
    this run. Adam moves a weight by at most its learning rate in an update, so without this option the adversarial term
    hardly acts in a run much shorter than the paper's 117,300 updates."""
    joint_backward: bool = False
    """Add the feature loss to the logit loss, with one backward pass and one optimiser for both: faster, but no longer
    the paper's algorithm. adversarial_weight then sets the strength of the adversarial term."""


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """Peers: how each model is built and trained."""

    head_init_scale: float = bounded(1.0, at_least=0, per_peer=True)
    """Multiply the initial weights of a new classifier by this; 0 starts from equal probabilities. A classifier that
    comes with pretrained weights is kept as it is."""
    drop_rate: float | None = bounded(None, at_least=0, at_most=1, per_peer=True)
    """Dropout before the classifier (default: the architecture's)."""
    drop_path_rate: float | None = bounded(None, at_least=0, at_most=1, per_peer=True)
    """Stochastic depth: the largest probability that a block is left out (default: the architecture's)."""
    freeze_backbone: bool = bounded(False, per_peer=True)
    """Train the classifier alone; everything before it stays as it is, in evaluation mode."""
    grad_checkpointing: bool = bounded(False, per_peer=True)
    """Compute the activations again in the backward pass instead of keeping them: slower, with less memory."""
    model_ema: float | None = bounded(None, above=0, at_most=1, per_peer=True)
    """Keep a running mean of the weights, of which an update keeps this part, as 0.9998; early means forget faster. It
    is evaluated beside the model and published as INDEX-NAME-ema (default: none)."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Data: columns, splits, image size and how images are resized."""

    image_size: int | None = bounded(None, at_least=8)
    """Height and width of the images in pixels (default: the largest that the models are made for)."""
    crop_pct: float | None = bounded(None, above=0, at_most=1)
    """Share of each side that evaluation keeps: images are resized to image_size / crop_pct, and their centre is cut
    out. Published models state it (default: 0.875 with resized-crop, else 1)."""
    interpolation: Interpolation = "bicubic"
    """How images are resized, in training and in evaluation; published models state it."""
    mean: tuple[float, ...] | None = bounded(None, at_least=0, at_most=1)
    """Mean of each channel, of pixels in [0, 1], that the images are normalised with. Tensors of floats must come
    normalised with it (default: that of the models' trained weights if all have the same, else that of the training
    images; tensors of floats are taken as they are)."""
    std: tuple[float, ...] | None = bounded(None, above=0, at_most=1)
    """Standard deviation of each channel, like the mean."""
    label_column: str | None = None
    """Column of the labels (default: found by its type)."""
    image_column: str | None = None
    """Column of the images (default: found by its type)."""
    train_split: str | None = None
    """Split to train on (default: train)."""
    eval_split: str | None = None
    """Split to evaluate on (default: test, else validation, else a fifth of the training split)."""
    labeled_fraction: float | None = bounded(None, above=0, below=1)
    """Share of each batch that has labels, where some training images have none; an epoch then shows every image at
    least once, and those of the smaller kind several times (default: every image once, in any order)."""
    max_train_samples: int | None = bounded(None, at_least=2)
    """Use only N training images, drawn by the seed from all classes in turn; of a stream, the first N in each epoch
    (default: all)."""
    max_eval_samples: int | None = bounded(None, at_least=1)
    """Use only N evaluation images, drawn from all classes in turn, the same for every seed (default: all)."""
    streaming: bool = False
    """Read a hub data set, folder or file image by image from front to back, instead of fetching it first."""


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Augmentation: how training images are changed. Evaluation never changes them."""

    augmentation: Augmentation = "auto"
    """Training augmentation. auto: crop-flip up to 96 pixels (padding 1/8 of the side), resized-crop with flip above,
    and crop for the bundled digits, which a flip would change."""
    scale: tuple[float, ...] | None = bounded(None, above=0, at_most=1)
    """Smallest and largest share of the area that resized-crop cuts out (default: 0.08 1)."""
    ratio: tuple[float, ...] | None = bounded(None, above=0)
    """Smallest and largest width / height that resized-crop cuts out (default: 0.75 1.3333)."""
    vflip: float = bounded(0.0, at_least=0, at_most=1)
    """Probability that an image is mirrored top to bottom."""
    color_jitter: float = bounded(0.0, at_least=0)
    """Change brightness, contrast and saturation at random by up to this factor; 0 is off."""
    aa: str | None = None
    """timm's automatic augmentation: rand-m9-mstd0.5 (RandAugment), augmix-m3, original, v0, 3a, ..., in timm's
    notation (default: none)."""
    reprob: float = bounded(0.0, at_least=0, at_most=1)
    """Probability that a rectangle of an image is erased after normalisation (timm's random erasing)."""
    remode: ErasingMode = "pixel"
    """What erased pixels become. pixel: noise; rand: one random colour; const: the mean colour."""
    recount: int = bounded(1, at_least=1)
    """Largest number of rectangles that are erased in one image."""
    source_view: SourceView = "same"
    """What sources see of a training image that are frozen or teach with averaged weights. same: what the learners see;
    plain: the image with its crop and flip, but without aa, color_jitter and reprob."""
    balanced_sampling: bool = False
    """Draw every class equally often in each epoch; its number of images stays that of the training images."""
    mixup: float = bounded(0.0, at_least=0)
    """Alpha of mixup, which blends two images of a batch and their labels; 0 is off. Training accuracy counts the label
    with the larger share."""
    cutmix: float = bounded(0.0, at_least=0)
    """Alpha of CutMix, which pastes a rectangle of one image into another; 0 is off. With mixup, each update uses one
    of the two."""


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Runtime: speed, safety and checkpoints. A resumed run may change these."""

    compile: bool = False
    """Compile the models with torch.compile."""
    cuda_graphs: bool = False
    """Record whole updates as CUDA graphs and replay them: for small models on one GPU, where launching the kernels
    takes longer than running them."""
    cache_sources: str | None = None
    """Keep what the frozen sources give for each image, so that it is computed once: memory, or the name of a folder,
    which later runs use, too. Only where images do not change from epoch to epoch, with augmentation none (default:
    compute it in every update)."""
    num_workers: int | None = bounded(None, at_least=0)
    """Processes that decode images, where the data set is not held in memory (default: one for each core that this
    process may use, at most 8; 0 with a torch data set of your own)."""
    skip_bad_images: bool = False
    """Skip images that cannot be decoded, and report how many they are."""
    max_nonfinite_steps: int = bounded(20, at_least=1)
    """Stop the run after this many updates in a row that were skipped because a loss or a gradient was not finite."""
    check_processes: bool = False
    """Check after every update that all processes hold the same weights, and stop the run if they do not."""
    checkpoint_every_steps: int | None = bounded(None, at_least=1)
    """Write a checkpoint every N updates as well (default: only at the end of each epoch)."""
    keep_checkpoints: int = bounded(2, at_least=1)
    """Number of newest checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Tracking: which figures are recorded. A resumed run may change these."""

    log_every_steps: int = bounded(50, at_least=1)
    """Updates between two records of the metrics."""
    similarity_images: int | None = bounded(None, at_least=4)
    """Record at each evaluation how similar the feature maps of source and learner are on the first N evaluation images
    (default: not recorded)."""
    log_gradients: bool = False
    """With each record of the metrics, log the norms of gradients, weight decay and updates, how far they agree, and
    how often the discriminators are right."""


UPDATE_SETTINGS = frozenset(
    (
        *(spec.name for section in (LossSettings, DiscriminatorSettings) for spec in dataclasses.fields(section)),
        *("lr", "optimizer", "weight_decay", "decay_norms", "momentum", "betas", "eps", "layer_decay", "head_lr_scale"),
        *("clip_grad", "adversarial_lr", "discriminator_lr"),
        *(spec.name for spec in dataclasses.fields(PeerSettings)),
        *("adversarial_weight_decay", "discriminator_weight_decay", "adversarial_optimizer", "joint_backward"),
        *("seed", "mixed_precision", "grad_accum_steps", "sync_batchnorm", "mean", "std"),
    )
)
"""The settings that a single update uses; all others act in `fit` alone."""

# In the order in which they are listed; no two of them have a setting of the same name.
SECTIONS = (
    TrainingSettings,
    LossSettings,
    OptimSettings,
    PeerSettings,
    DiscriminatorSettings,
    DataSettings,
    AugmentationSettings,
    RuntimeSettings,
    TrackingSettings,
)
# All other sections decide the weights of a run, so a run is resumed only with the same values.
MAY_CHANGE_ON_RESUME = (RuntimeSettings, TrackingSettings)


PEER_SETTINGS = frozenset(
    spec.name for section in SECTIONS for spec in dataclasses.fields(section) if spec.metadata.get("per_peer")
)
"""The settings of which a model may have a value of its own."""
