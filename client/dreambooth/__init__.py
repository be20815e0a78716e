"""Runs DreamBooth jobs from Python, on this machine or on a Kubernetes cluster.

Importing it imports neither torch, Ray nor the Kubernetes client.
"""

from dreambooth.backend import Event
from dreambooth.client import Client
from dreambooth.errors import ClientError, JobExistsError, JobFailedError, JobNotFoundError
from dreambooth.job import Job
from dreambooth_api.errors import UserError
from dreambooth_api.status import ConditionType, JobStatus, Phase

__all__ = [
    "Client",
    "ClientError",
    "ConditionType",
    "Event",
    "Job",
    "JobExistsError",
    "JobFailedError",
    "JobNotFoundError",
    "JobStatus",
    "Phase",
    "UserError",
]
