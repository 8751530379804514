"""A hub on this machine: the part of the Hugging Face hub's HTTP API that creating, uploading and downloading use.

It speaks HTTP to huggingface_hub's own client, which `HF_ENDPOINT` points to it, and keeps what it is sent in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_right"


@dataclass
class Repository:
    """What was sent to one repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """A name of the present state, as git would give one."""
        return hashlib.sha1(json.dumps(self.commits).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server; `repositories` is what users sent to it, `objects` the large files by their hash."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def typed(code: str, folder: Path, endpoint: str, token: str | None = TOKEN) -> str:
    """What a user's script prints on stdout, with the hub at another address."""
    # The stand-in does not have the hub's own storage protocol, only that of git LFS.
    surroundings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    surroundings |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | (
        {"HF_TOKEN": token} if token else {}
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**kept, **surroundings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Downloads, and who a token belongs to."""
        if self.path == "/api/whoami-v2":
            if self._allowed():
                self._answer({"type": "user", "name": "me", "orgs": []})
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)", self.path):
            self._file(*found.groups())
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """A large file."""
        content, oid = self._body(), self.path.removeprefix("/objects/")
        if hashlib.sha256(content).hexdigest() != oid:
            self._refuse(400, "BadHash")
            return
        self.server.objects[oid] = content
        self._answer({})

    def do_POST(self) -> None:
        """Creating, and the steps of an upload."""
        body = self._body()
        if not self._allowed():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"warnings": [], "errors": []})
        elif re.fullmatch(r"/api/models/[\w.-]+/[\w.-]+/preupload/main", self.path):
            modes = [self._mode(one["path"]) for one in json.loads(body)["files"]]
            self._answer({"files": modes})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [self._upload_of(one) for one in json.loads(body)["objects"]]
            self._answer({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "RepoNotFound")

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = name in self.server.repositories
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.server.repositories.setdefault(name, Repository(private))
        self._answer({"url": f"{self.server.endpoint}/{name}", "name": name}, 409 if known else 200)

    def _mode(self, path: str) -> dict[str, Any]:
        large = path.endswith(".safetensors")
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _upload_of(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.server.endpoint}/objects/{one['oid']}"}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.objects[value["oid"]]
        url = f"{self.server.endpoint}/{name}/commit/{repository.head}"
        self._answer({"success": True, "commitOid": repository.head, "commitUrl": url})

    def _file(self, name: str, path: str) -> None:
        repository = self.server.repositories.get(name)
        # To those who may not see it, a private repository is not there.
        if repository is None or (repository.private and not self._authorised()):
            self._refuse(401, "RepoNotFound")
        elif path not in repository.files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repository.head})
        else:
            content = repository.files[path]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(200, content, {"X-Repo-Commit": repository.head, "ETag": tag, "Accept-Ranges": "bytes"})

    def _authorised(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def _allowed(self) -> bool:
        if not self._authorised():
            self._refuse(401, None)
        return self._authorised()

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        code_of = {"X-Error-Code": code} if code else {}
        message = json.dumps({"error": "Invalid username or password." if status == 401 else "not there"}).encode()
        self._send(status, message, {"Content-Type": "application/json", **code_of, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests look at what was kept."""
