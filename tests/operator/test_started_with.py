"""status.startedWith: retries and the deletion of the data use what the first attempt was started with."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml
from scenarios import conditions, fail, messages, running, succeed
from simulation import RUNTIME, START, World, attempt_objects, job_with, make_job

from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import Phase, TrainerPhase, parse_status
from dreambooth_operator.controller.actions import Create
from dreambooth_operator.controller.children.erase_job import erase_children
from dreambooth_operator.controller.observed import Runtime, read_job
from dreambooth_operator.controller.observed_pods import Pod, read_pod
from dreambooth_operator.controller.resolve import ResolvedJob, resolve, with_digest
from dreambooth_operator.controller.started import resolve_erasure
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.resources import BATCH_JOBS, ERASE_FINALIZER

DIGEST = f"sha256:{'a' * 64}"
COMMIT = "b" * 40
FIRST = Runtime(
    "default",
    RuntimeSpec.model_validate(
        {
            "image": "registry:5000/trainer:1",
            "model": {"id": "org/base", "superResolution": {"id": "org/second"}},
            "storage": {"claimName": "first", "uri": "s3://first", "credentialsSecret": "keys"},
            "pods": {"env": [{"name": "AWS_ENDPOINT_URL", "value": "https://s3.example"}]},
            "network": {"egress": [{"cidrs": ["203.0.113.0/24"], "ports": [443]}]},
            "bounds": {"maxActiveDeadlineSeconds": 500},
            "defaults": {"ttlSecondsAfterFinished": 100},
        }
    ),
    uid="runtime-1",
    generation=3,
)
OTHER = Runtime(
    "default",
    RuntimeSpec.model_validate(
        {
            "image": "other:2",
            "model": {"id": "org/other"},
            "storage": {"claimName": "other", "uri": "s3://other"},
            "pods": {"worker": {"memory": "64Gi"}},
        }
    ),
    uid="runtime-2",
)
CHANGES = {"edited": dataclasses.replace(OTHER, uid="runtime-1"), "replaced": OTHER, "without storage": RUNTIME}


def started(*, erase: bool = True, **run_policy: object) -> World:
    """A job whose first attempt runs."""
    output = {"deletionPolicy": "Delete" if erase else "Retain"}
    world = World(job_with({"output": output, "runPolicy": run_policy}), FIRST)
    world.reconcile()
    world.reconcile()
    running(world)
    world.reconcile()
    return world


def head(image: str = "registry:5000/trainer:1", digest: str = DIGEST) -> Pod:
    return Pod("dog", "1", "head", "p1", START, "node", head=True, ready=True, image=image, image_digest=digest)


def unreadable(world: World) -> None:
    """After an upgrade, the spec of the job is not valid any more, except for its run policy."""
    assert world.job
    assert world.job.spec
    policy = world.job.spec.run_policy
    world.job = dataclasses.replace(world.job, spec=None, problems=("spec.old: removed",), valid_run_policy=policy)


def retried(world: World) -> ResolvedJob:
    """The second attempt, as resolved."""
    fail(world)
    world.reconcile()
    world.advance(11)
    world.collect()
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.status.attempts == 2
    assert world.job
    created = world.job.status.model_copy(update={"ray_job_uid": None})
    found = resolve(dataclasses.replace(world.job, status=created), world.runtime, [])
    assert isinstance(found, ResolvedJob)
    return found


def erase_children_of(world: World) -> dict[str, Json]:
    """The children that delete the data."""
    world.delete()
    world.reconcile()
    world.collect()
    created = [action for action in world.observe().decide().actions if isinstance(action, Create)]
    assert BATCH_JOBS in [action.resource for action in created]
    return {action.obj["kind"]: action.obj for action in created}


def test_first_attempt_records_what_it_is_started_with() -> None:
    record = started().status.model_dump(mode="json", by_alias=True, exclude_none=True)["startedWith"]
    assert record["runtime"] == {"name": "default", "uid": "runtime-1", "generation": 3}
    assert record["image"] == "registry:5000/trainer:1"
    assert record["model"] == {"id": "org/base", "superResolution": {"id": "org/second"}}
    assert (record["claimName"], record["folder"], record["uri"]) == ("first", "dog", "s3://first/team/dog")
    assert record["classImageStore"] == "/dreambooth/output/.class-images"
    assert record["deletionPolicy"] == "Delete"
    assert record["runPolicy"] == {
        "activeDeadlineSeconds": 500, "maxActiveDeadlineSeconds": 500, "ttlSecondsAfterFinished": 100,
    }  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_retry_uses_image_model_and_claim_of_the_first_attempt(change: str) -> None:
    world, second = started(), "b" * 40
    world.report(TrainerPhase.PREPARE, model_commit=COMMIT, super_resolution_commit=second)
    world.pods = [head()]
    world.reconcile()
    record = world.status.started_with
    world.runtime = CHANGES[change]
    found = retried(world)
    assert found.spec.cluster.image == f"registry:5000/trainer@{DIGEST}"
    assert found.spec.model
    assert (found.spec.model.id, found.spec.model.revision) == ("org/base", COMMIT)
    assert (found.claim, found.out, found.spec.output.uri) == ("first", "/dreambooth/output/dog", "s3://first/team/dog")
    assert found.store == "/dreambooth/output/.class-images"
    assert world.status.started_with == record
    assert world.job
    children = {obj["kind"]: obj for _, obj in attempt_objects(world.job, 2, found)}
    spec = yaml.safe_load(children["ConfigMap"]["data"]["job.yaml"])["spec"]
    expected = {"id": "org/base", "revision": COMMIT, "superResolution": {"id": "org/second", "revision": second}}
    assert spec["model"] == expected


def test_rest_of_a_changed_runtime_applies_to_the_next_attempt() -> None:
    world = started()
    world.runtime = OTHER
    assert retried(world).worker.memory == "64Gi"


@pytest.mark.parametrize("runtime", [*CHANGES.values(), None])
@pytest.mark.parametrize("is_valid", [True, False])
def test_data_is_deleted_where_the_job_was_started(runtime: Runtime | None, is_valid: bool) -> None:
    world = started()
    world.pods = [head()]
    world.reconcile()
    world.runtime = runtime
    if not is_valid:
        unreadable(world)
    children = erase_children_of(world)
    pod = children["Job"]["spec"]["template"]["spec"]
    assert {"name": "output", "persistentVolumeClaim": {"claimName": "first"}} in pod["volumes"]
    egress = children["NetworkPolicy"]["spec"]["egress"]
    assert [{"ipBlock": {"cidr": "203.0.113.0/24"}}] in [rule.get("to") for rule in egress], "as the runtime allowed"
    container = pod["containers"][0]
    assert container["image"] == f"registry:5000/trainer@{DIGEST}"
    assert container["command"][-1] == "/dreambooth/output/dog"
    assert {"name": "AWS_ENDPOINT_URL", "value": "https://s3.example"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    spec = yaml.safe_load(children["ConfigMap"]["data"]["job.yaml"])["spec"]
    assert spec["output"] == {"uri": "s3://first/team/dog"}
    world.reconcile()
    assert world.erase
    world.erase = dataclasses.replace(world.erase, succeeded=True)
    world.reconcile()
    assert world.job is None
    assert world.events[-1] == "Erased"


def test_job_file_that_deletes_data_needs_no_field_that_another_version_may_lack() -> None:
    record = started().status.started_with
    assert record
    files = [obj for _, obj in erase_children(make_job(), resolve_erasure(record)) if obj["kind"] == "ConfigMap"]
    spec = yaml.safe_load(files[0]["data"]["job.yaml"])["spec"]
    assert spec["subject"] == {"images": {"uri": "/dreambooth/images"}, "class": "data"}
    assert {name for name, value in spec.items() if value} == {"subject", "output", "cluster"}


@pytest.mark.parametrize("runtime", [FIRST, None])
def test_finalizer_is_never_removed_because_a_spec_is_not_valid_any_more(runtime: Runtime | None) -> None:
    world = started()
    unreadable(world)
    world.runtime = runtime
    world.reconcile()
    assert world.job
    assert world.job.finalizers == (ERASE_FINALIZER,)
    before = World(make_job(erase=True))
    before.reconcile(max_actions=1)
    unreadable(before)
    before.reconcile()
    assert before.job
    assert before.job.finalizers == (ERASE_FINALIZER,), "also before the first attempt"


def test_finalizer_is_kept_if_it_is_not_known_where_the_data_is() -> None:
    world = started()
    assert world.job
    world.job = dataclasses.replace(world.job, status=world.status.model_copy(update={"started_with": None}))
    world.delete()
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.job
    assert conditions(world)["Erased"] == ("False", "LocationUnknown")
    assert ERASE_FINALIZER in messages(world)["Erased"]


def broken(world: World, cause: str) -> str:
    """Make the job unable to start again. Returns the reason."""
    if cause == "spec":
        unreadable(world)
        return "InvalidSpec"
    world.runtime = None
    return "RuntimeNotFound"


@pytest.mark.parametrize("cause", ["spec", "runtime"])
def test_running_attempt_continues_and_states_why_it_could_not_start_again(cause: str) -> None:
    world = started()
    reason = broken(world, cause)
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
    assert conditions(world)["Accepted"] == ("False", reason)
    assert world.events.count(reason) == 1
    world.reconcile()
    assert world.events.count(reason) == 1, "the event is recorded once"
    succeed(world)
    world.report_all()
    world.reconcile()
    assert world.status.phase is Phase.SUCCEEDED
    assert conditions(world)["Published"] == ("True", "Published")


@pytest.mark.parametrize("cause", ["spec", "runtime"])
def test_deadline_and_ttl_of_the_runtime_still_apply(cause: str) -> None:
    world = started(erase=False)
    broken(world, cause)
    world.advance(499)
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
    world.advance(2)
    world.reconcile()
    assert conditions(world)["Failed"] == ("True", "DeadlineExceeded")
    world.advance(101)
    world.reconcile()
    assert world.job is None, "the TTL deletes it"


@pytest.mark.parametrize("cause", ["spec", "runtime"])
def test_suspension_still_applies(cause: str) -> None:
    world = started(suspend=False)
    world.set_policy(suspend=True)
    broken(world, cause)
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.status.phase is Phase.SUSPENDED
    assert not world.live


def test_deadline_cannot_be_raised_while_the_runtime_is_gone() -> None:
    world = started()
    world.runtime = None
    world.set_policy(active_deadline_seconds=10**6)
    world.advance(501)
    world.reconcile()
    assert conditions(world)["Failed"] == ("True", "DeadlineExceeded")


def test_skipped_phases_stay_skipped_when_the_spec_is_not_valid_any_more() -> None:
    world = World(job_with({"evaluation": {"enabled": False}}), FIRST)
    world.reconcile()
    running(world)
    world.report_all()
    succeed(world)
    world.reconcile()
    unreadable(world)
    writes = world.writes
    world.reconcile()
    assert conditions(world)["Evaluated"] == ("True", "Skipped")
    assert world.writes == writes


def test_valid_fields_of_the_run_policy_of_an_invalid_spec_are_read() -> None:
    policy = {"suspend": True, "activeDeadlineSeconds": 60, "backoffLimit": -1, "removedField": 5}
    metadata = {
        "name": "dog", "namespace": "team", "uid": "u", "resourceVersion": "1",
        "creationTimestamp": "2026-11-24T06:00:00Z",
    }  # fmt: skip
    job = read_job({"metadata": metadata, "spec": {"subject": 5, "runPolicy": policy}})
    assert job.spec is None
    found = job.valid_run_policy
    assert (found.suspend, found.active_deadline_seconds, found.backoff_limit) == (True, 60, 3)


def test_first_commit_counts() -> None:
    world = started()
    world.report(TrainerPhase.PREPARE, model_commit=COMMIT)
    world.report(TrainerPhase.TRAIN, model_commit="c" * 40)
    assert world.status.model_commit == COMMIT


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("trainer", f"trainer@{DIGEST}"),
        ("ghcr.io/corp/trainer:1", f"ghcr.io/corp/trainer@{DIGEST}"),
        ("registry:5000/trainer", f"registry:5000/trainer@{DIGEST}"),
        (f"ghcr.io/corp/trainer:1@sha256:{'0' * 64}", f"ghcr.io/corp/trainer@{DIGEST}"),
    ],
)
def test_image_with_digest_stays_in_its_repository(image: str, expected: str) -> None:
    assert with_digest(image, DIGEST) == expected


def test_image_of_a_patched_pod_and_preloaded_images_are_not_pinned() -> None:
    world = started()
    world.pods = [head(image="patched:1")]
    world.reconcile()
    assert world.status.started_with
    assert world.status.started_with.image_digest is None
    assert FIRST.spec
    world.runtime = dataclasses.replace(FIRST, spec=FIRST.spec.model_copy(update={"image_pull_policy": "Never"}))
    world.pods = [head()]
    world.reconcile()
    assert world.status.started_with.image_digest == DIGEST
    assert retried(world).spec.cluster.image == "registry:5000/trainer:1"


@pytest.mark.parametrize(
    ("image_id", "digest"),
    [
        (f"ghcr.io/corp/trainer@{DIGEST}", DIGEST),
        (f"docker-pullable://ghcr.io/corp/trainer@{DIGEST}", DIGEST),
        (DIGEST, ""),
        ("", ""),
    ],
)
def test_digest_is_read_from_the_pod(image_id: str, digest: str) -> None:
    metadata: dict[str, Any] = {"name": "head", "uid": "p", "creationTimestamp": "2026-11-24T06:00:00Z"}
    containers = [{"name": "sidecar", "image": "proxy:1"}, {"name": "ray-head", "image": "trainer:1"}]
    statuses = [{"name": "sidecar", "imageID": f"proxy@sha256:{'0' * 64}"}, {"name": "ray-head", "imageID": image_id}]
    pod = read_pod(
        {"metadata": metadata, "spec": {"containers": containers}, "status": {"containerStatuses": statuses}}
    )
    assert (pod.image, pod.image_digest) == ("trainer:1", digest)


def test_record_with_a_folder_outside_the_claim_is_not_read() -> None:
    record = started().status.model_dump(mode="json", by_alias=True, exclude_none=True)
    record["startedWith"]["folder"] = "../../etc"
    assert parse_status(record).started_with is None
