"""The `status` of a `DreamBoothJob`.

Two writers apply it server-side, each with its own field manager. The status server owns the fields of
`ReportedStatus`; the controller owns all others.

Enumerations are open: the CRD accepts any word, and a reader keeps words that it does not know, because a newer version
may have written them. `parse_status` reads any status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model

from dreambooth_api.fields import MAX_IDENTIFIER_LENGTH
from dreambooth_api.lenient import Lenient, parse_leniently
from dreambooth_api.metrics import METRICS
from dreambooth_api.started import StartedWith
from dreambooth_api.subject import MAX_SUBJECTS


class Phase(StrEnum):
    """Phase of a job. The legal transitions are in the operator's `controller.lifecycle.TRANSITIONS`."""

    PENDING = "Pending"  # not reconciled yet, or about to start
    REJECTED = "Rejected"  # cannot start; starts automatically once the cause is fixed
    QUEUED = "Queued"  # waiting for admission by a queue
    STARTING = "Starting"  # the Ray cluster is starting
    RUNNING = "Running"
    RETRYING = "Retrying"  # an attempt failed; the next one starts after a backoff
    SUSPENDING = "Suspending"  # pods are being deleted
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERASING = "Erasing"  # the job is being deleted, and so is its data


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED})


class ConditionType(StrEnum):
    """Condition types in the order in which they become true, then those by which kstatus judges any object.

    Reconciling and Stalled exist only while they are true.
    """

    ACCEPTED = "Accepted"
    QUEUED = "Queued"
    CLUSTER_READY = "ClusterReady"
    CLASS_IMAGES_READY = "ClassImagesReady"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    PUBLISHED = "Published"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERASED = "Erased"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    READY = "Ready"


class TrainerPhase(StrEnum):
    """Phases of the trainer, in order."""

    PREPARE = "Prepare"
    CLASS_IMAGES = "ClassImages"
    ENCODE = "Encode"
    TRAIN = "Train"
    EVALUATE = "Evaluate"
    PUBLISH = "Publish"


# The condition that becomes true when the trainer completes a phase.
COMPLETED_BY = (
    (ConditionType.CLASS_IMAGES_READY, TrainerPhase.CLASS_IMAGES),
    (ConditionType.TRAINED, TrainerPhase.TRAIN),
    (ConditionType.EVALUATED, TrainerPhase.EVALUATE),
    (ConditionType.PUBLISHED, TrainerPhase.PUBLISH),
)
PHASE_MESSAGES: Mapping[str, str] = {
    TrainerPhase.PREPARE: "The trainer is preparing images and models.",
    TrainerPhase.CLASS_IMAGES: "The trainer is generating class images.",
    TrainerPhase.ENCODE: "The trainer is encoding images and prompts.",
    TrainerPhase.TRAIN: "The trainer is training the model.",
    TrainerPhase.EVALUATE: "The trainer is evaluating the model.",
    TrainerPhase.PUBLISH: "The trainer is publishing the model.",
}

REASON = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
MAX_REASON_LENGTH = 256
MAX_MESSAGE_LENGTH = 4000
MAX_SUMMARY_LENGTH = 400  # it is a column of `kubectl get`
_REASON = re.compile(REASON.removesuffix("$") + r"\Z", re.ASCII)
_WRAPPED = re.compile(r"[\w.]+\(([A-Za-z].*)\)", re.DOTALL)
# Terminal escape sequences, control characters other than newline and tab, characters that reverse or separate lines
# (bidirectional controls, U+2028 and U+2029), and surrogates.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def legal_reason(text: str) -> str:
    """Convert any text to a valid condition reason; "Unknown" if no part of it can be used.

    For a wrapped error such as Ray's `RayTaskError(OutOfMemoryError)`, the inner name is used.
    """
    if len(text) <= MAX_REASON_LENGTH and _REASON.match(text):
        return text
    text = text[:1000]
    while wrapped := _WRAPPED.fullmatch(text.strip()):
        text = wrapped[1]
    words = re.findall(r"[A-Za-z0-9_]+", text)
    return "".join(word[0].upper() + word[1:] for word in words).lstrip("0123456789_")[:MAX_REASON_LENGTH] or "Unknown"


def printable(text: str) -> str:
    """`text` without control and bidirectional characters, for terminals.

    Newlines and tabs are kept; a carriage return becomes a newline.
    """
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def fit_message(text: str) -> str:
    """`text` without control characters, truncated to the length of a condition's message."""
    return printable(text)[:MAX_MESSAGE_LENGTH]


def summarize(text: str) -> str:
    """`text` on one line without control characters, truncated to the length of `status.message`."""
    line = " ".join(printable(text).split())
    return line if len(line) <= MAX_SUMMARY_LENGTH else f"{line[: MAX_SUMMARY_LENGTH - 1]}…"


def _legal_reason(value: object) -> object:
    return legal_reason(value) if isinstance(value, str) else value


def _fit_message(value: object) -> object:
    return fit_message(value) if isinstance(value, str) else value


def _line(value: object) -> object:
    return " ".join(printable(value).split()) if isinstance(value, str) else value


MAX_WORD_LENGTH = 63
_WORD_SCHEMA = WithJsonSchema({"type": "string", "maxLength": MAX_WORD_LENGTH})
_Word = Annotated[str, Field(max_length=MAX_WORD_LENGTH)]
OpenConditionType = Annotated[ConditionType | _Word, Field(union_mode="left_to_right"), _WORD_SCHEMA]
OpenTrainerPhase = Annotated[TrainerPhase | _Word, Field(union_mode="left_to_right"), _WORD_SCHEMA]


class Condition(Lenient):
    """A condition, with the fields of metav1.Condition."""

    type: OpenConditionType = Field(description="Type of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Status of the condition.")
    reason: str = Field(
        pattern=REASON, max_length=1024, description="CamelCase reason for the condition's last transition."
    )
    message: str = Field(
        default="", max_length=32768, description="Human-readable details and, for failures, the remedy."
    )
    observed_generation: int = Field(default=0, description="metadata.generation that the condition is based on.")
    last_transition_time: datetime = Field(description="Time of the last change of status.")


class Failure(Lenient):
    """Why an attempt failed. Any reason and message are accepted and converted to a condition's grammar."""

    reason: Annotated[str, BeforeValidator(_legal_reason)] = Field(
        pattern=REASON, max_length=MAX_REASON_LENGTH, description="Reason for the failure, in CamelCase."
    )
    message: Annotated[str, BeforeValidator(_fit_message)] = Field(
        default="", max_length=MAX_MESSAGE_LENGTH, description="Cause of the failure and its remedy."
    )
    retryable: bool = Field(default=True, description="Whether another attempt can succeed.")


Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Line = Annotated[str, BeforeValidator(_line)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class ClassImagesStatus(Lenient):
    """Progress of class image generation."""

    wanted: Count = Field(default=0, description="Number of class images that the job needs.")
    reused: Count = Field(default=0, description="Number of class images reused from other jobs or earlier attempts.")
    generated: Count = Field(default=0, description="Number of class images generated for this job.")
    provided: Count | None = Field(
        default=None, description="Number of class images of priorPreservation.images. Set only if the job has some."
    )


class TrainingStatus(Lenient):
    """Progress of training."""

    step: Count | None = Field(default=None, description="Completed optimizer steps.")
    steps: Count | None = Field(default=None, description="Total optimizer steps.")
    saved_step: Count | None = Field(
        default=None, description="Steps in the last checkpoint, from which training continues after an interruption."
    )
    selected_step: Count | None = Field(
        default=None, description="Step whose weights are published, if output.select is Best."
    )
    samples: Count | None = Field(
        default=None, description="Instance images used so far: completed steps x global batch size."
    )
    world_size: Count | None = Field(
        default=None, description="Number of training processes: workers x GPUs per worker, or workers on CPUs."
    )
    loss: float | None = Field(
        default=None, allow_inf_nan=False, description="Training loss, averaged over recent steps."
    )
    steps_per_second: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Training speed in optimizer steps per second."
    )
    eta: str | None = Field(
        default=None, max_length=20, description="Estimated remaining training time, for example 5m."
    )
    progress: str | None = Field(
        default=None, max_length=40, description="Completed and total steps, for example 120/1000."
    )


def _score_fields() -> type[Lenient]:
    """A model with one field for each metric."""
    fields: dict[str, Any] = {
        metric.field: (str | None, Field(default=None, max_length=20, description=metric.description))
        for metric in METRICS
    }
    return create_model("ScoreFields", __base__=Lenient, **fields)


class Scores(_score_fields()):
    """Evaluation scores: strings with a fixed number of decimals, for example 0.742, so that printer columns align."""


class SubjectScores(Scores):
    """Evaluation scores of one of several subjects."""

    identifier: Line = Field(max_length=MAX_IDENTIFIER_LENGTH, description="Identifier of the subject.")


class OutputStatus(Lenient):
    """Published model."""

    uri: Line | None = Field(default=None, max_length=2000, description="Location of the published model.")
    digest: Line | None = Field(default=None, max_length=200, description="Digest of the published model's contents.")


class Report(Lenient):
    """Last progress report of the trainer."""

    attempt: int = Field(default=0, ge=0, description="Attempt that sent the report.")
    phase: OpenTrainerPhase | None = Field(default=None, description="Current phase of the trainer.")
    time: datetime | None = Field(default=None, description="Time of the report.")
    failure: Failure | None = Field(default=None, description="Why the trainer failed.")


class ReportedStatus(Lenient):
    """Status fields owned by the status server."""

    report: Report | None = Field(default=None, description="Last progress report of the trainer.")
    class_images: ClassImagesStatus | None = Field(default=None, description="Progress of class image generation.")
    training: TrainingStatus | None = Field(default=None, description="Progress of training.")
    scores: Scores | None = Field(
        default=None, description="Evaluation scores. With several subjects, means over the subjects."
    )
    subject_scores: list[SubjectScores] | None = Field(
        default=None,
        max_length=MAX_SUBJECTS,
        description="Evaluation scores of each subject. Set only if there are several.",
    )
    output: OutputStatus | None = Field(default=None, description="Published model.")
    model_commit: Commit | None = Field(
        default=None,
        description="Commit of the base model on the Hub that the first attempt loaded. Later attempts load the same.",
    )
    super_resolution_commit: Commit | None = Field(
        default=None, description="The same for the super-resolution model, if the job has one."
    )


class ControlStatus(Lenient):
    """Status fields owned by the controller."""

    phase: Annotated[Phase, _WORD_SCHEMA] = Field(default=Phase.PENDING, description="Phase of the job.")
    message: str = Field(
        default="",
        max_length=MAX_SUMMARY_LENGTH,
        description="Human-readable summary of the job's current state. Always set.",
    )
    observed_generation: int = Field(default=0, description="metadata.generation that the status is based on.")
    conditions: list[Condition] = Field(default_factory=list[Condition], description="Conditions of the job.")
    attempts: int = Field(default=0, ge=0, description="Number of attempts started; each is one RayJob.")
    failures: int = Field(default=0, ge=0, description="Number of failed attempts that count toward backoffLimit.")
    ray_job_name: str | None = Field(default=None, max_length=63, description="Name of the latest attempt's RayJob.")
    ray_job_uid: str | None = Field(
        default=None, max_length=63, description="UID of the latest attempt's RayJob, once observed."
    )
    head_pod: str | None = Field(
        default=None, max_length=253, description="Name of the latest attempt's head pod, once running."
    )
    ray_cluster: str | None = Field(default=None, max_length=63, description="Name of the RayCluster of headPod.")
    start_time: datetime | None = Field(default=None, description="Start time of the first attempt.")
    completion_time: datetime | None = Field(default=None, description="Completion time of the job.")
    next_attempt_time: datetime | None = Field(default=None, description="Time at which the next attempt starts.")
    active_seconds: int = Field(default=0, ge=0, description="Running time of finished attempts, in seconds.")
    active_since: datetime | None = Field(
        default=None, description="Time since which the current attempt has been running."
    )
    waiting_since: datetime | None = Field(
        default=None, description="Time since which the job has been waiting for a running trainer."
    )
    starting_since: datetime | None = Field(
        default=None, description="Time since which the current attempt has been waiting for its pods."
    )
    head_lost_since: datetime | None = Field(
        default=None, description="Time since which the head pod has not been ready."
    )
    disruption: str | None = Field(
        default=None,
        max_length=MAX_MESSAGE_LENGTH,
        description="Disruption of a pod of the latest attempt, for example by a node drain. A failure of the attempt "
        "then does not count toward backoffLimit.",
    )
    last_failure: Failure | None = Field(default=None, description="Why the most recent failed attempt failed.")
    started_with: StartedWith | None = Field(
        default=None,
        description="What the first attempt was started with. Retries and the deletion of the data use the same, "
        "whatever the runtime says later.",
    )


class JobStatus(ControlStatus, ReportedStatus):
    """Observed state of a DreamBoothJob."""


CONTROL_FIELDS = frozenset(field.alias or name for name, field in ControlStatus.model_fields.items())


def parse_status(fields: Mapping[str, object]) -> JobStatus:
    """Read any status. Values that are not valid here are dropped one by one, so that the others still count."""
    status, _ = parse_leniently(JobStatus, fields)
    written = fields.get("phase", status.phase)
    return status if written == status.phase else status.model_copy(update={"phase": _presumed_phase(status)})


def _presumed_phase(status: JobStatus) -> Phase:
    """The phase of a job whose own phase is not known here. An attempt that may be open counts as open."""
    true = {condition.type for condition in status.conditions if condition.status == "True"}
    if ConditionType.SUCCEEDED in true:
        return Phase.SUCCEEDED
    if ConditionType.FAILED in true:
        return Phase.FAILED
    if status.attempts == 0:
        return Phase.PENDING
    return Phase.RETRYING if status.next_attempt_time else Phase.STARTING
