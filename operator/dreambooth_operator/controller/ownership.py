"""Whether an object that exists under the name of a child is that child. Pure.

Names of children are predictable, so a user of the namespace can create an object under one of them beforehand.
"""

from __future__ import annotations

from dreambooth_api.status import Failure
from dreambooth_operator.machinery.resources import (
    NETWORK_POLICIES,
    SERVICE_ACCOUNTS,
    Json,
    Resource,
    key_of,
    part,
    parts,
)
from dreambooth_operator.resources import RAY_JOBS

# The operator may not read ConfigMaps: the trainer compares the digest of the job file instead. RayJobs and batch Jobs
# are cached with the uid of their owner.
COMPARED = (SERVICE_ACCOUNTS, NETWORK_POLICIES)
# OpenShift adds Secrets to each ServiceAccount.
_EXTENDED = ("apiVersion", "kind", "metadata", "secrets", "imagePullSecrets")


def name_conflict(resource: Resource, wanted: Json, existing: Json) -> Failure | None:
    """A failure if `existing` is not the child `wanted`: another owner, or other content."""
    # KubeRay and Kueue extend RayJobs.
    is_same = resource == RAY_JOBS or _content(existing) == _content(wanted)
    if is_same and controller_uid(existing) == controller_uid(wanted):
        return None
    message = (
        f"{resource.kind} {key_of(wanted)} exists, and this job did not create it: delete it, or create the job under "
        "another name."
    )
    return Failure(reason="NameTaken", message=message)


def controller_uid(obj: Json) -> str:
    """The uid of the object that controls `obj`; empty if there is none."""
    owners = parts(part(obj, "metadata"), "ownerReferences")
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _content(obj: Json) -> Json:
    """All fields but those that the API server and other controllers extend."""
    return {key: value for key, value in obj.items() if key not in _EXTENDED}
