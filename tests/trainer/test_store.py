"""Atomic writes, leases, and the ownership of folders."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from PIL import Image

from dreambooth_api import environment
from dreambooth_api.errors import UserError
from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.cli.erase import erase
from dreambooth_trainer.phases.publish import upload
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.store import lease as lease_module
from dreambooth_trainer.store.claim import claim, claim_url, output_issues
from dreambooth_trainer.store.erase import Erased, erase_job
from dreambooth_trainer.store.folder import JobFolder, atomic_directory, atomic_write, link_or_copy
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.lease import _machine, lease
from dreambooth_trainer.store.owner import MARKER, Owner
from dreambooth_trainer.store.published import MANIFEST, ModelManifest
from dreambooth_trainer.store.verify import verify_model


def job(uri: str | None = None, name: str = "my-dog", uid: str = "") -> DreamBoothJob:
    checked = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": name, "uid": uid},
            "spec": {"subject": {"class": "dog", "images": {"uri": "x"}}},
        }
    )
    # memory:// stands for s3://. A job file cannot contain it.
    output = checked.spec.output.model_copy(update={"uri": uri})
    return checked.model_copy(update={"spec": checked.spec.model_copy(update={"output": output})})


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def manifest(files: dict[str, str], name: str = "my-dog", uid: str = "") -> ModelManifest:
    sampler = SamplerSettings(steps=1, guidance_scale=1)
    return ModelManifest(
        job=Owner(namespace="default", name=name, uid=uid), files=files, base_model="x", base_digest="x",
        instance_prompts=("x",), class_prompts=("x",),
        resolution=32, sampler=sampler,
    )  # fmt: skip


def write_model(folder: Path, *names: str, owner: str = "my-dog", uid: str = "") -> ModelManifest:
    """Write a published model of a job."""
    for name in names:
        atomic_write(folder / name, f"content of {name}")
    digests = {name: hashlib.sha256(f"content of {name}".encode()).hexdigest() for name in names}
    content = manifest(digests, owner, uid)
    atomic_write(folder / MANIFEST, content.model_dump_json(by_alias=True))
    return content


FOLDERS = ("validation/step-000000/0.png", "trackers/mlflow/1/meta.yaml")


def write_job_folder(root: Path) -> None:
    """Write the folder of a finished job."""
    claim(root, job())
    for name in ("job.yaml", "report.html", "work/latents", *FOLDERS, *(f"work/image-{n}.png" for n in range(6))):
        atomic_write(root / name, "x")
    write_model(root / "model", "model_index.json", "unet/weights")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    with pytest.raises(TypeError):
        atomic_write(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def fill(text: str, *, fail: bool) -> None:
        with atomic_directory(path) as temporary:
            (temporary / "weights").write_text(text)
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


def test_a_crash_between_the_two_renames_is_repaired(tmp_path: Path) -> None:
    path, old = tmp_path / "model", tmp_path / ".model.old"
    old.mkdir()
    (old / "weights").write_text("kept")
    with pytest.raises(OSError), atomic_directory(path):
        raise OSError
    assert (path / "weights").read_text() == "kept"


@pytest.mark.parametrize("url", ["{tmp}/images", "memory://images"])
def test_stored_images_are_read_back_unchanged(tmp_path: Path, url: str) -> None:
    store = ImageStore(url.format(tmp=tmp_path))
    assert store.names() == set()
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    store.put("000001", image)
    assert store.names() == {"000001"}
    assert store.get("000001").tobytes() == image.tobytes()


def test_only_one_process_holds_a_lease(tmp_path: Path) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    inside, counts = [], []

    def work() -> None:
        with lease(fs, path, lambda: 0):
            inside.append(1)
            counts.append(len(inside))
            time.sleep(0.1)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1, 1, 1, 1]
    assert not (tmp_path / "lease.json").exists()


def test_a_stale_lease_of_another_machine_is_taken_over(tmp_path: Path) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    (tmp_path / "lease.json").write_text('{"machine": "elsewhere", "pid": 1, "id": "x", "beat": 3}')
    waited: list[int] = []

    def wait() -> int:
        waited.append(1)
        return 0

    with lease(fs, path, wait, stale_seconds=1.2):
        assert waited


@pytest.mark.parametrize("kind", ["a dangling link", "a folder", "a pipe", "a large file", "nested", "a huge number"])
def test_what_is_no_lease_is_taken_over(tmp_path: Path, kind: str) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    file = tmp_path / "lease.json"
    match kind:
        case "a dangling link":
            file.symlink_to(tmp_path / "elsewhere")
        case "a folder":
            atomic_write(file / "x", "x")
        case "a pipe":
            os.mkfifo(file)
        case "a large file":
            file.write_bytes(bytes(2**20))
        case "nested":
            file.write_text("[" * 4000)
        case _:
            file.write_text(json.dumps({"machine": _machine(), "pid": 10**40}))
    with lease(fs, path, lambda: 0, stale_seconds=0.2):
        assert json.loads(file.read_text())["beat"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_lease_whose_holder_does_not_work_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.5)
    # Each reading of the clock is half a second later, so that a pause of this machine changes nothing.
    monkeypatch.setattr(lease_module, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    done = iter([1, 2, 3, *[3] * 1000])
    beats = itertools.count()

    def beat() -> int:
        # Somebody keeps the lease alive for ever.
        (tmp_path / "lease.json").write_text(json.dumps({"id": "x", "beat": next(beats)}))
        return next(done)

    beat()
    with lease(fs, path, beat, max_idle_seconds=1):
        assert (tmp_path / "lease.json").exists(), "it is not ours"
    assert next(beats) > 3, "work that goes on is waited for"
    assert (tmp_path / "lease.json").exists()


def test_a_lease_does_not_name_the_machine(tmp_path: Path) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    with lease(fs, path, lambda: 0):
        content = (tmp_path / "lease.json").read_text()
    assert socket.gethostname() not in content
    assert set(json.loads(content)) == {"machine", "pid", "id", "beat"}


def test_a_lease_of_a_dead_local_process_is_taken_over_at_once(tmp_path: Path) -> None:
    fs, path = fsspec.url_to_fs(str(tmp_path / "lease.json"))
    dead = subprocess.Popen(["true"])
    dead.wait()
    holder = {"machine": _machine(), "pid": dead.pid, "id": "x", "beat": 3}
    (tmp_path / "lease.json").write_text(json.dumps(holder))
    with lease(fs, path, lambda: pytest.fail("it waited for a dead process")):
        pass
    assert not (tmp_path / "lease.json").exists()


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """A file system without folders, like an object store."""
    fs = fsspec.filesystem("memory")
    yield fs
    if fs.exists("/bucket"):
        fs.rm("/bucket", recursive=True)


def test_a_job_can_claim_a_new_an_empty_and_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "empty"):
        claim(tmp_path / name, job())
        assert [p.name for p in (tmp_path / name).iterdir()] == [MARKER]
    atomic_write(tmp_path / "new" / "job.yaml", "x")
    claim(tmp_path / "new", job())


def test_a_foreign_folder_is_rejected_and_not_changed(tmp_path: Path) -> None:
    atomic_write(tmp_path / "mine" / "job.yaml", "# a comment")
    atomic_write(tmp_path / "mine" / "photos" / "1.jpg", "x")
    claim(tmp_path / "other", job(name="another-dog"))
    before = contents(tmp_path)
    with pytest.raises(
        UserError, match=r"--out: '.*mine': contains job.yaml, photos, and is not the folder of a job; use an"
    ):
        claim(tmp_path / "mine", job())
    with pytest.raises(UserError, match="is the folder of job default/another-dog; use an empty folder"):
        claim(tmp_path / "other", job())
    with pytest.raises(UserError, match="is not a folder"):
        claim(tmp_path / "mine" / "job.yaml", job())
    assert contents(tmp_path) == before


def test_only_one_of_several_jobs_can_claim_an_empty_folder(tmp_path: Path) -> None:
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
        assert json.loads((root / MARKER).read_text()) == {"namespace": "default", "name": won[0]}


def test_an_empty_marker_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / MARKER).touch()
    claim(tmp_path, job(uid="u-1"))
    assert json.loads((tmp_path / MARKER).read_text()) == {"namespace": "default", "name": "my-dog", "uid": "u-1"}


def test_all_foreign_files_are_reported_at_once(tmp_path: Path, bucket: Any) -> None:
    write_job_folder(tmp_path)
    atomic_write(tmp_path / "model" / "notes.txt", "mine")
    bucket.pipe_file("/bucket/model/photo.png", b"mine")
    issues = [str(issue) for issue in output_issues(job("memory://bucket/model"), JobFolder(tmp_path))]
    assert len(issues) == 2
    assert "model': contains notes.txt, which this job did not create and would overwrite" in issues[0]
    assert "spec.output.uri: 'memory://bucket/model': contains photo.png, and is not the folder of a job" in issues[1]
    (tmp_path / "model" / "notes.txt").unlink()
    assert output_issues(job("memory://bucket/elsewhere"), JobFolder(tmp_path)) == []


class Silent:
    def total(self, count: int) -> None: ...

    def done(self, count: int, **facts: object) -> None: ...


def test_publishing_again_deletes_files_that_the_model_no_longer_has(tmp_path: Path, bucket: Any) -> None:
    first = write_model(tmp_path / "first", "model_index.json", "unet/weights", "my-dog.safetensors")
    upload(tmp_path / "first", first, "memory://bucket/model", job(), Silent())
    bucket.pipe_file("/bucket/model/notes.txt", b"mine")
    second = write_model(tmp_path / "second", "my-dog.safetensors", "scores.json")
    upload(tmp_path / "second", second, "memory://bucket/model", job(), Silent())
    existing = {path.removeprefix("/bucket/model/") for path in bucket.find("/bucket/model")}
    assert existing == {MARKER, MANIFEST, "my-dog.safetensors", "scores.json", "notes.txt"}
    assert ModelManifest.model_validate_json(bucket.cat_file(f"/bucket/model/{MANIFEST}")) == second


def test_the_manifest_of_an_interrupted_upload_lists_all_uploaded_files(tmp_path: Path, bucket: Any) -> None:
    first = write_model(tmp_path / "first", "model_index.json", "old")
    upload(tmp_path / "first", first, "memory://bucket/model", job(), Silent())
    second = write_model(tmp_path / "second", "new", "newer")
    (tmp_path / "second" / "newer").unlink()
    with pytest.raises(FileNotFoundError):
        upload(tmp_path / "second", second, "memory://bucket/model", job(), Silent())
    listed = ModelManifest.model_validate_json(bucket.cat_file(f"/bucket/model/{MANIFEST}")).files
    assert {p.removeprefix("/bucket/model/") for p in bucket.find("/bucket/model")} <= {MARKER, MANIFEST, *listed}


@pytest.mark.parametrize("owner", ["my-dog", "another-dog"])
def test_publishing_does_not_overwrite_foreign_files(tmp_path: Path, bucket: Any, owner: str) -> None:
    upload(tmp_path, write_model(tmp_path, "a", owner=owner), "memory://bucket/model", job(name=owner), Silent())
    bucket.pipe_file("/bucket/model/scores.json", b"mine")
    before = {path: bucket.cat_file(path) for path in bucket.find("/bucket/model")}
    made = write_model(tmp_path / "second", "a", "scores.json")
    rule = "contains scores.json, which this job" if owner == "my-dog" else "is the folder of job default/another-dog"
    with pytest.raises(UserError, match=rf"spec\.output\.uri: .*{rule}"):
        upload(tmp_path / "second", made, "memory://bucket/model", job(), Silent())
    assert {path: bucket.cat_file(path) for path in bucket.find("/bucket/model")} == before


def test_erase_deletes_the_folder_and_the_published_copy(tmp_path: Path, bucket: Any) -> None:
    root = tmp_path / "out"
    write_job_folder(root)
    made, published = write_model(tmp_path / "copy", "model_index.json", "unet/weights"), job("memory://bucket/model")
    upload(tmp_path / "copy", made, "memory://bucket/model", published, Silent())
    assert list(erase_job(published, str(root))) == [Erased("memory://bucket/model", ()), Erased(str(root), ())]
    assert not root.exists()
    assert not bucket.find("/bucket/model")
    assert list(erase_job(published, str(root))) == []


def test_erase_keeps_and_reports_foreign_files(tmp_path: Path, bucket: Any) -> None:
    root, published = tmp_path / "out", job("memory://bucket/model")
    write_job_folder(root)
    upload(root / "model", write_model(root / "model", "a"), "memory://bucket/model", published, Silent())
    bucket.pipe_file("/bucket/model/photo.png", b"mine")
    atomic_write(root / "notes.txt", "mine")
    atomic_write(root / "model" / "unet" / "mine.txt", "mine")
    (root / "model" / "unet" / "weights").unlink()
    (root / "model" / "model_index.json").unlink()
    results = list(erase_job(published, str(root)))
    assert results[0] == Erased("memory://bucket/model", ("photo.png",))
    assert results[1] == Erased(str(root), ("model/unet/mine.txt", "notes.txt"))
    assert contents(root) == {"model/unet/mine.txt": "mine", "notes.txt": "mine"}


def test_an_interrupted_erase_is_completed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, root = os.unlink, tmp_path / "out"
    write_job_folder(root)
    for allowed in range(len(contents(root))):
        write_job_folder(root)
        remaining = allowed

        def unlink_or_die(*arguments: Any, **named: Any) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                raise OSError("killed")
            unlink(*arguments, **named)

        with monkeypatch.context() as dying, pytest.raises(OSError, match="killed"):
            dying.setattr(os, "unlink", unlink_or_die)
            dying.setattr(os, "remove", unlink_or_die)
            list(erase_job(job(), str(root)))
        assert list(erase_job(job(), str(root))) == [Erased(str(root), ())]
        assert not root.exists()


@pytest.mark.parametrize("kind", ["photos", "a work folder", "a parent of jobs", "another job", "a model", "a file"])
def test_erase_does_not_change_foreign_folders(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "x"
    match kind:
        case "photos":
            atomic_write(root / "photo.png", "mine")
        case "a work folder":
            atomic_write(root / "work" / "thesis.txt", "mine")
            atomic_write(root / "job.yaml", "mine")
        case "a parent of jobs":
            write_job_folder(root / "work")
            write_job_folder(root / "my-dog")
        case "another job":
            claim(root, job(name="another-dog"))
            atomic_write(root / "work" / "latents", "x")
        case "a model":
            write_model(root, "model_index.json")
        case _:
            atomic_write(root, "mine")
    before = contents(tmp_path)
    with pytest.raises(
        UserError, match=r"--out: .*(and is not the folder of a job|is the folder of job default/another-dog)"
    ):
        list(erase_job(job(), str(root)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["files", "another job's model", "a model of our name without a marker"])
def test_erase_does_not_change_a_foreign_folder_at_the_output(tmp_path: Path, bucket: Any, kind: str) -> None:
    bucket.pipe_file("/bucket/model/work/photos.txt", b"mine")
    if kind != "files":
        owner = "another-dog" if kind == "another job's model" else "my-dog"
        made = manifest({"work/photos.txt": ""}, owner)
        bucket.pipe_file(f"/bucket/model/{MANIFEST}", made.model_dump_json(by_alias=True).encode())
        if owner != "my-dog":
            bucket.pipe_file(f"/bucket/model/{MARKER}", made.job.model_dump_json().encode())
    before = bucket.find("/bucket")
    (result,) = erase_job(job("memory://bucket/model"), str(tmp_path / "nothing"))
    assert not result.owned
    assert bucket.find("/bucket") == before


def test_erase_deletes_no_file_outside_of_the_folder_that_a_manifest_names(tmp_path: Path, bucket: Any) -> None:
    claim_url("memory://bucket/model", job())
    bucket.pipe_file("/bucket/victim", b"theirs")
    made = manifest({"../victim": ""})
    bucket.pipe_file(f"/bucket/model/{MANIFEST}", made.model_dump_json(by_alias=True).encode())
    list(erase_job(job("memory://bucket/model"), str(tmp_path / "nothing")))
    assert bucket.cat_file("/bucket/victim") == b"theirs"


@pytest.mark.parametrize("linked", ["model", "model/unet", "work", "work/inner", "logs"])
def test_erase_does_not_follow_links(tmp_path: Path, linked: str) -> None:
    root, victim = tmp_path / "out", tmp_path / "victim"
    write_job_folder(root)
    atomic_write(root / "logs" / "attempt-1.log", "x")
    atomic_write(root / "work" / "inner" / "x", "x")
    # The victim has the same files, for example those of another job.
    shutil.copytree(root / linked, victim)
    before = contents(victim)
    shutil.rmtree(root / linked)
    (root / linked).symlink_to(victim)
    list(erase_job(job(), str(root)))
    assert contents(victim) == before
    assert not (root / MARKER).exists()


def test_erase_of_a_url_deletes_only_listed_keys(tmp_path: Path, bucket: Any) -> None:
    uri = "memory://bucket/model"
    upload(tmp_path, write_model(tmp_path, "unet/weights"), uri, job(uri), Silent())
    bucket.pipe_file("/bucket/model/logs/attempt-1.log", b"ours")
    for name in ("work/photos.txt", "unet/mine", "logs/mine.txt", "report.html"):
        bucket.pipe_file(f"/bucket/model/{name}", b"mine")
    (result,) = erase_job(job(uri), uri)
    assert result.kept == ("logs/mine.txt", "report.html", "unet/mine", "work/photos.txt")
    assert [path.removeprefix("/bucket/model/") for path in bucket.find("/bucket/model")] == list(result.kept)


def test_a_folder_inside_the_folder_of_a_job_is_rejected(tmp_path: Path) -> None:
    claim(tmp_path / "outer", job())
    for name in ("outer/work", "outer/a/b"):
        with pytest.raises(UserError, match=r"is inside .*outer, the folder of job default/my-dog; use a folder out"):
            claim(tmp_path / name, job(name="another-dog"))
    assert list(contents(tmp_path)) == [f"outer/{MARKER}"]


@pytest.mark.parametrize("linked", ["model", "work", "logs"])
def test_a_folder_with_a_link_to_another_folder_is_rejected(tmp_path: Path, linked: str) -> None:
    claim(tmp_path / "out", job())
    (tmp_path / "victim").mkdir()
    (tmp_path / "out" / linked).symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=f"--out: .*contains {linked}, a link to another folder; remove the link"):
        claim(tmp_path / "out", job())


def test_a_job_that_was_created_again_continues_the_work_and_keeps_the_model(tmp_path: Path, bucket: Any) -> None:
    root, uri = tmp_path / "out", "memory://bucket/model"
    claim(root, job(uid="old"))
    atomic_write(root / "work" / "latents", "x")
    claim_url(uri, job(uri, uid="old"))
    with pytest.raises(UserError, match="is the folder of job default/my-dog with uid old; pass the folder of the job"):
        list(erase_job(job(uid="new"), str(root)))
    claim(root, job(uid="new"))
    claim_url(uri, job(uri, uid="new"))
    assert json.loads((root / MARKER).read_text())["uid"] == "new"
    assert json.loads(bucket.cat_file(f"/bucket/model/{MARKER}"))["uid"] == "new"
    write_model(root / "model", "weights", uid="new")
    upload(root / "model", write_model(root / "model", "weights", uid="new"), uri, job(uri, uid="new"), Silent())
    before = contents(root)
    issues = [str(issue) for issue in output_issues(job(uri, uid="newest"), JobFolder(root))]
    assert len(issues) == 2
    assert all("contains the model of an earlier job default/my-dog, with uid new; " in issue for issue in issues)
    assert contents(root) == before
    assert output_issues(job(uri), JobFolder(root)) == [], "a job file without a uid"


def test_a_job_on_a_cluster_that_owns_nothing_can_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(job(name="another-dog").model_dump_json(by_alias=True, exclude_none=True))
    write_job_folder(tmp_path / "out")
    before = contents(tmp_path)
    arguments = [str(file), "--out", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(erase, arguments).exception, UserError), "a wrong folder on one machine"
    monkeypatch.setattr(environment, "JOB_FILE", str(file))
    result = CliRunner().invoke(erase, arguments)
    assert result.exit_code == 0
    assert "nothing to delete: --out: " in result.output
    assert contents(tmp_path) == before


def test_two_jobs_with_the_same_output_do_not_mix(tmp_path: Path, bucket: Any) -> None:
    uri = "memory://bucket/model"
    claim_url(uri, job(uri))
    other = job(uri, name="another-dog")
    for attempt in (
        lambda: claim_url(uri, other),
        lambda: upload(tmp_path, write_model(tmp_path, "a"), uri, other, Silent()),
    ):
        with pytest.raises(UserError, match=r"spec\.output\.uri: .*is the folder of job default/my-dog; use an empty"):
            attempt()
    assert bucket.find("/bucket/model") == [f"/bucket/model/{MARKER}"]


@pytest.mark.parametrize("damage", ["changed", "missing", "none"])
def test_verify_checks_every_file(tmp_path: Path, bucket: Any, damage: str) -> None:
    write_model(tmp_path / "model", "model_index.json", "my-dog.safetensors")
    upload(tmp_path / "model", write_model(tmp_path / "model", "unet/w"), "memory://bucket/m", job(), Silent())
    write_model(tmp_path / "model", "unet/w")
    for uri, file in ((str(tmp_path), tmp_path / "model" / "unet" / "w"), ("memory://bucket/m", "/bucket/m/unet/w")):
        if damage == "none":
            assert verify_model(uri)[0].startswith("sha256:")
            continue
        if damage == "missing":
            file.unlink() if isinstance(file, Path) else bucket.rm_file(file)
        else:
            file.write_text("x") if isinstance(file, Path) else bucket.pipe_file(file, b"x")
        with pytest.raises(
            UserError, match=r"unet/w: (is missing|has SHA-256 .* but dreambooth.json lists .*); do not"
        ):
            verify_model(uri)


def test_everyone_can_read_the_files_of_a_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as draft:
        (draft / "unet").mkdir()
        (draft / "unet" / "weights.safetensors").touch(mode=0o600)
    assert (tmp_path / "model" / "unet" / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_published_weights_use_no_more_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
        link_or_copy(str(tmp_path / name), str(tmp_path / f"published-{name}"))
    assert (tmp_path / "a.safetensors").samefile(tmp_path / "published-a.safetensors")
    assert not (tmp_path / "config.json").samefile(tmp_path / "published-config.json"), "users may edit it"

    def no_links(source: str, target: str) -> None:
        raise OSError("not supported")

    monkeypatch.setattr("os.link", no_links)
    link_or_copy(str(tmp_path / "a.safetensors"), str(tmp_path / "copied.safetensors"))
    assert (tmp_path / "copied.safetensors").read_text() == "a.safetensors"
    assert not (tmp_path / "a.safetensors").samefile(tmp_path / "copied.safetensors")
