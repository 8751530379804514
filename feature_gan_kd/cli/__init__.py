"""The command line: one module per command; options come from dataclasses."""

from feature_gan_kd.cli.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]
