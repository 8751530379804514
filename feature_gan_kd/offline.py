"""The hub without a network: its cache at once, in place of a client that retries for half a minute."""

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
def offline_without_network() -> Iterator[bool]:
    """Inside, the hub's clients read their cache alone where the hub's host has no address; gives whether they do."""
    if "https" in urllib.request.getproxies() or _resolves(urllib.parse.urlsplit(hub.ENDPOINT).hostname):
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


def _resolves(host: str | None) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
