"""Jobs on this machine. Each runs in a process of its own, `dreambooth run`, in a folder of its name.

All state is in that folder: the lock shows whether a process runs, and the process writes the status. Jobs therefore
continue when the client ends, and several clients can use the same folder.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path

from dreambooth.backend import Object
from dreambooth.errors import ClientError, JobExistsError, JobNotFoundError
from dreambooth.locallog import log_lines
from dreambooth.localstate import current_record, is_job
from dreambooth.process import POLL_SECONDS, STOP_SECONDS, start, stop
from dreambooth_api import layout
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import Phase
from dreambooth_api.uris import is_url
from dreambooth_trainer.jobfile.load import dump_job, load_job
from dreambooth_trainer.store.claim import claim
from dreambooth_trainer.store.erase import Erased, erase_job, erase_owned
from dreambooth_trainer.store.file_lock import LockedError, holder, lock_file
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.owner import MARKER, enumerate_names, parse_marker
from dreambooth_trainer.store.status_file import starting_record, write_record


class LocalBackend:
    """Runs jobs below a folder, as `Backend`.

    Args:
        store: folder or URL of shared class images; None for the default of `dreambooth run`.
    """

    def __init__(self, root: Path, store: str | None) -> None:
        self._root = root.resolve()
        # A process that is started from another current folder uses the same.
        self._options = () if store is None else ("--store", store if is_url(store) else str(Path(store).resolve()))

    def create(self, job: DreamBoothJob) -> None:
        folder = JobFolder(self._root / job.metadata.name)
        exists = JobExistsError(
            f"{folder.root} exists; continue the job with get({job.metadata.name!r}), delete it, or use another name"
        )
        try:
            if (folder.root / MARKER).exists():
                raise exists
            claim(folder.root, job)
            folder.work.mkdir(exist_ok=True)
            with lock_file(folder.lock) as lock:
                if folder.submitted.exists():
                    raise exists
                with _undone_if_it_fails(folder):
                    # Written once: everything else of the job is derived from it.
                    atomic_write(folder.submitted, dump_job(job))
                    write_record(folder, starting_record(folder, job.metadata.name))
                    start(folder, folder.submitted, lock, self._options)
        except LockedError:
            raise exists from None
        except OSError as error:
            raise ClientError(f"job {job.metadata.name} cannot be started: {_reason(error, folder)}") from error

    def read(self, name: str) -> Object:
        with self._job(name) as folder:
            record = current_record(folder)
        record.name = name
        return record.to_object()

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self._root.iterdir() if is_job(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ClientError(f"the jobs in {self._root} cannot be listed: {error.strerror or error}") from error

    def events(self, name: str) -> list[Object]:
        return list(self.read(name)["events"])

    def logs(self, name: str, *, follow: bool, tail: int) -> Iterator[str]:
        self.read(name)
        return self._lines(name, follow=follow, tail=tail)

    def images(self, name: str, out: Path | None) -> list[Path]:
        folder = self._published(name)
        paths = [folder.report, *(folder.model / image for image in layout.IMAGES)]
        if out is None:
            return paths
        with self._job(name):
            out.mkdir(parents=True, exist_ok=True)
            return [Path(shutil.copyfile(path, out / path.name)) for path in paths]

    def model(self, name: str) -> str:
        return str(self._published(name).model)

    def grid(self, name: str) -> Path | None:
        with self._job(name) as folder:
            return folder.model / layout.COMPARISON

    def suspend(self, name: str) -> None:
        with self._job(name) as folder:
            stop(folder)

    def resume(self, name: str) -> None:
        with self._job(name) as folder:
            if current_record(folder).status.phase is Phase.SUCCEEDED:
                return
            job_file = _job_file(folder)
            folder.work.mkdir(exist_ok=True)
            # If it is locked, the job runs.
            with contextlib.suppress(LockedError), lock_file(folder.lock) as lock:
                write_record(folder, starting_record(folder, name))
                start(folder, job_file, lock, self._options)

    def delete(self, name: str) -> None:
        with self._job(name) as folder:
            stop(folder)
            deadline = time.monotonic() + STOP_SECONDS
            while holder(folder.lock) is not None and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            try:
                folder.work.mkdir(exist_ok=True)
                with lock_file(folder.lock):
                    erased = _erase(folder)
            except LockedError as error:
                rule = f"process {error.holder or 'of unknown ID'} of job {name} still runs"
                raise ClientError(f"{rule}; stop it, and delete the job again") from None
        for place in erased:
            if place.kept:
                rule = "were not created by this job and remain"
                warnings.warn(f"{enumerate_names(place.kept)} in {place.url} {rule}", stacklevel=3)

    @contextlib.contextmanager
    def _job(self, name: str) -> Generator[JobFolder]:
        """The folder of a job, whose files may be deleted by another client meanwhile."""
        folder = JobFolder(self._root / name)
        missing = JobNotFoundError(f"job {name} not found in {self._root}; list() returns the existing jobs")
        if not is_job(folder.root):
            raise missing
        try:
            yield folder
        except OSError as error:
            if not is_job(folder.root):
                raise missing from error
            raise ClientError(f"job {name}: {_reason(error, folder)}") from error

    def _lines(self, name: str, *, follow: bool, tail: int) -> Iterator[str]:
        with self._job(name) as folder:
            yield from log_lines(folder, follow=follow, tail=tail)

    def _published(self, name: str) -> JobFolder:
        with self._job(name) as folder:
            if not (folder.model / layout.COMPARISON).is_file() or not folder.report.is_file():
                phase = current_record(folder).status.phase
                raise ClientError(f"job {name} has not published a model; its phase is {phase}")
            return folder


def _reason(error: OSError, folder: JobFolder) -> str:
    return f"{error.filename or folder.root}: {error.strerror or error}"


@contextlib.contextmanager
def _undone_if_it_fails(folder: JobFolder) -> Generator[None]:
    """Give the name of a new job free again if its process does not start."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder.work)
            (folder.root / MARKER).unlink()
            folder.root.rmdir()
        raise


def _job_file(folder: JobFolder) -> Path:
    """What the job is started with: what a client was given, or else what `dreambooth run` has recorded."""
    for path in (folder.submitted, folder.root / "job.yaml"):
        if path.is_file():
            return path
    raise ClientError(f"job file not found in {folder.root}: the job ended before it was planned; delete the job")


def _erase(folder: JobFolder) -> list[Erased]:
    """Delete what a job made. The marker is deleted last, so that it can be repeated."""
    try:
        job = load_job(_job_file(folder))
    except ClientError:  # it was interrupted, after the published model, or there is nothing but the marker
        if (owner := parse_marker((folder.root / MARKER).read_bytes())) is None:
            raise
        return list(erase_owned(owner, str(folder.root), None))
    return list(erase_job(job, str(folder.root)))
