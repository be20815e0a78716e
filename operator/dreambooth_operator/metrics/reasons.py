"""Failure reasons that metrics have as labels. A trainer can report any reason, so all others are one value."""

from __future__ import annotations

from typing import Final

from dreambooth_api.environment import BELOW_THRESHOLDS, INVALID_INPUT, OUT_OF_MEMORY

OTHER: Final = "Other"
# Those of docs/troubleshooting.md.
KNOWN: Final = frozenset(
    {
        "AppFailed",
        "BackoffLimitExceeded",
        BELOW_THRESHOLDS,
        "ConfigMapNotFound",
        "ConfigMapRefused",
        "DeadlineExceeded",
        "DeviceError",
        "HeadLost",
        "ImageNotFound",
        "InvalidImageName",
        INVALID_INPUT,
        "JobDeploymentStatusTransitionGracePeriodExceeded",
        "JobRefused",
        "KeyNotFound",
        "LimitRangeExceeded",
        "NameTaken",
        "NetworkPolicyRefused",
        OUT_OF_MEMORY,
        "PodsNotReady",
        "PreRunningDeadlineExceeded",
        "PriorityClassNotFound",
        "ProgressDeadlineExceeded",
        "QuotaExceeded",
        "RayJobDeleted",
        "RayJobRefused",
        "RuntimeChanged",
        "SecretNotFound",
        "ServiceAccountRefused",
        "StartDeadlineExceeded",
        "Stopped",
        "SubmissionFailed",
        "TransientError",
        "Unknown",
        "VolumeClaimNotFound",
    }
)


def reason_label(reason: str) -> str:
    """The label value of a failure reason."""
    return reason if reason in KNOWN else OTHER
