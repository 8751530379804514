"""The recipe in force in a few lines: what every run says first."""

from __future__ import annotations

from collections.abc import Collection

from feature_gan_kd.config.distill_config import DistillConfig
from feature_gan_kd.config.recipes import RECIPES
from feature_gan_kd.models.peer import PeerModel
from feature_gan_kd.training.peer_group import PeerGroup


def describe_recipe(group: PeerGroup, idle_settings: Collection[str] = ()) -> list[str]:
    """Lines on the schedule that all models share, and on the optimiser of each; models with the same share a line.

    Args:
        group: the models, with their settings.
        idle_settings: that do not act on the images of this run.
    """
    config = group.config
    schedule = f"{config.scheduler} learning rate over {config.epochs} epochs"
    if config.warmup_fraction:
        schedule += f", the first {config.warmup_fraction:.0%} rising"
    if config.kl_start_fraction and config.kl_weight:
        schedule += f", logits of the sources after {config.kl_start_fraction:.0%}"
    if config.targets == "ema":
        schedule += ", sources teach with their averaged weights"
    lines: dict[str, list[int]] = {}
    for k, model in enumerate(group.peers):
        if k not in group.frozen:
            own = model.own_config(config)
            text = describe_optimizer(own, has_new_classifier=model.has_new_classifier)
            text += _what_stands_still(model, own)
            text += ", as recipe finetune for trained weights" if k in group.fine_tuned else ""
            lines.setdefault(text, []).append(k)
    models = [f"model{'s' * (len(own) > 1)} {' and '.join(map(str, own))}: {text}" for text, own in lines.items()]
    left_out = [
        f"the recipe's {name} {RECIPES[config.recipe][name]} is left out: {why}"
        for name, why in config.presets_left_out().items()
        if name in RECIPES[config.recipe] and not config.is_given(name)
    ]
    images = describe_labels_and_images(config, idle_settings)
    return [f"recipe {config.recipe}: {schedule}", *models, *images, *left_out]


def describe_labels_and_images(config: DistillConfig, idle_settings: Collection[str] = ()) -> list[str]:
    """A line each on the losses of labels and of logits and on augmentation, as far as they differ from the defaults.

    Args:
        config: of the run.
        idle_settings: that do not act on its images.
    """
    loss = ["binary cross-entropy"] * config.bce_loss
    loss += [f"smoothing {config.smoothing:g}"] * bool(config.smoothing)
    loss += ["weighted by the frequency of the classes"] * config.class_weights
    logits = config.logit_term_words if config.kl_weight else ()
    images = [] if config.aa is None or "aa" in idle_settings else [config.aa]
    crops = {"scale": config.scale, "ratio": config.ratio}
    images += [f"{name} {bounds[0]:g} to {bounds[1]:g}" for name, bounds in crops.items() if bounds]
    rates = {"upside down": config.vflip, "erased in part": config.reprob}
    images += [f"{rate:.0%} {name}" for name, rate in rates.items() if rate]
    factors = {"colour jitter": config.color_jitter, "mixup": config.mixup, "CutMix": config.cutmix}
    images += [f"{name} {factor:g}" for name, factor in factors.items() if factor]
    images += ["plain for the sources"] * (config.source_view == "plain")
    images += ["every class equally often"] * config.balanced_sampling
    parts = {"label loss": loss, "logit loss": logits, "training images": images}
    return [f"{name}: {', '.join(own)}" for name, own in parts.items() if own]


def _what_stands_still(model: PeerModel, settings: DistillConfig) -> str:
    """Says how much of a model learns, where a part does not although no setting of ours says so."""
    learning = [parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad]
    total = sum(parameter.numel() for parameter in model.module.parameters())
    if settings.freeze_backbone or sum(learning) == total:
        return ""
    return f", {sum(learning):,} of {total:,} parameters learn (requires_grad is off for the others)"


def describe_optimizer(settings: DistillConfig, *, has_new_classifier: bool) -> str:
    """How one model is trained, in a line.

    Args:
        settings: in force for the model.
        has_new_classifier: whether `head_init_scale` acts on it.
    """
    decay = "" if settings.decay_norms or not settings.weight_decay else " (none on biases and norms)"
    parts = [settings.optimizer, f"lr {settings.lr:g}", f"weight decay {settings.weight_decay:g}{decay}"]
    if settings.layer_decay is not None:
        parts.append(f"layer decay {settings.layer_decay:g}")
    if settings.head_lr_scale != 1:
        parts.append(f"classifier at {settings.head_lr_scale:g} times the rate")
    if has_new_classifier and settings.head_init_scale != 1:
        parts.append(
            "new classifier at 0"
            if settings.head_init_scale == 0
            else f"new classifier times {settings.head_init_scale:g}"
        )
    rates = {"dropout": settings.drop_rate, "drop path": settings.drop_path_rate}
    parts += [f"{name} {rate:g}" for name, rate in rates.items() if rate is not None]
    parts += [] if settings.model_ema is None else [f"weights averaged by {settings.model_ema:g}"]
    parts += ["gradient checkpointing"] * settings.grad_checkpointing
    if settings.freeze_backbone:
        compares = settings.updates_extractors
        parts.append("backbone frozen" + ", so its map teaches and does not learn" * compares)
    return ", ".join(parts)
