"""Baselines for the operator in `operator_scale.py`: clients that write, or read, the same and decide nothing.

Run `python bench/bare_client.py KUBECONFIG PREFIX`, where PREFIX is the prefix of the names of its jobs. It makes the
writes that the operator's decisions for one job ask for, prepared before the first job exists. Names and uids are
replaced in their text. It keeps no cache, reads nothing but a watch of jobs, checks nothing and retries nothing, so
that it is as fast as the API server allows. `read` is the baseline for the adoption: it receives the objects that the
operator lists, and discards them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from dataclasses import dataclass, replace

from scale_jobs import RUNTIME, SINCE, SINCE_TIME, job_object

from dreambooth_operator.controller.actions import Action, Create, WriteStatus
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import Job, Observed, read_job, read_ray_job, read_runtime
from dreambooth_operator.controller.resolve import resolve
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import EVENTS, PODS, Json, Key, Resource
from dreambooth_operator.resources import BATCH_JOBS, JOBS, RAY_CLUSTERS, RAY_JOBS, RUNTIMES

MANAGER = "bare-client"
LISTED = (RUNTIMES, JOBS, RAY_JOBS, RAY_CLUSTERS, BATCH_JOBS, PODS)


async def read(kubeconfig: str) -> None:
    """Receive all objects that the operator lists at its start, as it does: in streams, at the same time."""
    query = {"watch": "true", "allowWatchBookmarks": "true", "sendInitialEvents": "true"}

    async def stream(api: Api, resource: Resource) -> None:
        async for line in api.lines(resource.path(), query | {"resourceVersionMatch": "NotOlderThan"}):
            if b"k8s.io/initial-events-end" in line:
                return

    async with await Api.connect(kubeconfig) as api:
        await asyncio.gather(*(stream(api, resource) for resource in LISTED))


@dataclass(frozen=True)
class Write:
    """One write: the creation of an object, or the application of a job's status."""

    resource: Resource
    text: str


def prepared_writes() -> tuple[Job, str, list[Write]]:
    """A job that does not exist, the uid of its RayJob, and the writes for it, in the operator's order."""
    identity = {"uid": str(uuid.uuid4()), "resourceVersion": "1", "generation": 1, "creationTimestamp": SINCE}
    made = job_object("model-of-the-writes", 0)
    made["metadata"] |= identity
    job = model = read_job(made)
    runtime = {**RUNTIME, "metadata": {**RUNTIME["metadata"], **identity}}
    resolved, ray_job_uid = resolve(job, read_runtime(runtime), []), str(uuid.uuid4())
    observed, writes = Observed(), list[Write]()
    while actions := decide(job, resolved, observed, SINCE_TIME, Settings()).actions:
        for action in actions:
            writes += texts(job, action)
            if isinstance(action, WriteStatus):
                job = replace(job, status=action.status)
            elif isinstance(action, Create) and action.resource is RAY_JOBS:
                ray_job = {**action.obj, "metadata": {**action.obj["metadata"], **identity, "uid": ray_job_uid}}
                observed = Observed((read_ray_job(ray_job),))
        if any(write.resource is RAY_JOBS for write in writes) and isinstance(actions[-1], WriteStatus):
            break
    return model, ray_job_uid, writes


def texts(job: Job, action: Action) -> list[Write]:
    """What the operator sends to carry out an action."""
    if isinstance(action, Create):
        return [Write(action.resource, json.dumps(action.obj))]
    assert isinstance(action, WriteStatus)
    status = action.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    identity: Json = {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "metadata": job.key._asdict()}
    writes = [Write(JOBS, json.dumps({**identity, "status": status}))]
    for number, event in enumerate(action.events):
        metadata = {"name": f"{job.key.name}.{number}", "namespace": job.key.namespace}
        seen = {"firstTimestamp": SINCE, "lastTimestamp": SINCE, "count": 1, "source": {"component": MANAGER}}
        said = {"type": event.type, "reason": event.reason, "message": event.message}
        about = {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": job.reference}
        writes.append(Write(EVENTS, json.dumps({**about, **seen, **said})))
    return writes


async def handle(api: Api, model: Job, ray_job_uid: str, writes: list[Write], metadata: Json) -> None:
    """Write everything for a new job."""
    key = Key(metadata["namespace"], metadata["name"])
    copy = replace(model, uid=metadata["uid"], key=key)
    changes = {
        base_name(model): base_name(copy),
        model.uid: copy.uid,
        model.key.name: key.name,
        model.key.namespace: key.namespace,
    }
    for write in writes:
        text = write.text
        for old, new in changes.items():
            text = text.replace(old, new)
        obj = json.loads(text)
        if write.resource is JOBS:
            await api.apply(JOBS, obj, manager=MANAGER, subresource="status")
            continue
        made = await api.create(write.resource, obj)
        if write.resource is RAY_JOBS:
            changes[ray_job_uid] = made["metadata"]["uid"]


async def main(kubeconfig: str, prefix: str) -> None:
    model, ray_job_uid, writes = prepared_writes()
    async with await Api.connect(kubeconfig) as api, asyncio.TaskGroup() as tasks:
        listed = await api.request("GET", JOBS.path(), query={"limit": "1"})
        query = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
        print(f"{1 + len(writes)} writes for each job", flush=True)
        async for line in api.lines(JOBS.path(), query):
            event = json.loads(line)
            metadata = event["object"]["metadata"]
            if event["type"] == "ADDED" and metadata["name"].startswith(prefix):
                tasks.create_task(handle(api, model, ray_job_uid, writes, metadata))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
