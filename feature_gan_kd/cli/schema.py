"""`feature-gan-kd schema`."""

from __future__ import annotations

from json import dumps


def schema() -> None:
    """Print the JSON schema of a run file and its settings, for editors and validators."""
    from feature_gan_kd.config.schema import run_file_schema

    print(dumps(run_file_schema(), indent=2))
