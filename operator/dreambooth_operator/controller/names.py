"""Deterministic, unique names of a job's children.

KubeRay allows 47 characters and requires a letter first. Each name contains a hash of the job's uid, so that a job that
is deleted and created again does not take over the children of its predecessor.
"""

from __future__ import annotations

import hashlib
import re

from dreambooth_operator.controller.observed import Job

MAX_LENGTH = 47
# "erase", or the number of an attempt. backoffLimit is at most 100, but resuming also starts an attempt.
_SUFFIX_LENGTH = 5


def base_name(job: Job) -> str:
    """A DNS-1035 label of at most 41 characters."""
    digest = hashlib.sha256(job.uid.encode()).hexdigest()[:8]
    available = MAX_LENGTH - _SUFFIX_LENGTH - 1 - len(f"dbj--{digest}")
    readable = re.sub(r"[^a-z0-9]+", "-", job.key.name)[:available].strip("-")
    return f"dbj-{readable}-{digest}" if readable else f"dbj-{digest}"


def attempt_name(job: Job, attempt: int) -> str:
    """Name of the RayJob of an attempt, and of its ConfigMap."""
    return f"{base_name(job)}-{attempt}"


def erase_name(job: Job) -> str:
    """Name of the batch Job that deletes the job's data, and of its ConfigMap."""
    return f"{base_name(job)}-erase"
