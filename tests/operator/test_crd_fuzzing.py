"""Random mutations of jobs: each is rejected with a message, or the API server accepts its children."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

import yaml
from simulation import RUNTIME, SETTINGS, World

from dreambooth_operator.controller.actions import Create
from dreambooth_operator.controller.children.attempt import attempt_children
from dreambooth_operator.controller.observed import Job, read_job
from dreambooth_operator.controller.resolve import ResolutionError, ResolvedJob, resolve
from dreambooth_operator.machinery.client import Api, ApiError

ROOT = Path(__file__).resolve().parents[2]
JUNK: list[Any] = [
    None, "", " ", "a", "a b", "A_B", "x" * 400, "é☃", "line\nbreak", "{}", "{{}}", "$(rm -rf /)", "'; DROP", "../..",
    "-1", "1e9", 0, -1, 1, 2**31, 2**63, 0.5, 1e300, True, False, [], {}, [1], ["a"], {"a": "b"}, {"name": "x"},
    [{"key": "a", "operator": "Exists"}], {"a": {"b": {"c": None}}}, "s3://b/x", "builtin:sprites/robot", "auto",
]  # fmt: skip


def paths_in(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a document."""
    found = [path] if path else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        found += paths_in(child, (*path, key))
    return found


def mutate(job: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three mutations."""
    job = copy.deepcopy(job)
    for _ in range(rng.choice([1, 1, 2, 3])):
        path = rng.choice([p for p in paths_in(job) if p[0] == "spec"] or [("spec",)])
        node: Any = job
        for key in path[:-1]:
            node = node[key]
        last = path[-1]
        match rng.randrange(4):
            case 0:
                node[last] = copy.deepcopy(rng.choice(JUNK))
            case 1 if isinstance(node, dict):
                node[f"{last}{rng.choice(['x', 's', '_'])}"] = node.pop(last)
            case 2:
                del node[last]
            case _:
                if isinstance(node[last], dict):
                    node[last][rng.choice(["uri", "pvc", "steps", "name", "class", "count"])] = rng.choice(JUNK)
                else:
                    node[last] = [node[last]]
        if not paths_in(job.get("spec") or {}):
            break
    return job


async def test_every_mutated_job_is_rejected_with_a_message_or_starts(api: Api, namespace: str) -> None:
    seed = int(os.environ.get("DREAMBOOTH_SEED", random.SystemRandom().randrange(2**31)))
    count = int(os.environ.get("DREAMBOOTH_MUTATIONS", "500"))
    print(f"repeat with DREAMBOOTH_SEED={seed}")
    rng = random.Random(seed)
    documents = [yaml.safe_load(path.read_text()) for path in (ROOT / "manifests" / "samples").glob("*.yaml")]
    samples = [document for document in documents if document["kind"] == "DreamBoothJob"]
    outcome = {"invalid": 0, "rejected": 0, "started": 0}
    for _ in range(count):
        mutated = mutate(rng.choice(samples), rng)
        mutated["metadata"] = {"name": "mutated", "namespace": namespace}
        try:
            taken = await dry_run(api, f"/apis/dreambooth.dev/v1alpha1/namespaces/{namespace}/dreamboothjobs", mutated)
        except ApiError as error:
            assert error.status in (400, 422), f"{error} for {mutated}"
            assert len(error.message.split()) > 4, f"{error} for {mutated}"
            outcome["invalid"] += 1
            continue
        taken["metadata"]["resourceVersion"] = "1"
        outcome[await reconcile_once(api, read_job(taken))] += 1
    print(outcome)
    assert outcome["invalid"] > 0 < outcome["started"], "the mutations have only one outcome"


async def reconcile_once(api: Api, job: Job) -> str:
    """The outcome: the job is rejected with a message, or the API server accepts its children."""
    found = resolve(job, RUNTIME, ["default"])
    world = World(job)
    world.reconcile()
    world.reconcile()  # the first one may only have added the finalizer
    if isinstance(found, ResolutionError):
        assert world.status.phase == "Rejected"
        assert len(found.message.split()) > 4
        return "rejected"
    assert isinstance(found, ResolvedJob)
    assert world.status.attempts == (0 if job.spec and job.spec.run_policy.suspend else 1)
    children = attempt_children(job, 1, found, SETTINGS)
    assert children == attempt_children(job, 1, found, SETTINGS), "a builder changed its arguments"
    for resource, obj in children:
        await dry_run(api, resource.path(job.key.namespace), Create(resource, obj).obj)
    return "started"


async def dry_run(api: Api, path: str, obj: dict[str, Any]) -> dict[str, Any]:
    return await api.request("POST", path, query={"dryRun": "All", "fieldValidation": "Strict"}, body=obj)
