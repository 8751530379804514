"""The methods, pairs and schedules that are compared, as options of `feature-gan-kd train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# An option's value; several values are a tuple, and an empty tuple is an option without a value.
Options = Mapping[str, str | tuple[str, ...]]

_ADAMW: Options = {"optimizer": "adamw", "lr": "1e-3", "weight-decay": "0.05"}
_OWN_OPTIMIZERS: Options = {
    "optimizer": ("0:momentum", "1:adamw"),
    "lr": ("0:0.1", "1:1e-3"),
    "weight-decay": ("0:5e-4", "1:0.05"),
}

# The options of every method; two runs of one pair and seed differ in these alone.
# The frozen model of an offline method is the last model of the vanilla run of the same pair and seed.
METHODS: dict[str, Options] = {
    "vanilla": {"method": "vanilla"},
    "logit": {"method": "logit"},
    "dml": {"method": "dml"},
    "l1": {"method": "l1"},
    "l1-only": {"method": "l1-only"},
    "l2": {"method": "l2"},
    "l2-only": {"method": "l2-only"},
    "pooled": {"method": "pooled"},
    "aligned": {"method": "aligned"},
    "statistics": {"method": "statistics"},
    "relation": {"method": "relation"},
    "feature": {"method": "feature"},
    "afd": {"method": "afd"},
    "zero-gradient": {"method": "zero-gradient"},
    "afd-adamw": {"method": "afd", "adversarial-optimizer": "adamw"},
    "zero-gradient-adamw": {"method": "zero-gradient", "adversarial-optimizer": "adamw"},
    "afd-no-decay": {"method": "afd", "adversarial-weight-decay": "0"},
    "afd-weak-decay": {"method": "afd", "adversarial-weight-decay": "0.01"},
    "zero-gradient-weak-decay": {"method": "zero-gradient", "adversarial-weight-decay": "0.01"},
    # Logits alone, with more weight decay than the paper's 1e-4: does the second optimiser's decay do more than that?
    "logit-decay-2.5e-4": {"method": "logit", "weight-decay": "2.5e-4"},
    "logit-decay-5e-4": {"method": "logit", "weight-decay": "5e-4"},
    "logit-decay-1e-3": {"method": "logit", "weight-decay": "1e-3"},
    "vanilla-decay-5e-4": {"method": "vanilla", "weight-decay": "5e-4"},
    # The recipe finetune as it was: a new classifier as timm draws it, logits at once, decay on norms and biases.
    "vanilla-random-head": {"method": "vanilla", "head-init-scale": "1", "decay-norms": ()},
    "logit-random-head": {"method": "logit", "head-init-scale": "1", "decay-norms": (), "kl-start-fraction": "0"},
    # One optimiser for a CNN and a transformer, or one for each; then the whole recipe scratch.
    "vanilla-shared-adamw": {"method": "vanilla", **_ADAMW},
    "logit-shared-adamw": {"method": "logit", **_ADAMW},
    "vanilla-own-optimizers": {"method": "vanilla", **_OWN_OPTIMIZERS},
    "logit-own-optimizers": {"method": "logit", **_OWN_OPTIMIZERS},
    "vanilla-scratch-recipe": {"method": "vanilla", "recipe": "scratch"},
    "logit-scratch-recipe": {"method": "logit", "recipe": "scratch"},
    # Averaged weights, evaluated beside the live ones; and as teachers.
    "logit-averaged": {"method": "logit", "model-ema": "0.9998"},
    "afd-averaged": {"method": "afd", "model-ema": "0.9998"},
    "logit-averaged-targets": {"method": "logit", "model-ema": "0.9998", "targets": "ema"},
    # Other logit terms: a heavier or softer KL is the control that another form must beat.
    "logit-kl-2": {"method": "logit", "kl-weight": "2"},
    "logit-kl-4": {"method": "logit", "kl-weight": "4"},
    "logit-temperature-2": {"method": "logit", "temperature": "2"},
    "logit-standardised": {"method": "logit", "logit-loss": "standardised"},
    "logit-decoupled": {"method": "logit", "logit-loss": "decoupled"},
    "logit-ensemble": {"method": "logit", "targets": "ensemble"},
    # AFD's cheaper modes.
    "afd-interval-4": {"method": "afd", "adversarial-interval": "4"},
    "afd-joint-backward": {"method": "afd", "joint-backward": ()},
    # Changes that may keep the discriminators from winning, or strengthen the adversarial gradient: one at a time.
    "afd-slow-discriminator": {"method": "afd", "discriminator-lr": "2e-5"},
    "afd-rare-discriminator": {"method": "afd", "discriminator-interval": "4"},
    "afd-narrow-discriminator": {"method": "afd", "discriminator-width": "8"},
    "afd-group-norm": {"method": "afd", "discriminator-norm": "group"},
    "afd-least-squares": {"method": "afd", "adversarial-loss": "least-squares"},
    "afd-hinge": {"method": "afd", "adversarial-loss": "hinge"},
    "afd-relativistic": {"method": "afd", "adversarial-loss": "relativistic"},
    # A discriminator for each class, its gradient reversed, and the optimiser of the logits alone.
    "afd-conditional": {
        **{"method": "afd", "adversarial-loss": "reversal", "discriminator-classes": (), "joint-backward": ()},
    },
    "afd-warmup": {"method": "afd", "adversarial-warmup-fraction": "0.1"},
    "afd-early-layer": {"method": "afd", "feature-layers": "layer2"},
    "afd-fast": {"method": "afd", "adversarial-lr": "1e-3"},
    "zero-gradient-fast": {"method": "zero-gradient", "adversarial-lr": "1e-3"},
    "offline-logit": {"method": "logit", "frozen": "1"},
    "offline-afd": {"method": "afd", "frozen": "1"},
}

# The control of each method: the same second optimiser with its weight decay, without the adversarial gradient. Where
# there is no second optimiser, that is logits alone.
ZERO_GRADIENT = {
    **{method: "zero-gradient" for method in METHODS if method.startswith("afd")},
    **{f"afd{ending}": f"zero-gradient{ending}" for ending in ("-adamw", "-fast", "-weak-decay")},
    "afd-conditional": "logit",
}

PAIRS: dict[str, tuple[str, ...]] = {
    "r14+r14": ("cifar_resnet14", "cifar_resnet14"),
    "r8+r20": ("cifar_resnet8", "cifar_resnet20"),
    "r20+r20": ("cifar_resnet20", "cifar_resnet20"),
    "r32+r32": ("cifar_resnet32", "cifar_resnet32"),
    "wrn16+wrn16": ("cifar_wrn_16_2", "cifar_wrn_16_2"),
    "r20+wrn16": ("cifar_resnet20", "cifar_wrn_16_2"),
    "r20+r56": ("cifar_resnet20", "cifar_resnet56"),
    "r20+r110": ("cifar_resnet20", "cifar_resnet110"),
    "wrn16+wrn28": ("cifar_wrn_16_2", "cifar_wrn_28_2"),
    "wrn16+wrn40": ("cifar_wrn_16_2", "cifar_wrn_40_2"),
    "r20+vit": ("cifar_resnet20", "test_vit"),
    "r32x3": ("cifar_resnet32",) * 3,
    "r32x4": ("cifar_resnet32",) * 4,
    "r32x3-complete": ("cifar_resnet32",) * 3,
    "r32x4-complete": ("cifar_resnet32",) * 4,
    "r18+r34": ("resnet18", "resnet34"),
    "tiny": ("test_resnet", "test_vit"),
    "demo": ("test_convnext2", "test_resnet"),
    # Folders that hold timm's models of these names, with their ImageNet weights.
    "lite0+lite2": ("local-dir:weights/tf_efficientnet_lite0", "local-dir:weights/tf_efficientnet_lite2"),
}


@dataclass(frozen=True)
class Preset:
    """A grid of runs that differ in method, pair and seed alone.

    Attributes:
        about: its purpose, in one line.
        options: those of every run.
        pairs: names in `PAIRS`; the topology of those that end in `-complete` is complete.
        methods: names in `METHODS`; the offline ones need a pair of two models.
        seeds: one run for each.
        data: the data set's name on the hub, used where the command names no data.
        more: methods that run only where `--only` names them.
        for_cpu: whether it runs on a processor, in the precision that is fast there.
    """

    about: str
    options: Options
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    data: str | None = "uoft-cs/cifar100"
    more: tuple[str, ...] = ()
    for_cpu: bool = False


_RANDOM_HEAD = ("vanilla-random-head", "logit-random-head")
_RECIPES = (
    *("vanilla-shared-adamw", "logit-shared-adamw", "vanilla-own-optimizers", "logit-own-optimizers"),
    *("vanilla-scratch-recipe", "logit-scratch-recipe"),
)
_AVERAGED = ("logit-averaged", "afd-averaged", "logit-averaged-targets")
_MAIN = ("vanilla", "logit", "l1", "afd", "zero-gradient")
# What the paper compares, the controls and the cheaper modes.
_COMPARED = (
    *("vanilla", "logit", "dml", "l1", "l1-only", "l2", "l2-only", "feature", "afd", "zero-gradient"),
    *("afd-adamw", "zero-gradient-adamw", "afd-no-decay", "afd-interval-4", "afd-joint-backward"),
    *("offline-logit", "offline-afd"),
)

# Adam moves a weight by at most its rate in a step: a short run needs ten times the paper's adversarial rates.
_SHORT_RATES: Options = {"adversarial-lr": "2e-4", "discriminator-lr": "2e-4"}

PRESETS: dict[str, Preset] = {
    "smoke": Preset(
        "a few steps on the bundled digits, to see that everything runs",
        {
            **{"epochs": "2", "batch-size": "64", "image-size": "32", "max-train-samples": "256"},
            **{"max-eval-samples": "100", "lr": "0.05"},
            **_SHORT_RATES,
        },
        ("tiny",),
        ("vanilla", "logit", "afd", "offline-logit"),
        (0, 1),
        data=None,
    ),
    "demo": Preset(
        "the run of `make demo`, on 200 of the bundled digits: half a minute of one core for each run",
        {
            **{"image-size": "32", "max-train-samples": "200", "epochs": "60", "evaluate-every-epochs": "3"},
            **{"batch-size": "64", "optimizer": "adamw", "lr": "2e-3", "scheduler": "cosine", "warmup-fraction": "0.1"},
            **{"adversarial-lr": "2e-4", "adversarial-weight-decay": "0"},
            **{"discriminator-lr": "1e-2", "discriminator-weight-decay": "0"},
        },
        ("demo",),
        ("vanilla", "logit", "afd"),
        tuple(range(8)),
        data=None,
    ),
    "cpu": Preset(
        "2,000 of CIFAR-100's training images, 20 of each class, at 16 pixels, 60 epochs, all 10,000 test images: 3 "
        "hours of one core",
        {
            **{"epochs": "60", "batch-size": "64", "max-train-samples": "2000", "evaluate-every-epochs": "15"},
            **{"recipe": "paper", "scheduler": "cosine", "warmup-fraction": "0.1"},
            **{"image-size": "16", "label-column": "fine_label"},
            **_SHORT_RATES,
        },
        ("r14+r14", "r8+r20"),
        _MAIN,
        (0, 1, 2, 3, 4),
        more=tuple(method for method in METHODS if method not in (*_MAIN, *_RANDOM_HEAD, *_RECIPES, *_AVERAGED)),
        for_cpu=True,
    ),
    "finetune": Preset(
        "ImageNet weights on 400 photographs at 96 pixels, 10 epochs: 20 minutes of one core for each seed",
        {
            **{"recipe": "finetune", "epochs": "10", "batch-size": "32", "max-train-samples": "400"},
            **{"image-size": "96", "evaluate-every-epochs": "5"},
            **_SHORT_RATES,
        },
        ("lite0+lite2",),
        ("vanilla-random-head", "vanilla", "logit-random-head", "logit", "afd", "zero-gradient"),
        tuple(range(8)),
        data="clothing",
        more=("logit-averaged", "afd-averaged", "logit-averaged-targets"),
    ),
    "scratch": Preset(
        "a CNN beside a transformer, 2,500 of CIFAR-100's training images, 25 of each class, 40 epochs: an hour of one "
        "core for each seed",
        {
            **{"epochs": "40", "batch-size": "64", "max-train-samples": "2500", "evaluate-every-epochs": "10"},
            **{"scheduler": "cosine", "warmup-fraction": "0.1", "image-size": "32", "label-column": "fine_label"},
            **_SHORT_RATES,
        },
        ("r20+vit",),
        ("vanilla", "logit", *_RECIPES),
        (0, 1, 2),
    ),
    "paper": Preset(
        "CIFAR-100, the paper's recipe at full length, for a GPU",
        {"recipe": "paper", "mixed-precision": "auto", "compile": (), "label-column": "fine_label"},
        (
            *("r32+r32", "wrn16+wrn16", "r20+r56", "r20+r110", "wrn16+wrn28", "wrn16+wrn40", "r20+vit"),
            *("r32x3", "r32x4", "r32x3-complete", "r32x4-complete"),
        ),
        _COMPARED,
        (0, 1, 2, 3, 4),
    ),
    "imagenet": Preset(
        "ImageNet, ResNet-18 with ResNet-34, for several GPUs (--launch)",
        {
            **{"epochs": "90", "batch-size": "256", "milestones": ("0.3333", "0.6667"), "recipe": "paper"},
            **{"mixed-precision": "auto", "compile": ()},
        },
        ("r18+r34",),
        ("vanilla", "logit", "dml", "l1", "afd", "zero-gradient"),
        (0,),
        data="ILSVRC/imagenet-1k",
    ),
}
