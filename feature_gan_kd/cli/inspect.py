"""`feature-gan-kd inspect`."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes

from feature_gan_kd.cli.options import ModelOptions, layers, peers
from feature_gan_kd.config.settings import DistillConfig


def inspect(models: OmitArgPrefixes[ModelOptions], config: OmitArgPrefixes[DistillConfig]) -> None:
    """Show the wiring of models and its price, without training them."""
    from feature_gan_kd.analysis.inspect import inspect_models
    from feature_gan_kd.data import count_classes

    classes = models.num_classes
    if classes is None and models.data is not None:
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
