"""Names of a job's children: the same for the same job, never the same for another.

KubeRay takes 47 characters and a letter first. The uid is part of each name, so that a job that is
deleted and created again does not meet its predecessor's children.
"""

from __future__ import annotations

import hashlib
import re

from dreambooth_operator.controller.views import Job

MOST = 47
# "erase", or an attempt's number: backoffLimit is 100 at most, but resuming counts as an attempt as well.
_SUFFIX = 5


def base_name(job: Job) -> str:
    """At most 41 characters, a DNS-1035 label."""
    digest = hashlib.sha256(job.uid.encode()).hexdigest()[:8]
    room = MOST - _SUFFIX - 1 - len(f"dbj--{digest}")
    readable = re.sub(r"[^a-z0-9]+", "-", job.key.name)[:room].strip("-")
    return f"dbj-{readable}-{digest}" if readable else f"dbj-{digest}"


def attempt_name(job: Job, attempt: int) -> str:
    """The RayJob of an attempt, and its ConfigMap."""
    return f"{base_name(job)}-{attempt}"


def erase_name(job: Job) -> str:
    """The batch Job that erases, and its ConfigMap."""
    return f"{base_name(job)}-erase"
