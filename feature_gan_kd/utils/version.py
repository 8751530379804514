"""The version of the package, in the folder that all others may import."""

__version__ = "0.1.0"
