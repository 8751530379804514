"""Importing large libraries quickly."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def imports_without_collection() -> Iterator[None]:
    """Pauses Python's garbage collector inside the block, which imports large libraries.

    torch and timm make hundreds of thousands of objects that all stay. The collector would look through them again and
    again while they load, which takes up to a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
