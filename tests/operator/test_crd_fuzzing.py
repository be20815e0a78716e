"""Thousands of broken jobs: each is refused by a sentence, or what is made of it is taken by the API server."""

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


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a document."""
    found = [path] if path else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        found += places(child, (*path, key))
    return found


def mutate(job: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """A copy with one to three things wrong."""
    job = copy.deepcopy(job)
    for _ in range(dice.choice([1, 1, 2, 3])):
        path = dice.choice([p for p in places(job) if p[0] == "spec"] or [("spec",)])
        node: Any = job
        for key in path[:-1]:
            node = node[key]
        last = path[-1]
        match dice.randrange(4):
            case 0:
                node[last] = copy.deepcopy(dice.choice(JUNK))
            case 1 if isinstance(node, dict):
                node[f"{last}{dice.choice(['x', 's', '_'])}"] = node.pop(last)
            case 2:
                del node[last]
            case _:
                if isinstance(node[last], dict):
                    node[last][dice.choice(["uri", "pvc", "steps", "name", "class", "count"])] = dice.choice(JUNK)
                else:
                    node[last] = [node[last]]
        if not places(job.get("spec") or {}):
            break
    return job


async def test_every_broken_job_is_refused_by_a_sentence_or_comes_to_something(api: Api, namespace: str) -> None:
    seed = int(os.environ.get("DREAMBOOTH_SEED", random.SystemRandom().randrange(2**31)))
    count = int(os.environ.get("DREAMBOOTH_MUTATIONS", "500"))
    print(f"again with DREAMBOOTH_SEED={seed}")
    dice = random.Random(seed)
    documents = [yaml.safe_load(path.read_text()) for path in (ROOT / "manifests" / "samples").glob("*.yaml")]
    samples = [document for document in documents if document["kind"] == "DreamBoothJob"]
    outcome = {"refused": 0, "rejected": 0, "started": 0}
    for _ in range(count):
        broken = mutate(dice.choice(samples), dice)
        broken["metadata"] = {"name": "broken", "namespace": namespace}
        try:
            taken = await dry_run(api, f"/apis/dreambooth.dev/v1alpha1/namespaces/{namespace}/dreamboothjobs", broken)
        except ApiError as error:
            assert error.status in (400, 422), f"{error} for {broken}"
            assert len(error.message.split()) > 4, f"{error} for {broken}"
            outcome["refused"] += 1
            continue
        taken["metadata"]["resourceVersion"] = "1"
        outcome[await come_to_something(api, read_job(taken))] += 1
    print(outcome)
    assert outcome["refused"] > 0 < outcome["started"], "the mutations are one-sided"


async def come_to_something(api: Api, job: Job) -> str:
    """The job is rejected with a sentence, or its children are taken by the API server."""
    found = resolve(job, RUNTIME, ["default"])
    world = World(job)
    world.reconcile()
    world.reconcile()  # the first may only have put the finalizer on
    if isinstance(found, ResolutionError):
        assert world.status.phase == "Rejected"
        assert len(found.message.split()) > 4
        return "rejected"
    assert isinstance(found, ResolvedJob)
    assert world.status.attempts == (0 if job.spec and job.spec.run_policy.suspend else 1)
    children = attempt_children(job, 1, found, SETTINGS)
    assert children == attempt_children(job, 1, found, SETTINGS), "a builder changed what it was given"
    for resource, obj in children:
        await dry_run(api, resource.path(job.key.namespace), Create(resource, obj).obj)
    return "started"


async def dry_run(api: Api, path: str, obj: dict[str, Any]) -> dict[str, Any]:
    return await api.request("POST", path, query={"dryRun": "All", "fieldValidation": "Strict"}, body=obj)
