"""Outputs of frozen sources that are kept, so that each image costs one forward pass in a whole run (ours).

An output is kept under the pixels that it was computed from, after augmentation and normalisation. So a kept output is
always that of this very image: a mirrored one has other pixels.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from types import CodeType
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from feature_gan_kd.models.tapped_model import TappedModel, version_of
from feature_gan_kd.utils.errors import UserError

MEMORY = "memory"
"""In place of the name of a folder."""

Output = dict[str, Tensor]
"""What is kept of one image: `logits`, and a map for each tap, by its number."""


class Store(Protocol):
    """Where outputs are kept, by a key of bytes."""

    def get(self, key: bytes) -> Output | None:
        """Returns what is kept under a key; None for nothing."""
        ...

    def put(self, outputs: dict[bytes, Output]) -> None:
        """Keeps outputs. Raises UserError where there is no room."""
        ...


class MemoryStore:
    """Keeps outputs in the memory of this process, on the CPU."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Output] = {}

    def get(self, key: bytes) -> Output | None:
        """See `Store`."""
        return self._kept.get(key)

    def put(self, outputs: dict[bytes, Output]) -> None:
        """See `Store`."""
        self._kept.update(outputs)


class DiskStore:
    """Keeps outputs in a database in a folder, which later runs and other processes use, too.

    Args:
        folder: is made if it is not there.

    Raises:
        UserError: where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sources.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS outputs (key BLOB PRIMARY KEY, value BLOB)")
        except (OSError, sqlite3.Error) as error:
            raise self._explain(error) from None

    def get(self, key: bytes) -> Output | None:
        """See `Store`."""
        try:
            row = self._database.execute("SELECT value FROM outputs WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._explain(error) from None
        return None if row is None else load(row[0])

    def put(self, outputs: dict[bytes, Output]) -> None:
        """See `Store`."""
        rows = [(key, save(output)) for key, output in outputs.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO outputs VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> UserError:
        return UserError(
            f"cache_sources: {self.path} cannot be used ({error}): make room, or name another folder, or {MEMORY}"
        )


def open_store(name: str) -> Store:
    """Opens the store that the setting `cache_sources` names.

    Raises:
        UserError: for a folder that cannot be written.
    """
    return MemoryStore() if name == MEMORY else DiskStore(Path(name))


class CachedOutputs:
    """Calls a frozen model for the images alone whose outputs are not kept.

    Each image's output must depend on this image alone, as in evaluation mode it does.

    Args:
        model: in evaluation mode.
        store: may be shared by several models.
        precision: of the forward pass, in words: outputs of another one are others.
    """

    def __init__(self, model: TappedModel, store: Store, precision: str) -> None:
        self.model = model
        self.store = store
        self.precision = precision
        self._version: object = None
        self._prefix = b""
        # In memory, two models never share an output: what tells them apart may be no tensor.
        self._owner = f"{id(self)}" if isinstance(store, MemoryStore) else ""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """As the model's own forward pass; waits for the device, since the pixels are read on the host.

        Args:
            images: (batch, channels, height, width).

        Returns:
            Logits (batch, classes), None of a model that does not classify, and one map per tap.

        Raises:
            UserError: as the model, and where nothing can be kept.
        """
        prefix = self._weights()
        pixels = images.detach().to("cpu").contiguous()
        keys = [hashlib.blake2b(prefix + _bytes(row), digest_size=16).digest() for row in pixels]
        found = [self.store.get(key) for key in keys]
        missing = [k for k, one in enumerate(found) if one is None]
        if missing:
            logits, maps = self.model(images[torch.tensor(missing, device=images.device)])
            computed = {str(number): one for number, one in enumerate(maps)}
            computed |= {} if logits is None else {"logits": logits}
            kept = {name: one.detach().to("cpu").contiguous() for name, one in computed.items()}
            fresh = {k: {name: one[i].clone() for name, one in kept.items()} for i, k in enumerate(missing)}
            self.store.put({keys[k]: output for k, output in fresh.items()})
            found = [fresh.get(k, one) for k, one in enumerate(found)]
        outputs = [one for one in found if one is not None]
        together = {
            name: torch.stack([one[name] for one in outputs]).to(images.device, non_blocking=True)
            for name in outputs[0]
        }
        return together.pop("logits", None), tuple(together[str(number)] for number in range(len(together)))

    def _weights(self) -> bytes:
        """A digest of all that decides the output besides the pixels; computed anew where any of it was changed.

        Changes of tensors are noticed by their norms, also those that torch does not count (`.data`, numpy).
        """
        adapter, module = self.model.adapter, self.model.module
        tensors = [*module.parameters(), *module.buffers(), *adapter.buffers()]
        norms = torch.stack([one.detach().double().norm() for one in tensors]).tolist() if tensors else []
        described = _describe(module)
        resized = adapter.size, adapter.interpolation
        version = (described, resized, norms, [(id(one), version_of(one)) for one in tensors])
        if version != self._version:
            about = (self._owner, self.precision, self.model.taps, resized, described)
            digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
            for one in tensors:
                digest.update(_bytes(one.detach().to("cpu")))
            self._version, self._prefix = version, digest.digest()
        return self._prefix


def _bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor of any shape and type on the CPU; numpy has no bfloat16."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _describe_code(code: CodeType) -> tuple[object, ...]:
    """What code does, the same in every process: functions inside of it would show their address."""
    constants = [_describe_code(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, repr(constants)


def _describe(module: nn.Module) -> str:
    """What decides a module's output besides its tensors, as text: layers, their plain attributes, code and hooks."""
    parts: list[object] = [repr(module)]
    for name, one in module.named_modules():
        code = getattr(type(one).forward, "__code__", None)
        plain = {key: value for key, value in vars(one).items() if isinstance(value, (int, float, str, tuple))}
        own = vars(one).get("forward")
        hooks = [repr(hook) for hook in (*one._forward_hooks.values(), *one._forward_pre_hooks.values())]
        compiled = None if code is None else _describe_code(code)
        parts.append((name, type(one).__qualname__, compiled, sorted(plain.items(), key=str), repr(own), hooks))
    return repr(parts)
