"""Models from an object store are copied with their manifest's files only, and checked."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from dreambooth_api.errors import UserError
from dreambooth_trainer.store.fetch import fetch_published

FILES = {
    "unet/model.safetensors": b"weights",
    "model_index.json": b"{}",
    "tokenizer/chat_template.jinja": b"{{ messages }}",
    "evil.bin": b"pickle",
}


@pytest.fixture
def store():
    fs = fsspec.filesystem("memory")
    files = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    manifest = {"job": {"namespace": "default", "name": "my-dog"}, "files": files}
    for name, content in {**FILES, "other.safetensors": b"not ours"}.items():
        fs.pipe_file(f"/models/dog/{name}", content)
    fs.pipe_file("/models/dog/dreambooth.json", json.dumps(manifest).encode())
    yield fs
    fs.rm("/models", recursive=True)


def test_a_model_is_copied_once(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    folder = fetch_published("memory://models/dog", tmp_path)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES.keys() - {"evil.bin"} | {"dreambooth.json"}
    store.rm_file("/models/dog/model_index.json")
    assert fetch_published("memory://models/dog", tmp_path) == folder


def test_a_changed_file_is_rejected(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    store.pipe_file("/models/dog/unet/model.safetensors", b"other weights")
    with pytest.raises(UserError, match=r"unet/model.safetensors: does not match its digest in dreambooth.json"):
        fetch_published("memory://models/dog", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_processes_that_copy_a_model_together_get_all_of_it(
    store: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_file, first, begun = type(store).get_file, threading.Lock(), threading.Event()

    def slow(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
        get_file(fs, source, target)
        if source.endswith("model_index.json") and first.acquire(blocking=False):
            begun.set()
            time.sleep(0.5)

    monkeypatch.setattr(type(store), "get_file", slow)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(fetch_published, "memory://models/dog", tmp_path)
        assert begun.wait(5)
        other = pool.submit(fetch_published, "memory://models/dog", tmp_path)
        assert one.result() == other.result()
    assert (one.result() / "model_index.json").is_file()


def test_what_is_no_model_is_rejected(store: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a published model; pass the URI"):
        fetch_published("memory://models/cat", tmp_path)
