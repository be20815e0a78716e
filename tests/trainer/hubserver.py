"""A local Hugging Face Hub. It records requests, and fails on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
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
        private: whether it was created as a private repository.
        commits: messages of the commits after the first one.
        branches: besides main.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    converted: dict[str, bytes] = field(default_factory=dict)
    card: dict[str, object] = field(default_factory=dict)
    gated: bool = False
    discussions: int = 200
    private: bool = False
    commits: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The last commit."""
        return f"c0ffee{len(self.commits):034}"


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
        objects: content of uploaded LFS objects by SHA-256.
        writer: the only token that may write.
        before_commit: is called before a commit is applied, for example to commit something else.
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
        self.objects: dict[str, bytes] = {}
        self.writer = "writer"
        self.before_commit: Callable[[], None] = lambda: None

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

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
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
        parts = path.strip("/").split("/")
        if self.command not in ("HEAD", "GET"):
            if parts[0] != "lfs" and token != self.hub.writer:
                self._fail(Failure(403, message="you have no write access"))
                return
            self._write(parts, body)
            return
        match parts:
            case ["api", "models", owner, name, *rest] if repository := self.hub.repositories.get(f"{owner}/{name}"):
                self._api(f"{owner}/{name}", repository, rest)
            case [owner, name, "resolve", commit, *file] if repository := self.hub.repositories.get(f"{owner}/{name}"):
                self._file(f"{owner}/{name}", repository, commit, "/".join(file))
            case _:
                self._fail(Failure(404, "RepoNotFound"))

    def _write(self, parts: list[str], body: bytes) -> None:
        """Create and delete repositories, and commit files, as `create_commit` of huggingface_hub does."""
        repositories = self.hub.repositories
        match parts:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in repositories:
                    self._fail(Failure(409))
                    return
                repositories[name] = Repository({".gitattributes": b""}, private=asked.get("visibility") == "private")
                self._send_json({"url": f"{self._url}/{name}"})
            case ["api", "repos", "delete"]:
                asked = json.loads(body)
                del repositories[f"{asked['organization']}/{asked['name']}"]
                self._send_json({})
            case ["api", "validate-yaml"]:
                self._send_json({"warnings": [], "errors": []})
            case ["api", "models", owner, name, "preupload", "main"]:
                self._send_json({"files": [_upload_mode(file["path"]) for file in json.loads(body)["files"]]})
            case [_, repository, "info", "lfs", "objects", "batch"] if repository.endswith(".git"):
                objects = json.loads(body)["objects"]
                self._send_json({"objects": [{**one, **_upload_action(self._url, one["oid"])} for one in objects]})
            case ["lfs", oid] if hashlib.sha256(body).hexdigest() == oid:
                self.hub.objects[oid] = body
                self._send_json({})
            case ["api", "models", owner, name, "commit", "main"] if repository := repositories.get(f"{owner}/{name}"):
                self._commit(f"{owner}/{name}", repository, [json.loads(line) for line in body.splitlines()])
            case _:
                self._fail(Failure(404, "RepoNotFound"))

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        self.hub.before_commit()
        header = lines[0]["value"]
        if header.get("parentCommit", repository.head) != repository.head:
            self._fail(Failure(412, message="the branch has changed"))
            return
        for value, kind in ((line["value"], line["key"]) for line in lines[1:]):
            match kind:
                case "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository.files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del repository.files[value["path"]]
        repository.commits.append(header["summary"])
        self._send_json({"commitUrl": f"{self._url}/{name}/commit/{repository.head}", "commitOid": repository.head})

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _api(self, name: str, repository: Repository, rest: list[str]) -> None:
        head = repository.head
        match rest:
            case ["refs"]:
                names = {"branches": ["main", *repository.branches], "converts": [], "tags": [], "pullRequests": []}
                self._send_json({kind: [_ref(name, head) for name in own] for kind, own in names.items()})
            case ["discussions"] if repository.discussions != 200:
                self._fail(Failure(repository.discussions))
            case ["discussions"]:
                self._send_json({"discussions": [_pull_request(name, repository)], "count": 1, "start": 0})
            case ["tree", commit, *_] if commit in (head, PULL_REQUEST):
                content = _content(repository, commit)
                self._send_json([_entry(path, data, checksums=self.hub.checksums) for path, data in content.items()])
            case _:
                commits = {"main": head, head: head, "refs/pr/7": PULL_REQUEST, PULL_REQUEST: PULL_REQUEST}
                revision = "/".join(rest).removeprefix("revision/") or "main"
                if revision not in commits:
                    self._fail(Failure(404, "RevisionNotFound"))
                    return
                siblings = [{"rfilename": file, "size": len(data)} for file, data in repository.files.items()]
                listed = {"id": name, "sha": commits[revision], "siblings": siblings, "cardData": repository.card}
                self._send_json(listed)

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
    return {repository.head: repository.files, PULL_REQUEST: repository.converted}.get(commit, {})


def _ref(name: str, commit: str) -> dict[str, object]:
    return {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}


def _upload_mode(path: str) -> dict[str, object]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}


def _upload_action(url: str, oid: str) -> dict[str, object]:
    return {"authenticated": True, "actions": {"upload": {"href": f"{url}/lfs/{oid}", "header": {}}}}


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
