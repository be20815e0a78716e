"""A local Hugging Face Hub with one repository. It records requests, and returns errors on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
PULL_REQUEST = "c0ffee" + "1" * 34


class Hub:
    """The repository team/model.

    Attributes:
        files: content by path.
        converted: content of its pull request with safetensors; empty if there is no such pull request.
        requests: method and path of every request.
        error: status and error code with which every request is answered, if set.
        truncated: path of a file of which only the first half is sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.converted: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.error: tuple[int, str] | None = None
        self.truncated = ""

    def serve(self, folder: Path) -> None:
        """Serve the files of a folder."""
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    @property
    def downloaded(self) -> set[str]:
        """Paths of the files whose content was requested."""
        return {r.split("/", 5)[5] for r in self.requests if r.startswith("GET /team/model/resolve/")}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.error:
            status, code = self.hub.error
            self._send(status, b"{}", {"X-Error-Code": code} if code else {})
            return
        match path.strip("/").split("/"):
            case ["api", "models", "team", "model", "discussions"]:
                self._send_json({"discussions": [self._pull_request()], "count": 1, "start": 0})
            case ["api", "models", "team", "model", "tree", commit, *_] if commit in (COMMIT, PULL_REQUEST):
                self._send_json([self._entry(name, content) for name, content in self._content(commit).items()])
            case ["api", "models", "team", "model", *rest]:
                self._revision("/".join(rest).removeprefix("revision/") or "main")
            case ["team", "model", "resolve", commit, *name] if "/".join(name) in self._content(commit):
                self._send_file(commit, "/".join(name))
            case _:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _revision(self, revision: str) -> None:
        commits = {"main": COMMIT, COMMIT: COMMIT, "refs/pr/7": PULL_REQUEST, PULL_REQUEST: PULL_REQUEST}
        if revision in commits:
            self._send_json({"id": "team/model", "sha": commits[revision], "siblings": []})
        else:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})

    def _content(self, commit: str) -> dict[str, bytes]:
        return {COMMIT: self.hub.files, PULL_REQUEST: self.hub.converted}.get(commit, {})

    def _pull_request(self) -> dict[str, object]:
        return {
            "num": 7,
            "author": {"name": "SFconvertbot"},
            "title": "Adding `safetensors` variant of this model",
            "status": "open" if self.hub.converted else "closed",
            "isPullRequest": True,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "repo": {"name": "team/model", "type": "model"},
        }

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _send_file(self, commit: str, name: str) -> None:
        content = self._content(commit)[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self._send(200, content, headers, truncate=name == self.hub.truncated and self.command == "GET")

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, truncate: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if truncate else content)
        if truncate:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


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
