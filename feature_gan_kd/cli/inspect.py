"""`feature-gan-kd inspect`."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes

from feature_gan_kd.cli.options import Networks, layers, peers
from feature_gan_kd.config.settings import DistillConfig


def inspect(networks: OmitArgPrefixes[Networks], config: OmitArgPrefixes[DistillConfig]) -> None:
    """Show the wiring of networks and its price, without training them."""
    from feature_gan_kd.analysis.inspect import inspect_networks
    from feature_gan_kd.data import count_classes

    classes = networks.num_classes
    if classes is None and networks.data is not None:
        classes = count_classes(networks.data, config)
    print(
        inspect_networks(
            peers(networks),
            num_classes=classes,
            in_chans=networks.in_chans,
            feature_layers=layers(networks),
            topology=networks.topology,
            frozen=networks.frozen,
            config=config,
        )
    )
