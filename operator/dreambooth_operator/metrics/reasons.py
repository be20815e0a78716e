"""Failure reasons that metrics have as labels. A trainer can report any reason, so all others are one value."""

from __future__ import annotations

from typing import Final

OTHER: Final = "Other"
# Those of docs/troubleshooting.md.
KNOWN: Final = frozenset(
    {
        "AppFailed",
        "BackoffLimitExceeded",
        "BelowThresholds",
        "ConfigMapNotFound",
        "ConfigMapRefused",
        "DeadlineExceeded",
        "DeviceError",
        "HeadLost",
        "ImageNotFound",
        "InvalidImageName",
        "InvalidInput",
        "JobDeploymentStatusTransitionGracePeriodExceeded",
        "JobRefused",
        "KeyNotFound",
        "LimitRangeExceeded",
        "NameTaken",
        "NetworkPolicyRefused",
        "OutOfMemory",
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
        "ValidationFailed",
        "VolumeClaimNotFound",
    }
)


def reason_label(reason: str) -> str:
    """The label value of a failure reason."""
    return reason if reason in KNOWN else OTHER
