"""A local Hugging Face Hub. It records requests, and fails on demand."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
PULL_REQUEST = "c0ffee" + "1" * 34
MODEL = "team/model"


@dataclass
class Repository:
    """A model repository.

    Attributes:
        files: content by path.
        converted: content of its pull request with safetensors; empty if there is no such pull request.
        card: metadata of the model card.
        gated: whether files can be read only with the token "accepted".
        discussions: status of requests for pull requests.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    converted: dict[str, bytes] = field(default_factory=dict)
    card: dict[str, object] = field(default_factory=dict)
    gated: bool = False
    discussions: int = 200


@dataclass(frozen=True)
class Failure:
    """A response instead of the requested one."""

    status: int
    code: str = ""
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """Repositories by ID, of which team/model always exists.

    Attributes:
        requests: method and path of every request.
        tokens: tokens that were sent.
        sent_bytes: content bytes that were sent, by path with repository and file.
        failure: answer to every request, if set.
        failures: answers to the next requests.
        checksums: whether listings have the checksums of weights.
        truncated: path of a file of which only the first half is sent.
        reset: path of a file during which the connection is reset.
    """

    def __init__(self) -> None:
        self.model = Repository()
        self.repositories = {MODEL: self.model}
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.sent_bytes: dict[str, int] = defaultdict(int)
        self.failure: Failure | None = None
        self.failures: list[Failure] = []
        self.checksums = True
        self.truncated = ""
        self.reset = ""

    def serve(self, folder: Path, name: str = MODEL) -> Repository:
        """Serve the files of a folder."""
        repository = self.repositories.setdefault(name, Repository())
        repository.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return repository

    @property
    def downloaded(self) -> set[str]:
        """Paths of the files of team/model whose content was sent completely."""
        return {
            name for name, content in self.model.files.items() if self.sent_bytes[f"{MODEL}/{name}"] >= len(content)
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":
            # huggingface_hub makes this request once per process, in some environments, for its User-Agent.
            self._send(404, b"", {})
            return
        self.hub.requests.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization", "").removeprefix("Bearer "):
            self.hub.tokens.add(token)
        failure = self.hub.failures.pop(0) if self.hub.failures else self.hub.failure
        if failure:
            self._fail(failure)
            return
        match path.strip("/").split("/"):
            case ["api", "models", owner, name, *rest] if repository := self.hub.repositories.get(f"{owner}/{name}"):
                self._api(f"{owner}/{name}", repository, rest)
            case [owner, name, "resolve", commit, *file] if repository := self.hub.repositories.get(f"{owner}/{name}"):
                self._file(f"{owner}/{name}", repository, commit, "/".join(file))
            case _:
                self._fail(Failure(404, "RepoNotFound"))

    def _api(self, name: str, repository: Repository, rest: list[str]) -> None:
        match rest:
            case ["discussions"] if repository.discussions != 200:
                self._fail(Failure(repository.discussions))
            case ["discussions"]:
                self._send_json({"discussions": [_pull_request(name, repository)], "count": 1, "start": 0})
            case ["tree", commit, *_] if commit in (COMMIT, PULL_REQUEST):
                content = _content(repository, commit)
                self._send_json([_entry(path, data, checksums=self.hub.checksums) for path, data in content.items()])
            case _:
                commits = {"main": COMMIT, COMMIT: COMMIT, "refs/pr/7": PULL_REQUEST, PULL_REQUEST: PULL_REQUEST}
                revision = "/".join(rest).removeprefix("revision/") or "main"
                if revision not in commits:
                    self._fail(Failure(404, "RevisionNotFound"))
                    return
                self._send_json({"id": name, "sha": commits[revision], "siblings": [], "cardData": repository.card})

    def _file(self, repository_name: str, repository: Repository, commit: str, name: str) -> None:
        if repository.gated and self.headers.get("Authorization") != "Bearer accepted":
            self._fail(Failure(403, "GatedRepo"))
            return
        content = _content(repository, commit).get(name)
        if content is None:
            self._fail(Failure(404, "EntryNotFound"))
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        status = 200
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            start, _, end = wanted.partition("-")
            content, status = content[int(start) : int(end) + 1 if end else None], 206
        size = self._send(status, content, headers, lost=self.hub.truncated == name, reset=self.hub.reset == name)
        self.hub.sent_bytes[f"{repository_name}/{name}"] += size

    def _fail(self, failure: Failure) -> None:
        named = {"X-Error-Code": failure.code, "X-Error-Message": failure.message}
        self._send(failure.status, b"{}", {**{k: v for k, v in named.items() if v}, **failure.headers})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], *, lost: bool = False, reset: bool = False
    ) -> int:
        """Send a response; returns the number of content bytes.

        Args:
            lost: close the connection after half of the content.
            reset: reset it.
        """
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return 0
        sent = content[: len(content) // 2] if lost or reset else content
        self.wfile.write(sent)
        if lost or reset:
            self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        return len(sent)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


def _content(repository: Repository, commit: str) -> dict[str, bytes]:
    return {COMMIT: repository.files, PULL_REQUEST: repository.converted}.get(commit, {})


def _pull_request(name: str, repository: Repository) -> dict[str, object]:
    return {
        "num": 7,
        "author": {"name": "SFconvertbot"},
        "title": "Adding `safetensors` variant of this model",
        "status": "open" if repository.converted else "closed",
        "isPullRequest": True,
        "createdAt": "2026-01-01T00:00:00.000Z",
        "repo": {"name": name, "type": "model"},
    }


def _entry(name: str, content: bytes, *, checksums: bool) -> dict[str, object]:
    """An entry of a listing. Weights are LFS files, with their SHA-256."""
    size, entry = len(content), {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest()}
    if checksums and name.endswith(".safetensors"):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
    return {**entry, "size": size}


@contextmanager
def run_hub() -> Iterator[tuple[Hub, str]]:
    """Start a Hub; yields it and its URL."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
