"""`status` of a `DreamBoothJob`: what the operator knows, in the words that a person reads first.

Two writers share it, each under its own field manager, so that neither undoes the other. The controller
owns everything but the fields of `ReportedStatus`, which the progress endpoint writes.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Phase(StrEnum):
    """Where a job is. The operator's `controller.states.TRANSITIONS` has the legal transitions."""

    PENDING = "Pending"  # not looked at yet, or about to start
    REJECTED = "Rejected"  # cannot start as it is; starts by itself once the cause is gone
    QUEUED = "Queued"  # waits for a queue to admit it
    STARTING = "Starting"  # the Ray cluster comes up
    RUNNING = "Running"
    RETRYING = "Retrying"  # an attempt failed; the next one starts after a pause
    SUSPENDING = "Suspending"  # pods are going away
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERASING = "Erasing"  # being deleted; what it made is being removed


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED})


class ConditionType(StrEnum):
    """What a job goes through, in order; then how it ends."""

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


class TrainerPhase(StrEnum):
    """What the trainer is at, in order."""

    PREPARE = "Prepare"
    CLASS_IMAGES = "ClassImages"
    ENCODE = "Encode"
    TRAIN = "Train"
    EVALUATE = "Evaluate"
    PUBLISH = "Publish"


REASON = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
MAX_REASON_LENGTH = 256
MAX_MESSAGE_LENGTH = 4000
_REASON = re.compile(REASON.removesuffix("$") + r"\Z", re.ASCII)
_WRAPPED = re.compile(r"[\w.]+\(([A-Za-z].*)\)", re.DOTALL)
# Sequences that color or move a terminal, then single control characters but newline and tab, then surrogates.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def legal_reason(text: str) -> str:
    """A reason that a condition may have, made of any text: "Unknown" if nothing of it can be used.

    Of an error in an error, as in Ray's `RayTaskError(OutOfMemoryError)`, the inner one is taken.
    """
    if len(text) <= MAX_REASON_LENGTH and _REASON.match(text):
        return text
    text = text[:1000]
    while wrapped := _WRAPPED.fullmatch(text.strip()):
        text = wrapped[1]
    words = re.findall(r"[A-Za-z0-9_]+", text)
    return "".join(word[0].upper() + word[1:] for word in words).lstrip("0123456789_")[:MAX_REASON_LENGTH] or "Unknown"


def printable(text: str) -> str:
    """`text` without control characters; lines and tabs stay, and a carriage return begins a line."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def fit_message(text: str) -> str:
    """`text` as the message of a condition."""
    return printable(text)[:MAX_MESSAGE_LENGTH]


def _legal_reason(value: object) -> object:
    return legal_reason(value) if isinstance(value, str) else value


def _fit_message(value: object) -> object:
    return fit_message(value) if isinstance(value, str) else value


def _line(value: object) -> object:
    return " ".join(printable(value).split()) if isinstance(value, str) else value


class Lenient(BaseModel):
    """Status is read back from a server that may be newer: unknown fields are ignored, not refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Condition(Lenient):
    """One observation, as in all of Kubernetes."""

    type: ConditionType = Field(description="What is observed.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(pattern=REASON, max_length=1024, description="One word.")
    message: str = Field(default="", max_length=32768, description="A sentence that a person can act on.")
    observed_generation: int = Field(default=0, description="The generation of the spec that this is about.")
    last_transition_time: datetime = Field(description="When status last changed.")


class Failure(Lenient):
    """Why an attempt ended. Any text is taken for reason and message, and made fit for a condition."""

    reason: Annotated[str, BeforeValidator(_legal_reason)] = Field(
        pattern=REASON, max_length=MAX_REASON_LENGTH, description="One word."
    )
    message: Annotated[str, BeforeValidator(_fit_message)] = Field(
        default="", max_length=MAX_MESSAGE_LENGTH, description="What happened, and what to do about it."
    )
    retryable: bool = Field(default=True, description="False where trying again cannot help.")


Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Line = Annotated[str, BeforeValidator(_line)]


class ClassImagesStatus(Lenient):
    """Class images."""

    wanted: Count = Field(default=0, description="How many the job needs.")
    reused: Count = Field(default=0, description="How many were there already.")
    generated: Count = Field(default=0, description="How many were made for it.")


class TrainingStatus(Lenient):
    """Fine-tuning."""

    step: Count | None = Field(default=None, description="Optimizer steps done.")
    steps: Count | None = Field(default=None, description="Optimizer steps in all.")
    loss: float | None = Field(default=None, allow_inf_nan=False, description="Loss of the last steps.")
    steps_per_second: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="Speed.")
    eta: str | None = Field(default=None, max_length=20, description="Time left, such as 5m.")
    progress: str | None = Field(default=None, max_length=40, description="Steps done of all, such as 120/1000.")


class Scores(Lenient):
    """What the evaluation measured, as text so that columns align: 0.742."""

    dino: str | None = Field(default=None, max_length=20, description="DINO subject fidelity.")
    clip_i: str | None = Field(default=None, max_length=20, description="CLIP-I subject fidelity.")
    clip_t: str | None = Field(default=None, max_length=20, description="CLIP-T prompt fidelity.")
    pres: str | None = Field(default=None, max_length=20, description="PRES prior preservation; lower is better.")
    div: str | None = Field(default=None, max_length=20, description="DIV diversity.")


class OutputStatus(Lenient):
    """What was published."""

    uri: Line | None = Field(default=None, max_length=2000, description="Where it is.")
    digest: Line | None = Field(default=None, max_length=200, description="Digest of its content.")


class Report(Lenient):
    """The last word of the trainer."""

    attempt: int = Field(default=0, ge=0, description="The attempt that reported.")
    phase: TrainerPhase | None = Field(default=None, description="What the trainer is at.")
    time: datetime | None = Field(default=None, description="When it said so.")
    failure: Failure | None = Field(default=None, description="Why it gave up.")


class ReportedStatus(Lenient):
    """The part that the progress endpoint owns."""

    report: Report | None = Field(default=None, description="The last word of the trainer.")
    class_images: ClassImagesStatus | None = Field(default=None, description="Class images.")
    training: TrainingStatus | None = Field(default=None, description="Fine-tuning.")
    scores: Scores | None = Field(default=None, description="What the evaluation measured.")
    output: OutputStatus | None = Field(default=None, description="What was published.")


class ControlStatus(Lenient):
    """The part that the controller owns."""

    phase: Phase = Field(default=Phase.PENDING, description="Where the job is.")
    observed_generation: int = Field(default=0, description="The generation of the spec that this is about.")
    conditions: list[Condition] = Field(default_factory=list[Condition], description="What the job went through.")
    attempts: int = Field(default=0, ge=0, description="RayJobs begun.")
    failures: int = Field(default=0, ge=0, description="Attempts that failed and count towards backoffLimit.")
    ray_job_name: str | None = Field(default=None, max_length=63, description="RayJob of the latest attempt.")
    ray_job_uid: str | None = Field(default=None, max_length=63, description="Its uid, once it was seen.")
    head_pod: str | None = Field(default=None, max_length=253, description="Its head pod, once it ran.")
    start_time: datetime | None = Field(default=None, description="When the first attempt began.")
    completion_time: datetime | None = Field(default=None, description="When the job ended.")
    next_attempt_time: datetime | None = Field(default=None, description="When the next attempt begins.")
    active_seconds: int = Field(default=0, ge=0, description="Running time of what ended already, seconds.")
    active_since: datetime | None = Field(default=None, description="Since when the present attempt runs.")
    head_lost_since: datetime | None = Field(default=None, description="Since when the head pod is not ready.")
    last_failure: Failure | None = Field(default=None, description="Why the last attempt that failed did.")


class JobStatus(ControlStatus, ReportedStatus):
    """Where a job is, what it did, and how it ends."""


CONTROL_FIELDS = frozenset(field.alias or name for name, field in ControlStatus.model_fields.items())
