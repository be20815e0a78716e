"""What a backend does: where jobs run, and how their state is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import printable

Object = Mapping[str, Any]
"""A DreamBoothJob as the API server sends it. Its structure is not validated."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        time: of the last occurrence.
        type: Normal or Warning.
        count: number of occurrences.
    """

    time: datetime | None
    type: str
    reason: str
    message: str
    count: int = 1


class Backend(Protocol):
    """Where jobs run. `name` is always that of a job, and valid.

    All methods raise `JobNotFoundError` if the job does not exist, and `ClientError` for other problems.
    """

    def create(self, job: DreamBoothJob) -> None:
        """Create and start a job. Raises `JobExistsError` if its name is in use, and `UserError` if it is invalid."""
        ...

    def read(self, name: str) -> Object:
        """The job, with its status."""
        ...

    def names(self) -> list[str]:
        """The names of all jobs, sorted."""
        ...

    def events(self, name: str) -> list[Object]:
        """The events of a job, with the fields of Kubernetes' events."""
        ...

    def logs(self, name: str, *, follow: bool, tail: int) -> Iterator[str]:
        """The lines of the log of the latest attempt."""
        ...

    def images(self, name: str, out: Path | None) -> list[Path]:
        """The report and the images of a published job, as local files."""
        ...

    def model(self, name: str) -> str:
        """The published model: a local folder or a URI."""
        ...

    def grid(self, name: str) -> Path | None:
        """Where the image with results is on this machine, if the job has been published; None if it is elsewhere."""
        ...

    def suspend(self, name: str) -> None:
        """Ask a job to stop at a checkpoint."""
        ...

    def resume(self, name: str) -> None:
        """Continue a job that does not run."""
        ...

    def delete(self, name: str) -> None:
        """Delete a job."""
        ...


def to_event(fields: Object) -> Event:
    """An event with the fields of Kubernetes'. Control characters are removed: others can create events."""
    time = fields.get("lastTimestamp") or fields.get("eventTime")
    return Event(
        time=datetime.fromisoformat(time) if time else None,
        type=printable(str(fields.get("type") or "Normal")),
        reason=printable(str(fields.get("reason") or "")),
        message=printable(str(fields.get("message") or "")),
        count=int(fields.get("count") or 1),
    )
