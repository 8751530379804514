"""The garbage collector is as it was, whatever happens."""

from __future__ import annotations

import contextlib
import gc

import pytest

from feature_gan_kd.utils.imports import imports_without_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_paused_inside_the_block_alone(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with contextlib.suppress(ImportError), imports_without_collection():
            paused = not gc.isenabled()
            raise ImportError
        assert paused
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
