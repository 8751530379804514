"""`feature-gan-kd inspect`."""

from __future__ import annotations

from typing import Annotated

from feature_gan_kd.cli.model_options import ModelOptions, layers, peers
from feature_gan_kd.config.distill_config import DistillConfig

# The settings that decide what is built or what it costs, and where the number of classes is found.
USED = (
    *("batch_size", "image_size", "channels_last", "method", "labels", "kl_weight", "adversarial_weight"),
    *("logit_loss", "targets", "confidence_threshold", "adversarial_loss", "max_grid"),
    *("l1_weight", "l2_weight", "aligned_weight", "statistics_weight", "relation_weight", "decay_only_update"),
    *("discriminator_width", "discriminator_norm", "discriminator_classes", "vectors_as_maps"),
    *("label_column", "image_column", "train_split", "streaming"),
)


def inspect(models: ModelOptions, config: Annotated[DistillConfig, USED]) -> None:
    """Show the models, their connections and the cost of an update, without training."""
    from feature_gan_kd.analysis.inspect import inspect_models
    from feature_gan_kd.data import count_classes

    classes = models.num_classes
    if classes is None and models.data is not None and config.labels:
        classes = count_classes(models.data, config)
    print(
        inspect_models(
            peers(models),
            num_classes=classes,
            in_chans=models.in_chans,
            feature_layers=layers(models),
            topology=models.topology,
            frozen=models.frozen,
            config=config,
        )
    )
