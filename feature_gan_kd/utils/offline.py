"""The hub without internet access: uses its cache at once, where its client would retry for half a minute."""

from __future__ import annotations

import contextlib
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import huggingface_hub.constants as hub


@contextlib.contextmanager
def offline_without_internet() -> Iterator[bool]:
    """Restricts the hub's clients to their cache inside the block, if nobody answers at the hub's address.

    Yields:
        Whether the clients are offline.
    """
    if {"https", "all"} & urllib.request.getproxies().keys() or _is_reachable(urllib.parse.urlsplit(hub.ENDPOINT)):
        yield hub.HF_HUB_OFFLINE
        return
    datasets: Any = sys.modules.get("datasets")  # has its own setting, copied from the hub's when it is imported
    settings: list[Any] = [hub] if datasets is None else [hub, datasets.config]
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    for setting in settings:
        setting.HF_HUB_OFFLINE = True
    try:
        yield True
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value


def _is_reachable(hub: urllib.parse.SplitResult) -> bool:
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname, port), timeout=2).close()
    except TimeoutError:  # it may only be slow, and the client waits longer
        return True
    except OSError:  # the name is unknown, there is no route, or nobody listens
        return False
    return True
