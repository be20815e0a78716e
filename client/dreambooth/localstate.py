"""The state of a local job, from its folder: what its process wrote, and whether that still runs."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path

from dreambooth.locallog import last_lines
from dreambooth.process import POLL_SECONDS
from dreambooth_api.status import ConditionType, Phase
from dreambooth_trainer.store.file_lock import holder
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.owner import MANIFEST, MARKER
from dreambooth_trainer.store.status_file import JobRecord, read_record

_SETTLED_SECONDS = 2.0
_ENDED = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED})


def is_job(folder: Path) -> bool:
    """Whether a folder is that of a job."""
    try:
        return (folder / MARKER).is_file()
    except OSError:  # a folder of another user, such as lost+found
        return False


def current_record(folder: JobFolder) -> JobRecord:
    """The status that the job's process wrote; if it does not run any more, what became of it."""
    deadline = time.monotonic() + 2 * _SETTLED_SECONDS
    while True:
        running = holder(folder.lock) is not None
        record = read_record(folder)
        if record is None:
            if not running and _is_changing(folder) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                continue
            created = datetime.fromtimestamp((folder.root / MARKER).stat().st_mtime, UTC)
            record = JobRecord(folder.root.name, created)
            if (folder.model / MANIFEST).is_file():  # work/ may be deleted when the job is done
                record.set_phase(Phase.SUCCEEDED, f"The model was published to {folder.model}.")
        if running or record.status.phase in _ENDED:
            return record
        # Since the first look, the process may have written how it ended, or another one may have started.
        if holder(folder.lock) is None and (read_record(folder) or record) == record:
            _mark_dead(folder, record)
            return record


def _is_changing(folder: JobFolder) -> bool:
    """Whether another client may be creating or deleting the job."""
    if (folder.model / MANIFEST).is_file():
        return False
    changed = folder.root.stat().st_mtime
    with contextlib.suppress(FileNotFoundError):
        changed = max(changed, folder.work.stat().st_mtime)
    return time.time() - changed < _SETTLED_SECONDS


def _mark_dead(folder: JobFolder, record: JobRecord) -> None:
    """Describe a job whose process ended without a last status: it was killed, or did not start."""
    output = " ".join(last_lines(folder.console, 5)) if folder.console.is_file() else ""
    message = f"The process ended unexpectedly. resume() continues the job. {output}".strip()
    record.set_phase(Phase.FAILED, message)
    record.set_condition(ConditionType.FAILED, "True", "ProcessEnded", message)
