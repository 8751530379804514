from __future__ import annotations

import socket
import urllib.request
from typing import Any

import datasets
import huggingface_hub.constants as hub
import pytest

from feature_gan_kd.utils.offline import offline_without_internet


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The hosts whose address is asked for; there is none."""
    hosts: list[Any] = []

    def unknown(host: Any, *args: Any, **_: Any) -> Any:
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(hub, "ENDPOINT", "https://hub.example")
    for module in (hub, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    return hosts


def settings() -> tuple[bool, bool]:
    return hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def test_without_a_model_the_cache_alone_is_read(asked: list[Any]) -> None:
    with offline_without_internet() as offline:
        assert offline
        assert settings() == (True, True)
    assert settings() == (False, False)
    assert asked == ["hub.example"]


def test_after_an_error_too(asked: list[Any]) -> None:
    with pytest.raises(OSError, match="lost"), offline_without_internet():
        raise OSError("lost")
    assert settings() == (False, False)


def test_with_a_model_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
        with offline_without_internet() as offline:
            assert not offline
    with offline_without_internet() as offline:
        assert offline  # nobody listens there any more


def test_a_hub_that_is_slow_is_waited_for(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: Any, **_: Any) -> Any:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    with offline_without_internet() as offline:
        assert not offline


@pytest.mark.parametrize("kind", ["https", "all"])
def test_a_proxy_knows_the_addresses(kind: str, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {kind: "http://proxy.example:3128"})
    with offline_without_internet() as offline:
        assert not offline
    assert asked == []
