"""Pushing to a hub and starting from one: the real client against a stand-in of the hub's HTTP API."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import nn

from feature_gan_kd.export import ModelCardInfo, RebuildError, push
from tests.export.hub_stand_in import TOKEN, Hub, running, typed

Describe = Callable[..., ModelCardInfo]

# What a user types: train, save, publish on the hub; then start from what is published.
TRAINS = """
from feature_gan_kd import OnlineAdversarialDistiller, UserError
settings = dict(num_classes=10, image_size=32, max_train_samples=64, max_eval_samples=50, batch_size=32, lr=0.05)
distiller = OnlineAdversarialDistiller(["test_resnet", "test_vit"], **settings)
distiller.fit(epochs=2)
distiller.save_pretrained("out", license="mit")
"""
PUSHES = """
distiller.push_to_hub("me/net", model=0, private=True, license="mit")
"""
PUSHES_BEST = """
distiller.push_to_hub("me/best", model=1, which="best")
"""
STARTS = """
import torch
second = OnlineAdversarialDistiller(["hf-hub:me/net", "test_vit"], **settings)
published, own = distiller.models[0].state_dict(), second.models[0].state_dict()
assert published.keys() == own.keys() and all(torch.equal(published[key], own[key]) for key in published)
second.fit(epochs=1)
print("trained from", second.names[0], second.peers[0].pretrained)
"""
FAILS = """
try:
    distiller.push_to_hub("me/net", model=0, token={token!r})
except UserError as error:
    print(error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as one:
        yield one


@pytest.fixture
def nobody() -> str:
    """An address at which no hub listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_a_model_is_published_and_another_run_starts_from_it(hub: Hub, tmp_path: Path) -> None:
    printed = typed(TRAINS + PUSHES + PUSHES_BEST + FAILS.format(token="hf_wrong") + STARTS, tmp_path, hub.endpoint)
    repository = hub.repositories["me/net"]
    assert repository.private
    assert repository.files.keys() == {"model.safetensors", "config.json", "README.md"}
    local = tmp_path / "out" / "0-test_resnet"
    for name in ("model.safetensors", "README.md"):
        assert repository.files[name] == (local / name).read_bytes(), name
    mine, theirs = json.loads(repository.files["config.json"]), json.loads((local / "config.json").read_text())
    assert mine == theirs
    assert mine["label_names"] == [str(k) for k in range(10)]
    card = repository.files["README.md"].decode()
    assert "license: mit" in card
    assert "| this model | " in card
    assert "| ensemble (mean of all logits) | " in card
    assert "- Other models of the run: `test_vit`" in card
    assert "| batch_size | 32 |" in card
    assert "weights of its last epoch" in card
    assert "weights of its best epoch" in hub.repositories["me/best"].files["README.md"].decode()
    refused, started = printed.splitlines()[-2:]
    assert refused == (
        "me/net: the hub does not accept the token (401): log in with `hf auth login`, or pass a token with write "
        "access; local exports are kept"
    )
    assert started == "trained from test_resnet True"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no model", "no token"])
def test_one_line_and_the_local_export_stays(case: str, hub: Hub, nobody: str, tmp_path: Path) -> None:
    endpoint, token = (nobody, TOKEN) if case == "no model" else (hub.endpoint, None)
    printed = typed(TRAINS + FAILS.format(token=None), tmp_path, endpoint, token)
    (line,) = printed.splitlines()
    reason = "the hub cannot be reached (" if case == "no model" else "the hub does not accept the token (401): log in"
    assert line.startswith(f"me/net: {reason}")
    assert line.endswith("; local exports are kept")
    assert TOKEN not in line
    for name in ("0-test_resnet", "1-test_vit"):
        assert {path.name for path in (tmp_path / "out" / name).iterdir()} == {
            "model.safetensors",
            "config.json",
            "README.md",
        }


def test_a_model_that_timm_cannot_rebuild_is_not_sent(describe: Describe) -> None:
    with pytest.raises(RebuildError, match="timm did not build it"):
        push(nn.Linear(2, 2), "me/mine", describe("mine"))
