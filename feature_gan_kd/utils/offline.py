"""The hub without internet access: its cache at once, in place of a client that retries for half a minute."""

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
    """Inside, the hub's clients read their cache alone where nobody answers at the hub's address; gives whether they
    do.
    """
    if {"https", "all"} & urllib.request.getproxies().keys() or _answers(urllib.parse.urlsplit(hub.ENDPOINT)):
        yield hub.HF_HUB_OFFLINE
        return
    datasets: Any = sys.modules.get("datasets")  # which has a setting of its own
    settings: list[Any] = [hub] if datasets is None else [hub, datasets.config]
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    for setting in settings:
        setting.HF_HUB_OFFLINE = True
    try:
        yield True
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value


def _answers(hub: urllib.parse.SplitResult) -> bool:
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname, port), timeout=2).close()
    except TimeoutError:  # it may only be slow: the client waits longer
        return True
    except OSError:  # there is no such name, no way there, or nobody listens
        return False
    return True
