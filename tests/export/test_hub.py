"""Pushing: what a user sees when the Hub cannot be reached or refuses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import pytest
import timm
from torch import nn

from feature_gan_kd.errors import UserError
from feature_gan_kd.export import Publication, RebuildError, push

Describe = Callable[..., Publication]


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def refusing_hub() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def no_hub() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def fails(describe: Describe) -> str:
    with pytest.raises(UserError) as caught:
        push(timm.create_model("test_resnet", num_classes=10), "me/mine", describe("test_resnet"), token="hf_secret")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("me/mine: could not be pushed")
    assert "what was exported on this machine stays" in message
    assert "hf_secret" not in message
    return message


def test_no_network(describe: Describe, no_hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", no_hub)
    assert "refused" in fails(describe)


def test_a_wrong_token(describe: Describe, refusing_hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", refusing_hub)
    assert "401" in fails(describe)


def test_a_network_that_timm_cannot_rebuild_is_not_sent(describe: Describe) -> None:
    with pytest.raises(RebuildError, match="timm did not build it"):
        push(nn.Linear(2, 2), "me/mine", describe("mine"))
