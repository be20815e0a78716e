"""The log of an attempt, beside its output: what the driver prints, as plain lines with times.

It remains when the pods are gone. Writing it never fails a run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import fsspec

from dreambooth_api import layout
from dreambooth_api.environment import ATTEMPT
from dreambooth_api.errors import UserError
from dreambooth_api.status import printable
from dreambooth_trainer.progress.redact import redact
from dreambooth_trainer.store.folder import atomic_write

MAX_BYTES = 4 * 2**20
# Of a log that is too long, the beginning and the end are kept.
_KEPT_FIRST, _KEPT_LAST = MAX_BYTES // 8, MAX_BYTES // 2
UPLOAD_SECONDS = 60.0
_LAST_UPLOAD_SECONDS = 30.0


@dataclass
class AttemptLog:
    """Collects lines, and writes them to a file once the folder of the job is known and claimed."""

    _pending: list[str] = field(default_factory=list[str])
    _file: Path | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _upload: _Upload | None = None

    def open(self, root: Path, url: str | None) -> None:
        """Write to `logs/attempt-N.log` in the folder of the job, and to the same path below a URL, if there is one."""
        folder = root / layout.LOGS
        with self._lock, contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            self._file = folder / f"attempt-{os.environ.get(ATTEMPT) or _next_number(folder)}.log"
            pending, self._pending = "".join(self._pending), []
            self._append(pending)
            if url is not None:
                self._upload = _Upload(self._file, f"{url.rstrip('/')}/{layout.LOGS}/{self._file.name}")

    def write(self, text: str) -> None:
        """Add text, with the time at the start of each line. Credentials and control characters are removed."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines = "".join(f"{now} {line}\n" for line in printable(redact(text)).splitlines() if line.strip())
        with self._lock:
            if self._file is None:
                self._pending.append(lines)
            else:
                self._append(lines)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Also write warnings of libraries, and the error that ends the block; complete the log at the end."""
        handler = _Handler(self)
        root = logging.getLogger()
        # Without any handler, Python prints warnings with this one.
        added = [handler] if root.handlers or logging.lastResort is None else [logging.lastResort, handler]
        for one in added:
            root.addHandler(one)
        try:
            yield
            self.write("completed")
        except UserError as error:
            self.write("\n".join(f"error {issue}" for issue in error.issues))
            raise
        except Exception as error:
            self.write("".join(traceback.format_exception(error)))
            raise
        except BaseException as error:
            self.write(f"interrupted: {type(error).__name__}")
            raise
        finally:
            for one in added:
                root.removeHandler(one)
            if self._upload is not None:
                self._upload.close()

    def _append(self, lines: str) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError):
            with self._file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(lines)
                size = file.tell()
            if size > MAX_BYTES:
                content = self._file.read_bytes()
                note = f"\n[{size - _KEPT_FIRST - _KEPT_LAST} bytes left out]\n".encode()
                atomic_write(self._file, content[:_KEPT_FIRST] + note + content[-_KEPT_LAST:])


class _Upload:
    """Copies a log to an object store every minute, if it has changed, and at the end."""

    def __init__(self, file: Path, url: str) -> None:
        self._file, self._url, self._sent = file, url, b""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Upload the rest. A store that does not respond does not hold up the end of the process for long."""
        self._closed.set()
        self._thread.join(_LAST_UPLOAD_SECONDS)

    def _run(self) -> None:
        while not self._closed.wait(UPLOAD_SECONDS):
            self._send()
        self._send()

    def _send(self) -> None:
        try:
            content = self._file.read_bytes()
            if content != self._sent:
                fs, path = fsspec.url_to_fs(self._url)
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                fs.pipe_file(path, content)
                self._sent = content
        except Exception as error:  # clients of object stores have exceptions of their own
            print(printable(redact(f"The log was not uploaded to {self._url}: {error}")), file=sys.stderr)


class _Handler(logging.Handler):
    def __init__(self, log: AttemptLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(f"{record.levelname.lower()} {record.name}: {record.getMessage()}")


def _next_number(folder: Path) -> int:
    numbers = (path.stem.removeprefix("attempt-") for path in folder.glob("attempt-*.log"))
    return max((int(number) for number in numbers if number.isdecimal()), default=0) + 1
