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
_DIGEST_LENGTH = 8


def base_name(job: Job) -> str:
    """A DNS-1035 label of at most 41 characters. Also the name of the job's ServiceAccount."""
    return _prefix(job.key.name) + hashlib.sha256(job.uid.encode()).hexdigest()[:_DIGEST_LENGTH]


def may_be_base_name(text: str, job: str) -> bool:
    """Whether `text` is the base name of some job of this name, which differ in the hash of the uid."""
    return re.fullmatch(f"{re.escape(_prefix(job))}[0-9a-f]{{{_DIGEST_LENGTH}}}", text) is not None


def _prefix(job: str) -> str:
    available = MAX_LENGTH - _SUFFIX_LENGTH - 1 - len("dbj--") - _DIGEST_LENGTH
    readable = re.sub(r"[^a-z0-9]+", "-", job)[:available].strip("-")
    return f"dbj-{readable}-" if readable else "dbj-"


def attempt_name(job: Job, attempt: int) -> str:
    """Name of the RayJob of an attempt, and of its ConfigMap."""
    return f"{base_name(job)}-{attempt}"


def erase_name(job: Job) -> str:
    """Name of the batch Job that deletes the job's data, and of its ConfigMap."""
    return f"{base_name(job)}-erase"
