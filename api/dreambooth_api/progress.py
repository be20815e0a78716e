"""The progress message that a trainer sends to the operator, and the reply to it.

Trainer and operator may have different versions: unknown fields and invalid values are ignored, and the rest is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import cast

from pydantic import Field, field_validator
from pydantic_core import from_json

from dreambooth_api.lenient import Lenient, parse_leniently
from dreambooth_api.status import ClassImagesStatus, Commit, Count, Failure, OutputStatus, TrainerPhase

# Longest interval between two progress reports. A third of the default progress deadline.
MAX_REPORT_SECONDS = 600.0
_PHASES = {phase.lower(): phase for phase in TrainerPhase}


class ProgressMessage(Lenient):
    """A progress report. All fields are optional; a missing field means no change.

    Numbers that the status cannot contain (NaN, or implausibly large ones) are dropped.
    """

    phase: TrainerPhase | None = None
    step: Count | None = None
    steps: Count | None = None
    saved_step: Count | None = None
    selected_step: Count | None = None
    samples: Count | None = None
    world_size: Count | None = None
    loss: float | None = None
    steps_per_second: float | None = Field(default=None, ge=0)
    eta_seconds: float | None = Field(default=None, ge=0)
    class_images: ClassImagesStatus | None = None
    scores: dict[str, float | None] | None = None
    subject_scores: dict[str, dict[str, float | None]] | None = None
    output: OutputStatus | None = None
    model_commit: Commit | None = None
    super_resolution_commit: Commit | None = None
    failure: Failure | None = None

    @field_validator("phase", mode="before")
    @classmethod
    def _phase_in_any_case(cls, value: object) -> object:
        return _PHASES.get(re.sub(r"[-_]", "", value).lower(), value) if isinstance(value, str) else value

    @field_validator("loss", "steps_per_second", "eta_seconds", mode="after")
    @classmethod
    def _finite_or_nothing(cls, value: float | None) -> float | None:
        # The API server does not accept NaN; the trainer logs a loss of NaN.
        return value if value is not None and abs(value) < 1e9 else None

    @field_validator("scores", mode="after")
    @classmethod
    def _finite_scores(cls, scores: dict[str, float | None] | None) -> dict[str, float | None] | None:
        # JSON cannot represent NaN; a score of NaN becomes null.
        return scores and _finite(scores)

    @field_validator("subject_scores", mode="after")
    @classmethod
    def _finite_subject_scores(
        cls, subjects: dict[str, dict[str, float | None]] | None
    ) -> dict[str, dict[str, float | None]] | None:
        return subjects and {identifier: _finite(scores) for identifier, scores in subjects.items()}

    @field_validator("failure", mode="before")
    @classmethod
    def _failure_without_a_reason(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, object]", value)
        return given if isinstance(given.get("reason"), str) else {**given, "reason": "Unknown"}

    def to_json(self) -> bytes:
        """The request body."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


class ProgressReply(Lenient):
    """The operator's reply to a report that it accepted.

    Attributes:
        next_report_seconds: after how many seconds to report progress again; None from an operator that does not say.
    """

    message: str = ""
    next_report_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def to_json(self) -> bytes:
        """The response body."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


def _finite(scores: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in scores.items()}


def report_path(namespace: str, name: str, attempt: int | str) -> str:
    """Path of the status server's URL to which the trainer of an attempt sends its messages."""
    return f"/v1/jobs/{namespace}/{name}/attempts/{attempt}"


def parse_message(body: bytes | str) -> tuple[ProgressMessage, list[str]]:
    """Parse a request body. Returns the message and the paths of the invalid values that were ignored.

    Unknown fields are ignored without being listed.

    Raises:
        ValueError: the body is not a JSON object.
    """
    fields = from_json(body)
    if not isinstance(fields, dict):
        raise ValueError("a report must be a JSON object")  # noqa: TRY004 - the input is wrong, not the program
    return parse_fields(cast("dict[str, object]", fields))


def parse_fields(fields: Mapping[str, object]) -> tuple[ProgressMessage, list[str]]:
    """The message with these fields, and the paths of the invalid values that were ignored."""
    return parse_leniently(ProgressMessage, fields)


def parse_reply(body: bytes) -> ProgressReply:
    """Parse a response body. Never raises: a body that is not valid has no fields."""
    try:
        fields = from_json(body)
    except ValueError:
        return ProgressReply()
    return parse_leniently(ProgressReply, cast("dict[str, object]", fields) if isinstance(fields, dict) else {})[0]
