"""Counters and histograms of what happened to jobs.

Each is taken from the two sides of one status write. A status write is a compare-and-swap of the leader, so each change
is written once, whoever leads, and counted once: a restarted operator finds the new status and writes it no more. If a
process ends between the write and the count, the change is not counted. Durations begin at times in the status, so they
span restarts. The counters themselves start at zero in a new process, as `rate` and `increase` expect.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Histogram

from dreambooth_api.status import TERMINAL, ClassImagesStatus, Condition, ConditionType, JobStatus, Phase, TrainerPhase
from dreambooth_operator.controller.lifecycle import OPEN
from dreambooth_operator.controller.policies.retries import BACKOFF_LIMIT_EXCEEDED
from dreambooth_operator.controller.summary import JobObserver, JobSummary
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.metrics.reasons import reason_label
from dreambooth_operator.metrics.state import RuntimeLabels

_C = ConditionType
_SECONDS = (10, 60, 180, 600, 1800, 3600, 14_400, 86_400)  # few, because each is a series of each namespace
_PLACE = ("namespace", "runtime")
_KEPT = timedelta(days=1)
# The phases of the trainer that a condition ends, in order.
_TRAINER_PHASES = (
    (_C.CLASS_IMAGES_READY, TrainerPhase.CLASS_IMAGES),
    (_C.TRAINED, TrainerPhase.TRAIN),
    (_C.EVALUATED, TrainerPhase.EVALUATE),
    (_C.PUBLISHED, TrainerPhase.PUBLISH),
)
_NOT_DONE = ("Skipped", "NotReported")
# Those of the alert DreamBoothAttemptsFailing.
_ALERTED = (
    "DeviceError", "HeadLost", "PodsNotReady", "ProgressDeadlineExceeded", "SubmissionFailed", "TransientError",
)  # fmt: skip


class JobHistory(JobObserver):
    """The metrics, in `registry`. `now` returns the time of the wall clock, in UTC."""

    def __init__(self, registry: CollectorRegistry, labels: RuntimeLabels, now: Callable[[], datetime]) -> None:
        self._labels = labels
        self._now = now
        self._jobs: dict[Key, JobSummary] = {}  # as last seen
        self._started: set[tuple[str, str]] = set()
        self._count_of: Counts[str] = Counts()  # jobs by namespace
        self._empty_since: dict[str, datetime] = {}
        self._phase_seconds = Histogram(
            "dreambooth_job_phase_seconds",
            "Time that jobs were in phase Queued, Starting or Running, observed when they leave it.",
            (*_PLACE, "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._trainer_seconds = Histogram(
            "dreambooth_job_trainer_phase_seconds",
            "Duration of completed phases of trainers.",
            (*_PLACE, "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "dreambooth_job_queue_seconds",
            "Time that jobs waited until their trainer ran, in a queue or for pods.",
            _PLACE,
            buckets=_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "dreambooth_attempt_failures", "Failed attempts by reason.", (*_PLACE, "reason"), registry=registry
        )
        self._finished = Counter(
            "dreambooth_jobs_finished", "Jobs that succeeded or failed.", (*_PLACE, "phase"), registry=registry
        )
        self._gpu_seconds = Counter(
            "dreambooth_gpu_seconds", "Running time x GPUs of attempts that ended.", _PLACE, registry=registry
        )
        self._class_images = Counter(
            "dreambooth_class_images", "Class images of jobs by source.", (*_PLACE, "source"), registry=registry
        )

        self._metrics = (
            self._phase_seconds, self._trainer_seconds, self._queue_seconds, self._failures, self._finished,
            self._gpu_seconds, self._class_images,
        )  # fmt: skip

    def seen(self, key: Key, job: JobSummary | None) -> None:
        last = self._jobs.pop(key, None)
        self._count_of[key.namespace] += (job is not None) - (last is not None)
        if job is not None:
            self._jobs[key] = job
            self._start_at_zero((job.namespace, self._labels.name(job)))
            return
        if last and last.phase is Phase.RUNNING and last.active_since:
            since = datetime.fromisoformat(last.active_since)
            self._count_gpus(last, since, (last.namespace, self._labels.name(last)))
        if last and not self._count_of[key.namespace]:
            self._empty_since[key.namespace] = self._now()
        self._forget_empty_namespaces()

    def _forget_empty_namespaces(self) -> None:
        """End the series of namespaces that had no job for a day. Their last values have been scraped by then."""
        for namespace in [name for name, since in self._empty_since.items() if self._now() - since > _KEPT]:
            del self._empty_since[namespace]
            if self._count_of[namespace]:
                continue
            del self._count_of[namespace]
            self._started = {place for place in self._started if place[0] != namespace}
            for metric in self._metrics:
                metric.remove_by_labels({"namespace": namespace})

    def written(self, key: Key, before: JobStatus, after: JobStatus) -> None:
        job = self._jobs[key]
        started = after.started_with.runtime if after.started_with else None
        place = (job.namespace, (started.parent or started.name) if started else self._labels.name(job))
        if before.phase is not after.phase:
            self._leave(before, after, place)
        if before.phase is Phase.RUNNING is not after.phase:
            # The cache may lag behind; a deletion must not count the time once more.
            self._jobs[key] = replace(job, phase=after.phase)
            if before.active_since:
                self._count_gpus(job, before.active_since, place)
        self._count_trainer(before, after, place)

    def _start_at_zero(self, place: tuple[str, str]) -> None:
        """A counter whose first value is 1 would have increased by nothing."""
        if place in self._started:
            return
        self._started.add(place)
        self._gpu_seconds.labels(*place)
        self._queue_seconds.labels(*place)
        for reason in _ALERTED:
            self._failures.labels(*place, reason)
        for phase in TERMINAL:
            self._finished.labels(*place, phase.value)
        for source in ("reused", "generated"):
            self._class_images.labels(*place, source)

    def _leave(self, before: JobStatus, after: JobStatus, place: tuple[str, str]) -> None:
        queued = _condition(before, _C.QUEUED)
        since = {
            Phase.QUEUED: queued.last_transition_time if queued else None,
            Phase.STARTING: before.starting_since,
            Phase.RUNNING: before.active_since,
        }.get(before.phase)
        if since:
            self._phase_seconds.labels(*place, before.phase.value).observe(self._seconds_since(since))
        if after.phase is Phase.RUNNING and before.waiting_since:
            self._queue_seconds.labels(*place).observe(self._seconds_since(before.waiting_since))
        if before.phase in OPEN and after.phase in (Phase.RETRYING, Phase.FAILED):
            self._failures.labels(*place, reason_label(_reason(after))).inc()
        if after.phase in TERMINAL:
            self._finished.labels(*place, after.phase.value).inc()

    def _count_gpus(self, job: JobSummary, since: datetime, place: tuple[str, str]) -> None:
        self._gpu_seconds.labels(*place).inc(self._labels.gpus(job) * self._seconds_since(since))

    def _count_trainer(self, before: JobStatus, after: JobStatus, place: tuple[str, str]) -> None:
        """Count the phases of the trainer that this write records as completed."""
        since = before.active_since
        for kind, phase in _TRAINER_PHASES:
            old, new = _condition(before, kind), _condition(after, kind)
            if new is None or new.status != "True" or new.reason in _NOT_DONE:
                continue
            if old and old.status == "True":
                since = max(since, old.last_transition_time) if since else None
                continue
            if since:
                self._trainer_seconds.labels(*place, phase.value).observe(self._seconds_since(since))
                since = None  # another one that ended unnoticed has no known duration
            if phase is TrainerPhase.CLASS_IMAGES and after.class_images:
                self._count_class_images(after.class_images, after.attempts, place)

    def _count_class_images(self, images: ClassImagesStatus, attempt: int, place: tuple[str, str]) -> None:
        self._class_images.labels(*place, "generated").inc(images.generated)
        if attempt == 1:  # later attempts also reuse what earlier ones generated
            self._class_images.labels(*place, "reused").inc(images.reused)

    def _seconds_since(self, time: datetime) -> float:
        return max(0.0, (self._now() - time).total_seconds())


def _condition(status: JobStatus, kind: ConditionType) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type is kind), None)


def _reason(status: JobStatus) -> str:
    """Why the latest attempt failed. A job without retries left failed for the reason of its last attempt."""
    failed, last = _condition(status, _C.FAILED), status.last_failure
    if status.phase is Phase.FAILED and failed and failed.reason != BACKOFF_LIMIT_EXCEEDED:
        return failed.reason
    return last.reason if last else ""
