"""A job on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from dreambooth.backend import Backend, Event, Object, to_event
from dreambooth.errors import ClientError
from dreambooth.html import job_html
from dreambooth.waiting import Wait, wait_for
from dreambooth_api.status import ConditionType, JobStatus, Phase, Scores, parse_status


class Job:
    """A job. Each property and method reads its current state.

    All of them raise `JobNotFoundError` if the job has been deleted, and `ClientError` if it cannot be read.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._name = name

    @property
    def name(self) -> str:
        """The name of the job."""
        return self._name

    @property
    def status(self) -> JobStatus:
        """Phase, message, progress, conditions, scores and output, with the fields of a DreamBoothJob's status."""
        return parse_status(self._read().get("status") or {})

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the evaluation by metric, for example dino; with several subjects, their means.

        It is empty before the evaluation.
        """
        return _numbers(self.status.scores)

    @property
    def subject_scores(self) -> dict[str, dict[str, float]]:
        """The scores of each subject by its identifier, if there are several subjects."""
        return {scores.identifier: _numbers(scores) for scores in self.status.subject_scores or []}

    def wait(
        self,
        timeout: float | None = None,
        until: Phase | ConditionType | str = Phase.SUCCEEDED,
        *,
        progress: bool = True,
    ) -> Job:
        """Wait, and show the progress. Interrupting it does not stop the job.

        Args:
            timeout: seconds; None waits without a limit.
            until: a phase, a condition, or the --for of `kubectl dreambooth wait`, for example condition=Trained.
            progress: whether to show progress: in a notebook, on a terminal, or as one line per change elsewhere.

        Returns:
            This job.

        Raises:
            TimeoutError: the timeout expired.
            JobFailedError: the job failed, was rejected, or finished without reaching `until`.
            ValueError: `until` is not known.
        """
        wait_for(self._read, Wait(self._name, until, timeout), progress=progress)
        return self

    def logs(self, follow: bool = False, *, tail: int = -1) -> Iterator[str]:
        """The lines of the log of the latest attempt.

        Args:
            follow: also return new lines until the attempt ends.
            tail: number of lines from the end; all if it is negative.
        """
        return self._backend.logs(self._name, follow=follow, tail=tail)

    def events(self) -> list[Event]:
        """The events of the job, oldest first. A cluster keeps them for an hour by default."""
        found = map(to_event, self._backend.events(self._name))
        return sorted(found, key=lambda event: event.time or datetime.min.replace(tzinfo=UTC))

    def images(self, out: str | os.PathLike[str] | None = None) -> list[Path]:
        """The report and the images of a published job.

        Args:
            out: folder that they are copied to. On a cluster, defaults to one of the job's name.
        """
        return self._backend.images(self._name, None if out is None else Path(out))

    def load_pipeline(self, device: str | None = None) -> Any:
        """The published model as a pipeline of diffusers. Only safetensors are read.

        Args:
            device: for example cuda or cpu. Defaults to the GPU, if there is one.

        Raises:
            ClientError: the model is not published, or cannot be copied from where it is.
            UserError: its files are damaged.
        """
        from dreambooth.pipeline import load_pipeline

        return load_pipeline(self._backend.model(self._name), device)

    def suspend(self) -> None:
        """Suspend the job. It stops after this call returns; `wait(until="Suspended")` waits for it."""
        self._backend.suspend(self._name)

    def resume(self) -> None:
        """Resume a suspended job from its last checkpoint. The local backend also resumes failed jobs."""
        self._backend.resume(self._name)

    def delete(self) -> None:
        """Delete the job.

        The local backend stops it and deletes its files. On a cluster, `spec.output.deletionPolicy` determines whether
        its data is deleted.
        """
        self._backend.delete(self._name)

    def __repr__(self) -> str:
        return f"<Job {self._name}>"

    def _repr_html_(self) -> str:
        try:
            return job_html(self._read(), self._backend.grid(self._name))
        except ClientError as error:  # it has been deleted, or cannot be read
            return escape(str(error))

    def _read(self) -> Object:
        return self._backend.read(self._name)


def _numbers(scores: Scores | None) -> dict[str, float]:
    """Scores as numbers. Values that are not numbers are omitted: on a cluster, others can write the status."""
    found: dict[str, float] = {}
    for name, text in scores.model_dump(exclude_none=True, exclude={"identifier"}).items() if scores else ():
        with contextlib.suppress(ValueError):
            found[name] = float(text)
    return found
