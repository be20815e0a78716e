"""`status.startedWith`: recorded when a job starts, and what the deletion of its data is derived from. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from dreambooth_api.environment import IMAGES_PATH, OUTPUT_PATH
from dreambooth_api.job import Cluster, JobSpec
from dreambooth_api.output import Output
from dreambooth_api.runtime import RuntimeSpec, WorkerResources
from dreambooth_api.started import StartedModel, StartedModelSource, StartedRunPolicy, StartedWith
from dreambooth_api.subject import ImageSource, Subject
from dreambooth_operator.controller.observed_pods import Pod
from dreambooth_operator.controller.resolve import ResolvedJob, with_digest

# What a pod that deletes data takes from the runtime.
_ERASURE = {
    "image": True,
    "image_pull_policy": True,
    "storage": {"credentials_secret"},
    "network": True,
    "pods": {
        "head": {"node_selector", "tolerations"},
        **dict.fromkeys(
            ("env", "env_from", "image_pull_secrets", "labels", "annotations", "service_account_annotations"), True
        ),
    },
}


def record_start(resolved: ResolvedJob) -> StartedWith:
    """The record of the first attempt."""
    spec, runtime = resolved.spec, resolved.runtime
    model, policy = spec.model or runtime.model, spec.run_policy
    deletes, second = spec.output.deletion_policy == "Delete", model.super_resolution
    return StartedWith(
        runtime=resolved.runtime_id,
        image=spec.cluster.image or runtime.image,
        model=StartedModel(
            id=model.id,
            revision=model.revision,
            super_resolution=second and StartedModelSource(id=second.id, revision=second.revision),
        ),
        claim_name=resolved.claim,
        folder=resolved.out.removeprefix(f"{OUTPUT_PATH}/"),
        uri=spec.output.uri,
        class_image_store=resolved.store,
        deletion_policy=spec.output.deletion_policy,
        run_policy=StartedRunPolicy(
            active_deadline_seconds=policy.active_deadline_seconds,
            max_active_deadline_seconds=runtime.bounds.max_active_deadline_seconds,
            ttl_seconds_after_finished=policy.ttl_seconds_after_finished,
            queue_name=policy.queue_name,
        ),
        erasure=runtime.model_dump(mode="json", by_alias=True, include=_ERASURE, exclude_defaults=True)
        if deletes
        else None,
    )


def with_image_digest(started: StartedWith, pods: Sequence[Pod]) -> StartedWith:
    """The record with the digest of the image, once a pod runs it. A patched pod may run another image."""
    if started.image_digest:
        return started
    digests = (pod.image_digest for pod in pods if pod.image_digest and pod.image == started.image)
    digest = next(digests, None)
    return started.model_copy(update={"image_digest": digest}) if digest else started


def resolve_erasure(started: StartedWith) -> ResolvedJob:
    """What the pod that deletes the data is built from. Neither the runtime nor the spec of the job is needed."""
    try:
        runtime = RuntimeSpec.model_validate(started.erasure or {})
    except ValidationError:  # another version wrote it
        runtime = RuntimeSpec(image=started.image)
    image = started.image
    if started.image_digest and runtime.image_pull_policy != "Never":
        image = with_digest(image, started.image_digest)
    # The trainer reads only the output. The subject is required.
    subject = Subject.model_validate({"images": ImageSource(uri=IMAGES_PATH), "class": "data"})
    return ResolvedJob(
        spec=JobSpec(subject=subject, output=Output(uri=started.uri), cluster=Cluster(image=image)),
        runtime=runtime,
        images=(),
        claim=started.claim_name,
        out=f"{OUTPUT_PATH}/{started.folder}",
        store=started.class_image_store,
        worker=WorkerResources(),
        runtime_id=started.runtime,
    )
