"""`feature-gan-kd schema`."""

from __future__ import annotations

from json import dumps


def schema() -> None:
    """Print the JSON schema of the settings, for editors and validators."""
    from feature_gan_kd.config.schema import config_schema

    print(dumps(config_schema(), indent=2))
