"""Writes that are seen whole or not at all, leases, and erasure that touches nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from dreambooth_trainer.faults import UserError
from dreambooth_trainer.spec import DreamBoothJob
from dreambooth_trainer.store.erase import erase_job
from dreambooth_trainer.store.folder import JobFolder, whole_folder, write_whole
from dreambooth_trainer.store.lease import lease
from dreambooth_trainer.store.pictures import PictureStore


def job(uri: str | None = None) -> DreamBoothJob:
    return DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "my-dog"},
            "spec": {
                "subject": {"class": "dog", "images": {"uri": "x"}},
                "output": {"uri": uri} if uri else {},
            },
        }
    )


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(TypeError):
        write_whole(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def fill(text: str, *, fail: bool) -> None:
        with whole_folder(path) as draft:
            (draft / "weights").write_text(text)
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill("first", fail=True)
    assert not path.exists()
    fill("second", fail=False)
    with pytest.raises(OSError, match="disk full"):
        fill("third", fail=True)
    assert (path / "weights").read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    path, old = tmp_path / "model", tmp_path / ".model.old"
    old.mkdir()
    (old / "weights").write_text("kept")
    with pytest.raises(OSError), whole_folder(path):
        raise OSError
    assert (path / "weights").read_text() == "kept"


@pytest.mark.parametrize("url", ["{tmp}/pictures", "memory://pictures"])
def test_pictures_come_back_as_they_went(tmp_path: Path, url: str) -> None:
    store = PictureStore(url.format(tmp=tmp_path))
    assert store.names() == set()
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    store.put("000001", image)
    assert store.names() == {"000001"}
    assert store.get("000001").tobytes() == image.tobytes()


def test_a_lease_has_one_holder_at_a_time(tmp_path: Path) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    inside, most = [], []

    def work() -> None:
        with lease(fs, path, lambda: None):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.1)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert not (tmp_path / "lease.json").exists()


def test_a_lease_of_another_machine_is_taken_over_when_it_goes_stale(tmp_path: Path) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    (tmp_path / "lease.json").write_text('{"host": "elsewhere", "pid": 1, "id": "x", "beat": 3}')
    waited: list[int] = []
    with lease(fs, path, lambda: waited.append(1), stale_seconds=1.2):
        assert waited


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    dead = subprocess.Popen(["true"])
    dead.wait()
    holder = {"host": socket.gethostname(), "pid": dead.pid, "id": "x", "beat": 3}
    (tmp_path / "lease.json").write_text(json.dumps(holder))
    with lease(fs, path, lambda: pytest.fail("it waited for a dead process")):
        pass
    assert not (tmp_path / "lease.json").exists()


def test_erasing_removes_the_folder_and_the_published_copy(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "out")
    write_whole(folder.root / "job.yaml", "x")
    write_whole(folder.latents, b"x")
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/model/dreambooth.json", b"{}")
    published = job("s3://bucket/model").model_copy()
    published = published.model_copy(
        update={
            "spec": published.spec.model_copy(
                update={"output": published.spec.output.model_copy(update={"uri": "memory://bucket/model"})}
            )
        }
    )
    assert list(erase_job(published, str(folder.root))) == [str(folder.root), "memory://bucket/model"]
    assert not folder.root.exists()
    assert not fs.exists("/bucket/model")
    assert list(erase_job(published, str(folder.root))) == []


def test_an_erasure_that_is_cut_short_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink
    # Of so many, in whatever order a folder is listed, some come after what tells a job.
    files = ("job.yaml", "work/latents", *(f"picture-{n}.png" for n in range(12)))
    for allowed in range(len(files)):
        folder = JobFolder(tmp_path / "out")
        for name in files:
            write_whole(folder.root / name, "x")
        left = allowed

        def until_it_dies(*arguments: Any, **named: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("the pod is gone")
            unlink(*arguments, **named)

        with monkeypatch.context() as dying, pytest.raises(OSError, match="the pod is gone"):
            dying.setattr(os, "unlink", until_it_dies)
            dying.setattr(os, "remove", until_it_dies)
            list(erase_job(job(), str(folder.root)))
        assert list(erase_job(job(), str(folder.root))) == [str(folder.root)]
        assert not folder.root.exists()


def test_erasing_touches_nothing_but_a_jobs_folder(tmp_path: Path) -> None:
    (tmp_path / "photos.txt").write_text("mine")
    with pytest.raises(UserError, match="is no folder of a job"):
        list(erase_job(job(), str(tmp_path)))
    assert (tmp_path / "photos.txt").exists()


def test_erasing_takes_no_other_folder_for_a_published_model() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/elsewhere/work/photos.txt", b"mine")
    spec = job("s3://bucket/model").spec
    elsewhere = spec.model_copy(update={"output": spec.output.model_copy(update={"uri": "memory://elsewhere"})})
    with pytest.raises(UserError, match="is no folder of a job"):
        list(erase_job(job().model_copy(update={"spec": elsewhere}), "memory://nothing"))
    assert fs.exists("/elsewhere/work/photos.txt")
