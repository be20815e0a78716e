"""The client's local backend, with real processes that train nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from dreambooth import Client, ClientError, Job, JobExistsError, JobFailedError, JobNotFoundError, Phase, UserError
from dreambooth.locallog import last_lines, log_lines
from dreambooth.process import COMMAND
from dreambooth_trainer.store import erase
from dreambooth_trainer.store.claim import claim
from dreambooth_trainer.store.file_lock import holder, lock_file
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.status_file import read_record, starting_record

PHOTOS = "builtin:sprites/dog-pink-blue"


def run(client: Client, class_: str, name: str = "my-dog") -> Job:
    return client.run(images=PHOTOS, class_=class_, name=name)


def running(client: Client, name: str = "my-dog") -> Job:
    """A job that trains until it is interrupted."""
    job = run(client, "cat", name)
    job.wait(30, "Running", progress=False)
    deadline = time.monotonic() + 30
    while not job.status.training and time.monotonic() < deadline:
        time.sleep(0.05)
    return job


def test_a_job_succeeds(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = run(client, "dog").wait(60)
    status = job.status
    assert (status.phase, status.attempts) == (Phase.SUCCEEDED, 1)
    assert status.message == f"The model was published to {tmp_path}/my-dog/model."
    assert status.class_images and status.class_images.reused == 3
    assert status.training and (status.training.progress, status.training.loss) == ("10/10", 0.125)
    assert {c.type for c in status.conditions} == {
        "ClassImagesReady",
        "Trained",
        "Evaluated",
        "Published",
        "Succeeded",
    }
    assert job.scores == {"dino": 0.75}
    assert [line.partition(" ")[2] for line in job.logs()][:2] == ["line 1", "line 2"]
    assert [line.partition(" ")[2] for line in job.logs(tail=2)] == ["line 3", "completed"]
    assert [event.reason for event in job.events()][-2:] == ["PublishCompleted", "Succeeded"]
    assert [path.name for path in job.images()][:2] == ["report.html", "comparison.png"]
    assert all(path.parent == tmp_path / "copy" and path.exists() for path in job.images(tmp_path / "copy"))
    assert "data:image/png;base64" in job._repr_html_()
    assert capsys.readouterr().out.splitlines()[-1].startswith("Succeeded: The model was published")
    assert job.wait(0, "condition=Trained") is job
    with pytest.raises(JobFailedError, match=r"^job my-dog finished without reaching Suspended; phase Succeeded: "):
        job.wait(5, "Suspended")
    job.resume()
    assert (job.status.phase, job.status.attempts) == (Phase.SUCCEEDED, 1), "there is nothing left to do"
    shutil.rmtree(tmp_path / "my-dog" / "work")
    assert job.status.phase is Phase.SUCCEEDED, "its intermediate files may be deleted"
    with pytest.raises(JobExistsError):
        run(client, "dog")


def test_a_failed_job_raises_its_message_and_can_be_resumed(client: Client) -> None:
    job = run(client, "bird")
    with pytest.raises(JobFailedError, match=r"job my-dog failed: .*spec.x: 1: is <b>wrong</b>; use 2") as caught:
        job.wait(60, progress=False)
    assert caught.value.reason == "InvalidInput"
    assert job.events()[-1].type == "Warning"
    assert "&lt;b&gt;wrong" in job._repr_html_() and "<b>wrong" not in job._repr_html_()
    with pytest.raises(ClientError, match="has not published a model; its phase is Failed"):
        job.images()
    job.resume()
    with pytest.raises(JobFailedError):
        job.wait(60, progress=False)
    assert (job.status.attempts, job.status.failures) == (2, 2)


def test_a_killed_process_is_a_failed_job_with_its_last_words(client: Client) -> None:
    with pytest.raises(JobFailedError, match=r"ended unexpectedly.*killed by a shark") as caught:
        run(client, "fish").wait(60, progress=False)
    assert caught.value.reason == "ProcessEnded"


def test_suspend_resume_and_delete(client: Client, tmp_path: Path) -> None:
    job = running(client)
    job.resume()
    with pytest.raises(TimeoutError, match=r"my-dog has not reached Succeeded in 0 s; Running: The trainer is"):
        job.wait(0)
    job.suspend()
    job.wait(30, "Suspended", progress=False)
    assert job.status.attempts == 1
    assert not job.status.last_failure
    job.suspend()
    job.resume()
    job.wait(30, "Running", progress=False)
    (tmp_path / "my-dog" / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=r"notes.txt in .*/my-dog were not created by this job and remain"):
        job.delete()
    assert [path.name for path in (tmp_path / "my-dog").iterdir()] == ["notes.txt"]
    assert client.list() == []
    for call in (job.suspend, job.delete, job.images, job.logs, lambda: job.status, lambda: client.get("my-dog")):
        with pytest.raises(JobNotFoundError, match="job my-dog not found in"):
            call()
    assert "job my-dog not found" in job._repr_html_()


def test_a_job_is_suspended_while_its_process_starts(client: Client) -> None:
    job = run(client, "cat")
    job.suspend()
    assert job.wait(30, "Suspended", progress=False).status.attempts == 1


def test_logs_are_followed_to_the_end(client: Client) -> None:
    job = running(client)
    threading.Timer(0.5, job.suspend).start()
    lines = [line.partition(" ")[2] for line in job.logs(follow=True)]
    assert lines[:2] == ["line 1", "line 2"]
    assert lines[-1] == "interrupted: KeyboardInterrupt"


def test_a_log_that_was_shortened_is_followed_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolder(tmp_path)
    log = tmp_path / "logs" / "attempt-1.log"
    log.parent.mkdir()
    log.write_text("long\n" * 100)
    contents = ["long\n", "long\nnew\npart of a", "long\nnew\npart of a line\n\N{SNOWMAN}"]

    def running(_: Path) -> int | None:
        log.write_text(contents.pop(0))
        return 7 if contents else None

    monkeypatch.setattr("dreambooth.locallog.POLL_SECONDS", 0)
    monkeypatch.setattr("dreambooth.locallog.holder", running)
    assert list(log_lines(folder, follow=True, tail=1)) == ["long", "new", "part of a line", "\N{SNOWMAN}"]


def test_following_ends_with_the_attempt_although_another_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "attempt-1.log").write_text("first\n")
    looks = [7] * 20

    def running(_: Path) -> int:
        (tmp_path / "logs" / "attempt-2.log").touch()
        return looks.pop()

    monkeypatch.setattr("dreambooth.locallog.POLL_SECONDS", 0)
    monkeypatch.setattr("dreambooth.locallog.holder", running)
    assert list(log_lines(JobFolder(tmp_path), follow=True, tail=-1)) == ["first"]


def test_the_log_of_a_resumed_job_is_that_of_the_new_attempt(client: Client, tmp_path: Path) -> None:
    job = running(client)
    job.suspend()
    job.wait(30, "Suspended", progress=False)
    job.resume()
    assert list(job.logs()) == [], "not those of the first attempt"
    first = next(job.logs(follow=True))
    assert first == (tmp_path / "my-dog" / "logs" / "attempt-2.log").read_text().splitlines()[0]
    job.suspend()
    job.wait(30, "Suspended", progress=False)


def test_two_clients_on_one_folder(client: Client, tmp_path: Path) -> None:
    other = Client(folder=tmp_path)
    job = running(client)
    with pytest.raises(JobExistsError, match="my-dog exists; continue the job with get"):
        run(other, "dog")
    (found,) = other.list()
    assert found.name == "my-dog"
    assert found.status.training and found.status.training.step == 5
    found.suspend()
    job.wait(30, "Suspended", progress=False)


def test_of_clients_that_start_a_job_together_one_succeeds(client: Client, tmp_path: Path) -> None:
    results: list[object] = []

    def start() -> None:
        try:
            results.append(run(Client(folder=tmp_path), "dog"))
        except JobExistsError as error:
            results.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, Job) for result in results) == 1
    assert client.get("my-dog").wait(60, progress=False).status.attempts == 1


def test_a_job_that_another_client_has_just_created_is_kept(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path / "my-dog")

    def claim_second(*given: Any) -> None:
        claim(*given)
        folder.work.mkdir()
        folder.submitted.write_text("of the other client")

    monkeypatch.setattr("dreambooth.local.claim", claim_second)
    with pytest.raises(JobExistsError):
        run(client, "dog")
    assert folder.submitted.read_text() == "of the other client"


def test_an_interrupt_of_the_client_does_not_reach_the_job(client: Client, tmp_path: Path) -> None:
    code = (
        "import signal, sys, dreambooth.process as p; from dreambooth import Client\n"
        f"p.COMMAND = (sys.executable, {str(Path(__file__).parent / 'dreambooth_fake.py')!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"Client(folder={str(tmp_path)!r}).run(images={PHOTOS!r}, class_='cat', name='my-dog').wait(until='Running')\n"
        "print('runs', flush=True)\n"
        "import time; time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0
    )
    assert process.stdout
    assert any(line == "runs\n" for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    job = client.get("my-dog")
    time.sleep(0.5)
    assert job.status.phase is Phase.RUNNING
    assert holder(tmp_path / "my-dog" / "work" / "lock") != process.pid
    job.suspend()
    job.wait(30, "Suspended", progress=False)


def test_a_foreign_folder_is_refused_and_kept(client: Client, tmp_path: Path) -> None:
    (tmp_path / "my-dog").mkdir()
    (tmp_path / "my-dog" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"contains thesis.txt, and is not the folder of a job"):
        run(client, "dog")
    assert [path.name for path in (tmp_path / "my-dog").iterdir()] == ["thesis.txt"]
    with pytest.raises(JobNotFoundError):
        client.get("my-dog")


def test_a_job_that_cannot_be_started_leaves_its_name_free(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: JobFolder, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder.status))

    with monkeypatch.context() as patched:
        patched.setattr("dreambooth.local.write_record", full)
        with pytest.raises(ClientError, match=r"^job my-dog cannot be started: .*status.json: No space left on device"):
            run(client, "dog")
    assert list(tmp_path.iterdir()) == []
    run(client, "dog").wait(60, progress=False)
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match=r"^job my-dog: .*file: File exists$"):
        client.get("my-dog").images(tmp_path / "file")


def test_a_job_that_is_deleted_while_it_is_read_is_missing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(client, "dog").wait(60, progress=False)
    monkeypatch.setattr("dreambooth.localstate.read_record", lambda folder: shutil.rmtree(folder.root))
    with pytest.raises(JobNotFoundError, match="job my-dog not found in"):
        _ = job.status


def test_a_job_that_another_client_deletes_has_not_failed(client: Client, tmp_path: Path) -> None:
    (tmp_path / "my-dog" / "work").mkdir(parents=True)
    (tmp_path / "my-dog" / ".dreambooth.json").write_text('{"namespace": "default", "name": "my-dog"}')
    job = client.list()[0]
    threading.Timer(0.3, shutil.rmtree, [tmp_path / "my-dog"]).start()
    with pytest.raises(JobNotFoundError):
        _ = job.status


def test_folders_of_other_users_are_no_jobs(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file
    (tmp_path / "lost+found").mkdir()

    def checked(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", checked)
    assert client.list() == []
    assert Client(folder=tmp_path / "missing").list() == []
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match=r"the jobs in .*file cannot be listed: Not a directory"):
        Client(folder=tmp_path / "file").list()
    with pytest.raises(ClientError, match=r"job my-dog cannot be started: .*: Not a directory"):
        run(Client(folder=tmp_path / "file"), "dog")


def test_a_failed_job_is_resumed_without_its_intermediate_files(client: Client, tmp_path: Path) -> None:
    job = run(client, "bird")
    with pytest.raises(JobFailedError):
        job.wait(60, progress=False)
    folder = JobFolder(tmp_path / "my-dog")
    text = folder.submitted.read_text()
    (folder.root / "job.yaml").write_text(text.replace("bird", "dog"))
    job.resume()
    with pytest.raises(JobFailedError, match=r"spec.x: 1"):  # what the client was given comes first
        job.wait(60, progress=False)
    (folder.root / "job.yaml").write_text(text)
    shutil.rmtree(folder.work)
    job.resume()
    with pytest.raises(JobFailedError, match=r"spec.x: 1"):
        job.wait(60, progress=False)


def test_a_job_is_deleted_after_its_process_has_ended(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(client, "dog").wait(60, progress=False)
    folder, held = JobFolder(tmp_path / "my-dog"), contextlib.ExitStack()
    monkeypatch.setattr("dreambooth.local.stop", lambda _: None)
    held.enter_context(lock_file(folder.lock)).name_holder(7)
    with monkeypatch.context() as patched:
        patched.setattr("dreambooth.local.STOP_SECONDS", 0)
        with pytest.raises(ClientError, match="process 7 of job my-dog still runs; stop it, and delete the job again"):
            job.delete()
    assert folder.report.exists()
    threading.Timer(1, held.close).start()
    job.delete()
    assert not folder.root.exists()


def test_an_interrupted_deletion_is_repeated(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = run(client, "dog").wait(60, progress=False)

    remove = erase.remove_file

    def fail_last(fs: fsspec.AbstractFileSystem, root: str, name: str) -> None:
        if name == ".dreambooth.json":
            raise PermissionError(errno.EACCES, "Permission denied", name)
        remove(fs, root, name)

    with monkeypatch.context() as patched:
        patched.setattr(erase, "remove_file", fail_last)
        with pytest.raises(ClientError, match="Permission denied"):
            job.delete()
    assert [found.name for found in client.list()] == ["my-dog"]
    job.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_ends_while_it_is_read_has_not_died(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(client, "dog").wait(60, progress=False)
    folder = JobFolder(tmp_path / "my-dog")
    ended = read_record(folder)
    running = starting_record(folder, "my-dog")
    found = [running, ended, ended]
    monkeypatch.setattr("dreambooth.localstate.read_record", lambda _: found.pop(0))
    assert job.status.phase is Phase.SUCCEEDED


def test_a_process_that_cannot_start_is_cleaned_up_and_its_words_are_the_log(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreambooth.process.COMMAND", ("sh", "-c", r"printf '\033[2Jbackend: %s\n' ${MPLBACKEND-none}"))
    monkeypatch.setenv("MPLBACKEND", "that of the notebook")
    job = run(client, "dog")
    with pytest.raises(JobFailedError, match=r"ended unexpectedly.*backend: none"):
        job.wait(60, progress=False)
    assert list(job.logs()) == list(job.logs(follow=True)) == ["backend: none"]
    assert list(last_lines(JobFolder(tmp_path / "my-dog").console, 1, 8)) == ["back"]
    process, deadline = int(JobFolder(tmp_path / "my-dog").lock.read_text()), time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(process, 0)
            time.sleep(0.01)


def test_a_process_of_another_user_is_named(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(client)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        for call in (job.suspend, job.delete):
            with pytest.raises(ClientError, match=r"process \d+ of the job in .*my-dog belongs to another user"):
                call()
    assert job.status.phase is Phase.RUNNING


def test_another_program_is_not_terminated(client: Client, tmp_path: Path) -> None:
    job = run(client, "dog").wait(60, progress=False)
    folder = JobFolder(tmp_path / "my-dog")
    program = "import fcntl, time; file = open('lock'); fcntl.flock(file, fcntl.LOCK_EX); print(1); time.sleep(60)"
    command = [sys.executable, "-uc", program]
    with subprocess.Popen(command, cwd=folder.work, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        folder.lock.write_text(f"{other.pid}\n")
        with pytest.raises(ClientError, match=f"process {other.pid}, which uses .*my-dog, is not dreambooth run"):
            job.suspend()
        other.kill()


def test_a_process_that_ends_meanwhile_is_waited_for(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(client, "dog").wait(60, progress=False)
    folder = JobFolder(tmp_path / "my-dog")
    with subprocess.Popen(["true"]) as ended, contextlib.ExitStack() as held:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie: it has no command line any more
        held.enter_context(lock_file(folder.lock)).name_holder(ended.pid)
        threading.Timer(0.5, held.close).start()
        job.suspend()
        assert holder(folder.lock) is None
    monkeypatch.setattr("dreambooth.process.STOP_SECONDS", 0.1)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("the process is not known"))
    monkeypatch.setattr("dreambooth.process._command_line", lambda _: b"dreambooth run")
    with (
        lock_file(folder.lock),
        pytest.raises(ClientError, match=r"process of unknown ID, which uses .*my-dog, was not found"),
    ):
        job.suspend()


def test_folders_of_a_client_do_not_follow_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Path, tuple[str, ...]]] = []
    monkeypatch.setattr("dreambooth.local.start", lambda folder, _, __, options: started.append((folder.root, options)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    clients = [Client(folder="out", store=store) for store in ("store", "s3://bucket/store")]
    monkeypatch.chdir(tmp_path / "notebooks")
    for number, client in enumerate(clients):
        run(client, "dog", f"dog-{number}")
    assert started == [
        (tmp_path / "out" / "dog-0", ("--store", str(tmp_path / "store"))),
        (tmp_path / "out" / "dog-1", ("--store", "s3://bucket/store")),
    ]


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('the module of a notebook')")
    shown = subprocess.run([*COMMAND, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (shown.returncode, "Run a job" in shown.stdout) == (0, True), shown.stderr


@pytest.mark.parametrize("name", ["../x", "A", "a/b", "", "-a", "a\n"])
def test_names_that_are_not_safe_in_paths_are_refused(client: Client, name: str) -> None:
    with pytest.raises(ClientError, match="is not a valid name"):
        client.get(name)


def test_jobs_that_the_command_line_started_are_found(client: Client, tmp_path: Path) -> None:
    fake = str(Path(__file__).parent / "dreambooth_fake.py")
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "dreambooth.dev/v1alpha1",
                "kind": "DreamBoothJob",
                "metadata": {"name": "your-dog"},
                "spec": {"subject": {"class": "dog", "images": {"uri": PHOTOS}}},
            }
        )
    )
    job = client.run(tmp_path / "job.yaml", name="first")
    assert job.wait(60, progress=False).name == "first"
    second = tmp_path / "Second_dog"
    second.mkdir()
    (second / ".dreambooth.json").write_text('{"namespace": "default", "name": "your-dog"}')
    subprocess.run([sys.executable, fake, tmp_path / "job.yaml", "--out", second], check=True)
    assert [job.name for job in client.list()] == ["Second_dog", "first"]
    assert client.get("Second_dog").status.phase is Phase.SUCCEEDED
