"""Pods of a job as observed: whether they are ready, and why they wait. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from sys import intern

from dreambooth_api.status import printable
from dreambooth_operator.machinery.partial import Fields
from dreambooth_operator.machinery.resources import Json, part, parts
from dreambooth_operator.resources import ATTEMPT_LABEL, JOB_LABEL, RAY_CONTAINERS

# The fields of all children that are read, and those of pods.
METADATA_FIELDS: Fields = dict.fromkeys(
    (
        *("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"),
        *("labels", "annotations", "ownerReferences"),
    )
)
POD_FIELDS: Fields = {
    "metadata": METADATA_FIELDS,
    "spec": {"nodeName": None, "containers": [dict.fromkeys(("name", "image", "resources"))]},
    "status": None,
}
_MAX_TEXT_LENGTH = 600  # of a message of the kubelet or the scheduler
# Reasons of every new container; the kubelet explains a long wait only in events.
_STARTING = ("", "ContainerCreating", "PodInitializing")

# Of an image from a registry. The ID of an image that was loaded into the node is not a digest in any registry.
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")

# Events that do not show that volumes were mounted.
_BEFORE_MOUNTS = ("Scheduled", "SuccessfulAttachVolume")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a job.

    Attributes:
        owner: name of the DreamBoothJob.
        attempt: number of the attempt; empty for a pod that deletes data.
        node: name of the node; empty if the pod is not scheduled.
        reason: why the pod waits, as the scheduler or the kubelet named it; empty if it does not wait or if its status
            does not contain a reason.
        message: details of the reason, on one line.
        disruption: why the pod is about to end, if it is not by its own fault: the reason and message of its condition
            DisruptionTarget.
        image: image of the trainer's container, as in the spec of the pod.
        image_digest: digest of that image, once it is known.
        ends: when its grace period ends, if it is being deleted.
        out_of_memory: which of its Ray containers the kernel killed for lack of memory, and its limit; empty if none.
    """

    owner: str
    attempt: str
    name: str
    uid: str
    created: datetime
    node: str
    head: bool
    ready: bool
    reason: str = ""
    message: str = ""
    disruption: str = ""
    ends: datetime | None = None
    out_of_memory: str = ""
    image: str = ""
    image_digest: str = ""

    @property
    def problem(self) -> str:
        """The reason, the details and the name of the pod; empty without a reason."""
        if not self.reason:
            return ""
        return f"Pod {self.name}: {self.reason}: {self.message}".rstrip(": ")


def read_pod(obj: Json) -> Pod:
    """Parse a pod."""
    metadata, status = obj["metadata"], part(obj, "status")
    labels = part(metadata, "labels")
    conditions = {condition["type"]: condition for condition in parts(status, "conditions")}
    ready = part(conditions, "Ready").get("status") == "True"
    reason, message = ("", "") if ready else _waiting(status, conditions)
    image, digest = _image(part(obj, "spec"), status)
    return Pod(
        owner=intern(labels.get(JOB_LABEL, "")),
        attempt=intern(labels.get(ATTEMPT_LABEL, "")),
        name=intern(metadata["name"]),
        uid=metadata["uid"],
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        node=intern(part(obj, "spec").get("nodeName") or ""),
        head=labels.get("ray.io/node-type") == "head",
        ready=ready,
        reason=one_line(reason),
        message=one_line(message),
        disruption=_disruption(part(conditions, "DisruptionTarget")),
        ends=datetime.fromisoformat(ended) if (ended := metadata.get("deletionTimestamp")) else None,
        out_of_memory=_out_of_memory(part(obj, "spec"), status),
        image=intern(image),
        image_digest=digest,
    )


def _out_of_memory(spec: Json, status: Json) -> str:
    # A container that restarted in place keeps the end of its last run.
    killed = {
        container["name"]
        for container in parts(status, "containerStatuses")
        for state in ("state", "lastState")
        if part(container, state, "terminated").get("reason") == "OOMKilled"
    }
    container = next((c for c in parts(spec, "containers") if c["name"] in killed.intersection(RAY_CONTAINERS)), None)
    if container is None:
        return ""
    limit = part(container, "resources", "limits").get("memory")
    cause = (
        f"which exceeded its memory limit of {limit}"
        if limit
        else f"which has no memory limit, because node {spec.get('nodeName')} ran out of memory"
    )
    return f"container {container['name']}, {cause}"


def _image(spec: Json, status: Json) -> tuple[str, str]:
    """The image of the trainer's container, and its digest."""
    for container in parts(spec, "containers"):
        if container["name"] in RAY_CONTAINERS:
            running = [c for c in parts(status, "containerStatuses") if c["name"] == container["name"]]
            digests = [_DIGEST.search(c.get("imageID") or "") for c in running]
            return container.get("image") or "", next((found[1] for found in digests if found), "")
    return "", ""


def _disruption(condition: Json) -> str:
    if condition.get("status") != "True":
        return ""
    return one_line(f"{condition.get('reason') or 'Disrupted'}: {condition.get('message') or ''}").rstrip(": ")


def _waiting(status: Json, conditions: Json) -> tuple[str, str]:
    """Reason and message of a pod that is not ready: of the scheduler, the kubelet, or a container."""
    scheduled = part(conditions, "PodScheduled")
    if scheduled.get("status") == "False":
        return scheduled.get("reason") or "Unschedulable", scheduled.get("message") or ""
    if status.get("phase") == "Failed" and status.get("reason"):
        return status["reason"], status.get("message") or ""
    return next(_waiting_containers(status), ("", ""))


def _waiting_containers(status: Json) -> Iterator[tuple[str, str]]:
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in parts(status, kind):
            waiting = part(container, "state", "waiting")
            if (reason := waiting.get("reason") or "") not in _STARTING:
                yield reason, waiting.get("message") or ""


def needs_event(pod: Pod) -> bool:
    """Whether the status of a pod does not explain why it waits on its node; then an event may, as FailedMount does."""
    return bool(pod.node) and not pod.ready and not pod.reason


def explain_by_events(pod: Pod, events: list[Json]) -> Pod:
    """The pod with the reason of its latest event, if that is a warning.

    Any later event, for example that an image is being pulled, shows that the cause of a warning is gone.
    """
    relevant = (event for event in events if event.get("reason") not in _BEFORE_MOUNTS)
    latest = max(relevant, key=lambda event: (_event_time(event), event.get("type") != "Warning"), default=None)
    if latest is None or latest.get("type") != "Warning":
        return pod
    return replace(pod, reason=one_line(latest.get("reason") or ""), message=one_line(latest.get("message") or ""))


def _event_time(event: Json) -> str:
    times = (part(event, "series").get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((time for time in times if time), "")


def one_line(text: str) -> str:
    """`text` without control characters and line breaks, truncated."""
    return " ".join(printable(text).split())[:_MAX_TEXT_LENGTH]
