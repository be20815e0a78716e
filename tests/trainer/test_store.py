"""Writes that are seen whole or not at all, leases, and folders that belong to one job."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.phases.publish import upload
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.store.erase import Erased, erase_job
from dreambooth_trainer.store.folder import JobFolder, atomic_directory, atomic_write
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.lease import lease
from dreambooth_trainer.store.owner import SENTINEL, claim, output_issues
from dreambooth_trainer.store.published import MANIFEST, ModelManifest


def job(uri: str | None = None, name: str = "my-dog") -> DreamBoothJob:
    checked = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": name},
            "spec": {"subject": {"class": "dog", "images": {"uri": "x"}}},
        }
    )
    # A job file names no memory:// folder: it stands for s3:// here.
    output = checked.spec.output.model_copy(update={"uri": uri})
    return checked.model_copy(update={"spec": checked.spec.model_copy(update={"output": output})})


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def note(files: tuple[str, ...], name: str = "my-dog") -> ModelManifest:
    sampler = SamplerSettings(steps=1, guidance_scale=1)
    return ModelManifest(
        job=f"default/{name}", files=files, base_model="x", base_digest="x", instance_prompt="x", class_prompt="x",
        resolution=32, sampler=sampler,
    )  # fmt: skip


def make_model(folder: Path, *names: str, owner: str = "my-dog") -> ModelManifest:
    """A published model as a job leaves it."""
    for name in names:
        atomic_write(folder / name, f"content of {name}")
    made = note(tuple(sorted({*names, MANIFEST})), owner)
    atomic_write(folder / MANIFEST, made.model_dump_json(by_alias=True))
    return made


def make_job_folder(root: Path) -> None:
    """A finished job's folder."""
    claim(root, job())
    for name in ("job.yaml", "report.html", "work/latents", *(f"work/picture-{n}.png" for n in range(6))):
        atomic_write(root / name, "x")
    make_model(root / "model", "model_index.json", "unet/weights")


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    with pytest.raises(TypeError):
        atomic_write(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def fill(text: str, *, fail: bool) -> None:
        with atomic_directory(path) as draft:
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
    with pytest.raises(OSError), atomic_directory(path):
        raise OSError
    assert (path / "weights").read_text() == "kept"


@pytest.mark.parametrize("url", ["{tmp}/pictures", "memory://pictures"])
def test_pictures_come_back_as_they_went(tmp_path: Path, url: str) -> None:
    store = ImageStore(url.format(tmp=tmp_path))
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


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """A file system without folders of its own, as an object store is."""
    fs = fsspec.filesystem("memory")
    yield fs
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


def test_a_folder_that_is_new_empty_or_its_own_is_a_jobs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "empty"):
        claim(tmp_path / name, job())
        assert [p.name for p in (tmp_path / name).iterdir()] == [SENTINEL]
    atomic_write(tmp_path / "new" / "job.yaml", "x")
    claim(tmp_path / "new", job())


def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    atomic_write(tmp_path / "mine" / "job.yaml", "# a comment")
    atomic_write(tmp_path / "mine" / "photos" / "1.jpg", "x")
    claim(tmp_path / "other", job(name="another-dog"))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"--out: '.*mine': holds job.yaml, photos, and no marker of a job; write an"):
        claim(tmp_path / "mine", job())
    with pytest.raises(UserError, match="is the folder of job default/another-dog; write an empty folder"):
        claim(tmp_path / "other", job())
    with pytest.raises(UserError, match="is not a folder"):
        claim(tmp_path / "mine" / "job.yaml", job())
    assert contents(tmp_path) == before


def test_of_two_jobs_that_want_one_empty_folder_one_gets_it(tmp_path: Path) -> None:
    for attempt in range(20):
        root, start, won, lost = tmp_path / str(attempt), threading.Barrier(4), [], []

        def compete(name: str, root: Path = root, start: threading.Barrier = start, won=won, lost=lost) -> None:
            start.wait()
            try:
                claim(root, job(name=name))
                won.append(name)
            except UserError:
                lost.append(name)

        threads = [threading.Thread(target=compete, args=(f"dog-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 3)
        assert (root / SENTINEL).read_text() == f"default/{won[0]}\n"


def test_a_marker_that_was_never_written_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / SENTINEL).touch()
    claim(tmp_path, job())
    assert (tmp_path / SENTINEL).read_text() == "default/my-dog\n"


def test_all_places_that_are_somebody_elses_are_told_at_once(tmp_path: Path, bucket: Any) -> None:
    make_job_folder(tmp_path)
    atomic_write(tmp_path / "model" / "notes.txt", "mine")
    bucket.pipe_file("/bucket/model/photo.png", b"mine")
    issues = [str(issue) for issue in output_issues(job("memory://bucket/model"), JobFolder(tmp_path))]
    assert len(issues) == 2
    assert "model': holds notes.txt, which this job did not make and would replace" in issues[0]
    assert "spec.output.uri: 'memory://bucket/model': holds photo.png, and no model of this job" in issues[1]
    (tmp_path / "model" / "notes.txt").unlink()
    assert output_issues(job("memory://bucket/elsewhere"), JobFolder(tmp_path)) == []


class Silent:
    def total(self, count: int) -> None: ...

    def done(self, count: int, **facts: object) -> None: ...


def test_publishing_again_removes_what_the_model_no_longer_has(tmp_path: Path, bucket: Any) -> None:
    first = make_model(tmp_path / "first", "model_index.json", "unet/weights", "my-dog.safetensors")
    upload(tmp_path / "first", first, "memory://bucket/model", job(), Silent())
    bucket.pipe_file("/bucket/model/notes.txt", b"mine")
    second = make_model(tmp_path / "second", "my-dog.safetensors", "scores.json")
    upload(tmp_path / "second", second, "memory://bucket/model", job(), Silent())
    there = {path.removeprefix("/bucket/model/") for path in bucket.find("/bucket/model")}
    assert there == {MANIFEST, "my-dog.safetensors", "scores.json", "notes.txt"}
    assert ModelManifest.model_validate_json(bucket.cat_file(f"/bucket/model/{MANIFEST}")) == second


def test_an_upload_that_is_cut_short_lists_all_that_is_there(tmp_path: Path, bucket: Any) -> None:
    first = make_model(tmp_path / "first", "model_index.json", "old")
    upload(tmp_path / "first", first, "memory://bucket/model", job(), Silent())
    second = make_model(tmp_path / "second", "new", "newer")
    (tmp_path / "second" / "newer").unlink()
    with pytest.raises(FileNotFoundError):
        upload(tmp_path / "second", second, "memory://bucket/model", job(), Silent())
    listed = ModelManifest.model_validate_json(bucket.cat_file(f"/bucket/model/{MANIFEST}")).files
    assert {path.removeprefix("/bucket/model/") for path in bucket.find("/bucket/model")} <= set(listed)


@pytest.mark.parametrize("owner", ["my-dog", "another-dog"])
def test_publishing_replaces_no_file_of_somebody_else(tmp_path: Path, bucket: Any, owner: str) -> None:
    upload(tmp_path, make_model(tmp_path, "a", owner=owner), "memory://bucket/model", job(name=owner), Silent())
    bucket.pipe_file("/bucket/model/scores.json", b"mine")
    before = {path: bucket.cat_file(path) for path in bucket.find("/bucket/model")}
    made = make_model(tmp_path / "second", "a", "scores.json")
    rule = "holds scores.json, which this job" if owner == "my-dog" else "holds the model of job default/another-dog"
    with pytest.raises(UserError, match=rf"spec\.output\.uri: .*{rule}"):
        upload(tmp_path / "second", made, "memory://bucket/model", job(), Silent())
    assert {path: bucket.cat_file(path) for path in bucket.find("/bucket/model")} == before


def test_erasing_removes_the_folder_and_the_published_copy(tmp_path: Path, bucket: Any) -> None:
    root = tmp_path / "out"
    make_job_folder(root)
    made, published = make_model(tmp_path / "copy", "model_index.json", "unet/weights"), job("memory://bucket/model")
    upload(tmp_path / "copy", made, "memory://bucket/model", published, Silent())
    assert list(erase_job(published, str(root))) == [Erased("memory://bucket/model", ()), Erased(str(root), ())]
    assert not root.exists()
    assert not bucket.find("/bucket/model")
    assert list(erase_job(published, str(root))) == []


def test_erasing_leaves_what_others_put_there_and_names_it(tmp_path: Path, bucket: Any) -> None:
    root, published = tmp_path / "out", job("memory://bucket/model")
    make_job_folder(root)
    upload(root / "model", make_model(root / "model", "a"), "memory://bucket/model", published, Silent())
    bucket.pipe_file("/bucket/model/photo.png", b"mine")
    atomic_write(root / "notes.txt", "mine")
    atomic_write(root / "model" / "unet" / "mine.txt", "mine")
    (root / "model" / "unet" / "weights").unlink()
    (root / "model" / "model_index.json").unlink()
    places = list(erase_job(published, str(root)))
    assert places[0] == Erased("memory://bucket/model", ("photo.png",))
    assert places[1] == Erased(str(root), ("model/unet/mine.txt", "notes.txt"))
    assert contents(root) == {"model/unet/mine.txt": "mine", "notes.txt": "mine"}


def test_an_erasure_that_is_cut_short_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, root = os.unlink, tmp_path / "out"
    make_job_folder(root)
    for allowed in range(len(contents(root))):
        make_job_folder(root)
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
            list(erase_job(job(), str(root)))
        assert list(erase_job(job(), str(root))) == [Erased(str(root), ())]
        assert not root.exists()


@pytest.mark.parametrize("kind", ["photos", "a work folder", "a parent of jobs", "another job", "a model", "a file"])
def test_erasing_touches_no_folder_of_somebody_else(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "x"
    match kind:
        case "photos":
            atomic_write(root / "photo.png", "mine")
        case "a work folder":
            atomic_write(root / "work" / "thesis.txt", "mine")
            atomic_write(root / "job.yaml", "mine")
        case "a parent of jobs":
            make_job_folder(root / "work")
            make_job_folder(root / "my-dog")
        case "another job":
            claim(root, job(name="another-dog"))
            atomic_write(root / "work" / "latents", "x")
        case "a model":
            make_model(root, "model_index.json")
        case _:
            atomic_write(root, "mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"--out: .*(and no marker of a job|is the folder of job default/another-dog)"):
        list(erase_job(job(), str(root)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["files", "another job's model", "a manifest that leads outside"])
def test_erasing_takes_no_other_folder_for_the_published_model(tmp_path: Path, bucket: Any, kind: str) -> None:
    bucket.pipe_file("/bucket/model/work/photos.txt", b"mine")
    bucket.pipe_file("/bucket/victim", b"theirs")
    if kind != "files":
        files = ("work/photos.txt", MANIFEST) if kind == "another job's model" else ("../victim", MANIFEST)
        made = note(files, "another-dog" if kind == "another job's model" else "my-dog")
        bucket.pipe_file(f"/bucket/model/{MANIFEST}", made.model_dump_json(by_alias=True).encode())
    before = bucket.find("/bucket")
    (place,) = erase_job(job("memory://bucket/model"), str(tmp_path / "nothing"))
    assert not place.ours
    assert bucket.find("/bucket") == before
