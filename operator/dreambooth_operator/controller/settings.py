"""Settings of the operator that its deployment chooses."""

from __future__ import annotations

from dataclasses import dataclass

# Audience of the tokens with which trainers authenticate to the status server.
AUDIENCE = "dreambooth-progress"


@dataclass(frozen=True, slots=True)
class Settings:
    """Defaults are those of the Helm chart.

    Attributes:
        progress_url: URL of the status server as trainers reach it, without a trailing slash.
        head_grace_seconds: how long a head pod may be not ready before its attempt fails.
        pods_ready_seconds: minimum time that the pods of an attempt have to become ready.
        retry_seconds: delay before the first retry. It doubles with each failure, up to max_retry_seconds.
    """

    progress_url: str = "http://dreambooth-operator.dreambooth-system.svc:8082"
    head_grace_seconds: float = 120
    pods_ready_seconds: float = 1800
    retry_seconds: float = 10
    max_retry_seconds: float = 360
